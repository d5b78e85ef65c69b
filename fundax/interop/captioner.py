"""The format of KeepFIT's FFA captioner: image encoder and report decoder under the names of lxirich/MM-Retinal."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fundax.encoders.report_decoder import ReportDecoder
from fundax.encoders.resnet import ResNet
from fundax.interop import flair, folder, keymap, resnet
from fundax.interop.checkpoint import Checkpoint, Format
from fundax.interop.convolutional import STATISTICS, read_statistics, write_statistics
from fundax.interop.keymap import Row
from fundax.interop.weights import State, write_torch
from fundax.objectives.report import Report
from fundax.params import flatten
from fundax.runtime import serialize
from fundax.types import Params, UserError

NAME = "KeepFIT's FFA captioner"
IGNORED = ("tgt_embed.1.pe",)  # a buffer of sinusoids
PREFIX = "encoder_decoder."
VISUAL = "visual_extractor.model."
FLAIR_VISION = f"{flair.VISION}.model"
WEIGHTS = "captioner.pth"
USAGE = """
import torch

state = torch.load("FOLDER/captioner.pth", weights_only=True)["state_dict"]
"""


def decoder_to_fundax(
    state: State, *, heads: int = 8, context: int = 90, **fields: Any
) -> tuple[ReportDecoder, Params]:
    """The decoder and its parameters (fp32).

    Args:
        state: state dict of a whole captioner, whose image encoder is ignored, or of its `encoder_decoder` alone.
        heads: number of attention heads, which shapes do not show.
        context: the longest report in tokens.
        fields: further fields of ReportDecoder.
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
    """The table of every parameter."""
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


# ------------------------------------------------------------------------------------------- whole models


def detect(state: State) -> bool:
    """Whether these are the keys of a captioner or of its decoder alone."""
    return f"{PREFIX}logit.weight" in state or {"logit.weight", "att_embed.0.weight"} <= state.keys()


def read_model(path: Path, state: State, modality: str = "") -> Checkpoint:
    """The captioner of a state dict. A folder that fundax wrote has a record, which says what shapes do not show.

    Raises UserError naming keys that are missing or unknown.
    """
    record = folder.read_record(path)
    named = serialize.from_json(record["objective"]) if record else None
    fields = {name: getattr(named.decoder, name) for name in ("heads", "context")} if named else {}
    decoder, params = decoder_to_fundax(state, **fields)
    images = {_flair_key(key): value for key, value in state.items() if key.startswith(VISUAL)}
    objective = replace(named, findings=0) if named else Report(_tower(images, path), decoder)
    tower: Any = objective.image
    shapes = {key: shape for key, shape in keymap.shapes_of(objective).items() if key.startswith("image/")}
    weights = {key: value for key, value in images.items() if not key.endswith(STATISTICS)}
    image = keymap.read(resnet.rows("image", flair.IMAGES, tower), weights, shapes, str(path))
    extra = read_statistics(resnet.norms("image", flair.IMAGES, tower), images, shapes, str(path))
    facts = record.get("preprocessing", {"image_size": objective.image.image_size})
    return Checkpoint(objective, {"image": image["image"], "decoder": params}, facts, extra=extra)


def write_folder(model: Checkpoint, out: str | Path, overwrite: bool = False) -> None:
    """Write a folder with captioner.pth, {"state_dict": ...} as KeepFIT's FFA branch saves it.

    The findings that a report model may learn with its words have no place in it; the record lists them. Raises
    UserError for an image encoder that is not a ResNet, and for a folder that is not empty.
    """
    objective, params = model.objective, model.params
    if not isinstance(objective.image, ResNet):
        raise UserError(f"{NAME} has a ResNet, this model a {type(objective.image).__name__}")
    rows = resnet.rows("image", flair.IMAGES, objective.image)
    images = keymap.write(rows, {"image": params["image"]}, NAME)
    images |= write_statistics(flair.norms_of(objective), model.extra, NAME)
    state = {_captioner_key(key): value for key, value in images.items()}
    state |= {PREFIX + key: value for key, value in decoder_from_fundax(objective.decoder, params["decoder"]).items()}
    others = {name: tree for name, tree in params.items() if name not in ("image", "decoder")}
    left_out = {path: list(np.shape(leaf)) for path, leaf in flatten(others).items()}
    with folder.fresh_folder(out, overwrite) as temporary:
        write_torch({"state_dict": state}, temporary / WEIGHTS)
        folder.write_record(temporary, state, model, left_out)
        folder.write_card(temporary, model, "fundax", USAGE, "image-to-text")


def _tower(images: State, path: Path) -> ResNet:
    """The ResNet that the shapes show, at the captioner's 224 pixels."""
    if f"{FLAIR_VISION}.conv1.weight" not in images:
        raise UserError(f"{path}: a decoder of reports without its image encoder ({VISUAL}...) is not a complete model")
    return resnet.tower_of(images, flair.IMAGES, 224)


def _captioner_key(key: str) -> str:
    """The captioner numbers the children of a torchvision ResNet: 0 conv1, 1 bn1, 4 to 7 layer1 to layer4."""
    name, _, rest = key.removeprefix(f"{FLAIR_VISION}.").partition(".")
    number = {"conv1": 0, "bn1": 1}.get(name, 3 + int(name[5:]) if name.startswith("layer") else 0)
    return f"{VISUAL}{number}.{rest}"


def _flair_key(key: str) -> str:
    number, _, rest = key.removeprefix(VISUAL).partition(".")
    name = {"0": "conv1", "1": "bn1"}.get(number) or f"layer{int(number) - 3}"
    return f"{FLAIR_VISION}.{name}.{rest}"


FORMAT = Format(
    "ffa_captioner", NAME, (Report,), (WEIGHTS, folder.RECORD), detect, read_model, write_folder, USAGE, order=5
)
