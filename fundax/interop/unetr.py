"""The format of VisionFM's segmentation and landmark models: the UNETR or linear decoder, and the encoder it reads.

Layout: github.com/ABILab-CUHK/VisionFM, where a transposed convolution is stored as [in out size size]."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from fundax.encoders.backbone import Encoder
from fundax.encoders.unetr import UNETR, Linear
from fundax.interop import folder, keymap, vit
from fundax.interop.checkpoint import Checkpoint, Format
from fundax.interop.keymap import Layout, Row
from fundax.interop.weights import State, folder_of, read_state, write_torch
from fundax.objectives.dense import Landmark, Segment
from fundax.params import flatten
from fundax.runtime import serialize
from fundax.types import Params, UserError

NAME = "VisionFM's decoder"
WEIGHTS, ENCODER = "visionfm_decoder.pth", "visionfm_encoder.pth"
USAGE = """
import torch

decoder = torch.load("FOLDER/visionfm_decoder.pth", weights_only=True)["state_dict"]
encoder = torch.load("FOLDER/visionfm_encoder.pth", weights_only=True)["teacher"]
"""


DECONV = Layout(lambda t: t[0].transpose(0, 2, 3, 1), lambda x: [x.transpose(0, 3, 1, 2)])
POINT = Layout(lambda t: t[0][:, :, 0, 0].T, lambda x: [x.T[:, :, None, None]])
COUNT = "num_batches_tracked"


def rows(decoder: UNETR | Linear, theirs: str = "") -> list[Row]:
    """The table of a decoder's parameters ("params/...") and statistics ("batch_stats/...")."""
    if isinstance(decoder, Linear):
        return _point("conv_seg", theirs)
    found = _point("cls", theirs)
    for level in range(1, 5):
        found += _enlarge(f"up{level}", f"{theirs}d{level}.deconv")
        for i in range(level if level < 4 else 2):
            at, step = (2 * i + 1, f"{theirs}s{level}.{2 * i}.deconv") if level < 4 else (i, "")
            found += _enlarge(f"s{level}_up{i}", step) if step else []
            found += _convolution(f"s{level}_conv{i}", f"{theirs}s{level}.{at}.layers")
        for i in range(2):
            found += _convolution(f"conv{level}_{i}", f"{theirs}c{level}.{i}.layers")
    return found


def _point(theirs: str, prefix: str) -> list[Row]:
    kernel, bias = (f"{prefix}{theirs}.{name}" for name in ("weight", "bias"))
    return [Row("params/out/kernel", (kernel,), POINT), Row("params/out/bias", (bias,), keymap.SAME)]


def _enlarge(ours: str, theirs: str) -> list[Row]:
    kernel, bias = f"params/{ours}/kernel", f"params/{ours}/bias"
    return [Row(kernel, (f"{theirs}.weight",), DECONV), Row(bias, (f"{theirs}.bias",), keymap.SAME)]


def _convolution(ours: str, theirs: str) -> list[Row]:
    found = [
        Row(f"params/{ours}/kernel", (f"{theirs}.0.weight",), keymap.CONV),
        Row(f"params/{ours}/bias", (f"{theirs}.0.bias",), keymap.SAME),
        *keymap.norm(f"params/{ours}/norm", f"{theirs}.1"),
    ]
    statistics = {"mean": "running_mean", "var": "running_var", "count": COUNT}
    for name, key in statistics.items():
        found.append(Row(f"batch_stats/{ours}/norm/{name}", (f"{theirs}.1.{key}",), keymap.SAME))
    return found


def read(decoder: UNETR | Linear, state: State, width: int, theirs: str = "") -> tuple[Params, Params]:
    """Parameters and batch statistics of a decoder for tokens of `width`, from the keys that begin with `theirs`.

    Raises UserError for keys that are missing or unknown, and for other shapes, by name.
    """
    state = {key: value for key, value in state.items() if key.startswith(theirs)}
    tree = keymap.read(rows(decoder, theirs), state, shapes(decoder, width), NAME)
    statistics = tree.get("batch_stats", {})
    for norm in (part["norm"] for part in statistics.values()):
        norm["count"] = norm["count"].astype(np.int32)
    return tree["params"], statistics


def write(decoder: UNETR | Linear, params: Params, statistics: Params, theirs: str = "") -> State:
    """The state dict of a decoder (fp32; counts int64): the inverse of `read`.

    Raises UserError for a UNETR whose patch is not 16: the format has no place for other enlargements.
    """
    if isinstance(decoder, UNETR) and decoder.first != 2:
        raise UserError(f"{NAME} is for a patch of 16, this one is for {decoder.patch}")
    tree = {"params": params} | ({"batch_stats": statistics} if statistics else {})
    state = keymap.write(rows(decoder, theirs), tree, NAME)
    return {key: value.astype(np.int64) if key.endswith(COUNT) else value for key, value in state.items()}


def shapes(decoder: UNETR | Linear, width: int) -> keymap.Shapes:
    """Path -> shape of a decoder's parameters and statistics; nothing is computed."""
    tokens = (jax.ShapeDtypeStruct((1, 1, width), jnp.float32),) * 4
    image = jax.ShapeDtypeStruct((1, decoder.patch, decoder.patch, 3), jnp.float32)
    tree = jax.eval_shape(decoder.init, jax.random.key(0), tokens, image)
    return {path: tuple(leaf.shape) for path, leaf in flatten(dict(tree)).items()}


# ------------------------------------------------------------------------------------------- whole models


def detect(state: State) -> bool:
    """Whether these are the keys of one of VisionFM's decoders of maps."""
    return "d1.deconv.weight" in state or "conv_seg.weight" in state


def read_model(path: Path, state: State, modality: str = "") -> Checkpoint:
    """The model of a folder that write_folder wrote: the decoder's state dict, the encoder's file and the record.

    Raises UserError for anything missing, damaged or that does not fit.
    """
    record = folder.read_record(path)
    if not record:
        raise UserError(f"{folder_of(path)}: no {folder.RECORD}; expected it in the folder of the decoder")
    objective = serialize.from_json(record["objective"])
    image = vit.read(vit.bare(objective.image), vit.encoder_state(read_state(folder_of(path) / ENCODER)), ENCODER)
    params, statistics = read(objective.decoder, state, objective.image.width)
    extra = {"batch_stats": statistics} if statistics else {}
    return Checkpoint(objective, {"image": image, "decoder": params}, record["preprocessing"], extra=extra)


def write_folder(model: Checkpoint, out: str | Path, overwrite: bool = False) -> None:
    """Write a folder with the decoder and the encoder in the two files that VisionFM's scripts open.

    Raises UserError for an encoder or a decoder that the format cannot hold, and for a folder that is not empty.
    """
    objective, params = model.objective, model.params
    encoder = Encoder(objective.image, (objective.mean,), (objective.std,))
    image = vit.from_fundax(encoder, {"image": params["image"]})
    decoder = write(objective.decoder, params["decoder"], model.extra.get("batch_stats", {}))
    with folder.fresh_folder(out, overwrite) as temporary:
        write_torch({"state_dict": {f"module.{key}": value for key, value in decoder.items()}}, temporary / WEIGHTS)
        write_torch({"teacher": {f"backbone.{key}": value for key, value in image.items()}}, temporary / ENCODER)
        folder.write_record(temporary, image | decoder, model, {})
        folder.write_card(temporary, model, "fundax", USAGE, "image-segmentation")


FORMAT = Format(
    "visionfm", NAME, (Segment, Landmark), (WEIGHTS, folder.RECORD), detect, read_model, write_folder, USAGE,
    configured=True, order=6,
)  # fmt: skip
