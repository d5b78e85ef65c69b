"""The report decoder of KeepFIT's FFA branch, both ways: its `encoder_decoder`, under the names of lxirich/MM-Retinal."""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp

from fundax.encoders.report_decoder import ReportDecoder
from fundax.interop import keymap
from fundax.interop.keymap import Row
from fundax.interop.weights import State
from fundax.params import flatten
from fundax.types import Params, UserError

NAME = "KeepFIT's FFA captioner"


IGNORED = ("tgt_embed.1.pe",)  # a buffer of sinusoids


PREFIX = "encoder_decoder."


def decoder_to_fundax(
    state: State, *, heads: int = 8, context: int = 90, **fields: Any
) -> tuple[ReportDecoder, Params]:
    """The decoder and its parameters (fp32).

    Args:
        state: a whole captioner's, whose image tower is left out, or that of its `encoder_decoder` alone.
        heads, context: of attention; the longest report. Shapes do not show them.
        fields: of ReportDecoder.
    Raises:
        UserError: missing or unknown keys, by name.
    """
    whole = {key.removeprefix(PREFIX): value for key, value in state.items() if key.startswith(PREFIX)}
    state = whole or dict(state)
    needed = ("logit.weight", "att_embed.0.weight", "model.decoder.layers.0.feed_forward.w_1.weight")
    if missing := [key for key in needed if key not in state]:
        raise UserError(f"{NAME}: the checkpoint lacks {', '.join(missing)}")
    depth = 1 + max(int(m[1]) for key in state if (m := re.match(r"model\.decoder\.layers\.(\d+)\.", key)))
    (vocab, width), hidden = state["logit.weight"].shape, len(state[needed[2]])
    decoder = ReportDecoder(**{"vocab": vocab, "context": context, "width": width, "depth": depth, "heads": heads,
                               "hidden": hidden} | fields)  # fmt: skip
    shapes = _shapes(decoder, state["att_embed.0.weight"].shape[1])
    return decoder, keymap.read(decoder_rows(decoder), state, shapes, NAME, IGNORED)


def decoder_from_fundax(decoder: ReportDecoder, params: Params) -> State:
    """The state dict of `encoder_decoder` (fp32), without prefix. Raises UserError for parameters without a place."""
    return keymap.write(decoder_rows(decoder), params, NAME)


def decoder_rows(decoder: ReportDecoder) -> list[Row]:
    """Every parameter of ours with the peer's key and layout."""
    rows = [Row("word", ("model.tgt_embed.0.lut.weight",), keymap.SAME)]
    rows += keymap.linear("visual", "att_embed.0") + keymap.linear("head", "logit")
    for side in ("encoder", "decoder"):
        rows += _norm(f"{side}_norm", f"model.{side}.norm")
        for i in range(decoder.depth):
            rows += _block(f"{side}_{i}", f"model.{side}.layers.{i}", side == "decoder")
    return rows


def _block(ours: str, theirs: str, decoder: bool) -> list[Row]:
    norms = ("norm1", "norm2", "norm3") if decoder else ("norm1", "norm3")
    attentions = {"attention": "self_attn"} | ({"cross": "src_attn"} if decoder else {})
    rows = [row for i, name in enumerate(norms) for row in _norm(f"{ours}/{name}", f"{theirs}.sublayer.{i}.norm")]
    for name, their_name in attentions.items():
        for i, part in enumerate(("query", "key", "value", "out")):
            rows += keymap.linear(f"{ours}/{name}/{part}", f"{theirs}.{their_name}.linears.{i}")
    for i in (1, 2):
        rows += keymap.linear(f"{ours}/fc{i}", f"{theirs}.feed_forward.w_{i}")
    return rows


def _norm(ours: str, theirs: str) -> list[Row]:
    return [
        Row(f"{ours}/scale", (f"{theirs}.gamma",), keymap.SAME),
        Row(f"{ours}/bias", (f"{theirs}.beta",), keymap.SAME),
    ]


def _shapes(decoder: ReportDecoder, inputs: int) -> keymap.Shapes:
    def init() -> Any:
        return decoder.init(jax.random.key(0), jnp.zeros((1, 2, inputs)), jnp.zeros((1, 2), jnp.int32))["params"]

    return {path: tuple(leaf.shape) for path, leaf in flatten(jax.eval_shape(init)).items()}
