"""StableHLO: programs that run with JAX (jax.export) but without fundax; weights are in a safetensors file.

`image.stablehlo` takes photographs u8 [B S S 3] at the size of the model and normalises them itself; an image-text model
has `text.stablehlo` as well. The batch may have any size. The folder is read back like any other."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import export

from fundax.encoders.backbone import BackboneWithHead, Encoder, owner_of
from fundax.interop import folder
from fundax.interop.checkpoint import Checkpoint, Format
from fundax.interop.weights import State, folder_of, write_safetensors
from fundax.objectives.clip import CLIP
from fundax.objectives.dense import Landmark, Segment
from fundax.objectives.flair import FLAIR
from fundax.objectives.ibot import IBOT
from fundax.objectives.keepfit import KeepFIT
from fundax.objectives.report import Report
from fundax.objectives.ret_clip import RetCLIP
from fundax.params import flatten, unflatten
from fundax.runtime import serialize
from fundax.runtime.workdir import read_json
from fundax.types import UserError

NAME = "StableHLO"
WEIGHTS = "stablehlo.safetensors"
PLATFORMS = ("cpu", "cuda", "tpu")
USAGE = """
import jax
from safetensors.numpy import load_file

weights = load_file("FOLDER/stablehlo.safetensors")
program = jax.export.deserialize(open("FOLDER/image.stablehlo", "rb").read())
out = program.call(weights, pixels)  # u8 [B S S 3]; and i32 [B], if the model normalises each modality in its own way
"""


def detect(state: State) -> bool:
    """Whether these are the keys of stablehlo.safetensors."""
    return bool(state) and all(key.startswith(("params/", "extra/")) for key in state)


def write_folder(model: Checkpoint, out: str | Path, overwrite: bool = False) -> None:
    """Write the folder. Raises UserError for a folder that is not empty, and without flatbuffers."""
    if importlib.util.find_spec("flatbuffers") is None:
        raise UserError("exporting to stablehlo needs flatbuffers: pip install -e '.[stablehlo]'")
    state = _state(model)
    with folder.fresh_folder(out, overwrite) as temporary:
        for name, inputs in inputs_of(model.objective).items():
            program = _exported(model.objective, name, inputs, state)
            (temporary / f"{name}.stablehlo").write_bytes(program.serialize())
        write_safetensors(state, temporary / WEIGHTS)
        folder.write_record(temporary, state, model, {})
        folder.write_card(temporary, model, "jax", USAGE, "image-feature-extraction")


def read_model(path: Path, state: State, modality: str = "") -> Checkpoint:
    """The model of a folder that `write_folder` wrote."""
    del modality
    record = read_json(folder_of(path) / folder.RECORD)
    tree = unflatten(state)
    objective = serialize.from_json(record["objective"])
    return Checkpoint(objective, tree["params"], record["preprocessing"], extra=tree.get("extra", {}))


def difference(path: str | Path, model: Checkpoint) -> float | None:
    """The largest difference between the programs in the folder and the same computation here: 0 is the same bits."""
    found, rng, state = 0.0, np.random.default_rng(0), _state(model)
    for name, inputs in inputs_of(model.objective).items():
        values = [rng.integers(0, 2, (2, *one.shape[1:]), np.int32).astype(one.dtype) for one in inputs.values()]
        theirs = export.deserialize(bytearray((Path(path) / f"{name}.stablehlo").read_bytes())).call(state, *values)
        ours = jax.jit(program_of(model.objective, name))(state, *values)
        gaps = jax.tree.map(lambda a, b: float(np.abs(np.asarray(a, np.float64) - b).max()), theirs, ours)
        found = max([found, *jax.tree.leaves(gaps)])
    return found


def _state(model: Checkpoint) -> State:
    trees = {"params": model.params} | ({"extra": model.extra} if model.extra else {})
    return {path: np.asarray(leaf) for path, leaf in flatten(trees).items()}


def inputs_of(objective: Any) -> dict[str, dict[str, jax.ShapeDtypeStruct]]:
    """The programs, `image` and `text`, and the inputs of each by name; the size of the batch is a symbol."""
    side = objective.image.image_size
    mean = owner_of(objective).mean
    several = isinstance(mean[0], tuple) and len(mean) > 1
    text = objective.batch_spec(1).get("text") if hasattr(objective, "encode") else None
    (batch,) = export.symbolic_shape("b")
    image = {"image": jax.ShapeDtypeStruct((batch, side, side, 3), np.uint8)}
    image |= {"modality": jax.ShapeDtypeStruct((batch,), np.int32)} if several else {}
    texts = {} if text is None else {"text": {"text": jax.ShapeDtypeStruct((batch, text.shape[1]), np.int32)}}
    return {"image": image} | texts


def _exported(objective: Any, name: str, inputs: Mapping[str, jax.ShapeDtypeStruct], state: State) -> Any:
    weights = {path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for path, leaf in state.items()}
    return export.export(jax.jit(program_of(objective, name)), platforms=PLATFORMS)(weights, *inputs.values())


def program_of(objective: Any, name: str) -> Callable[..., dict[str, jax.Array]]:
    """(weights, values [B ...], modality i32 [B] if the model has several) -> outputs of the objective by name.

    Every example is computed as a batch of one under vmap, so that the size of the batch can stay open.
    """

    def one(weights: Any, value: jax.Array, modality: jax.Array | None) -> dict[str, jax.Array]:
        tree, batch = unflatten(weights), {name: value[None]}
        batch |= {} if modality is None else {"modality": modality[None]}
        out = objective.forward(tree["params"], tree.get("extra", {}), batch)
        return {key: leaf[0] for key, leaf in out.items() if leaf.ndim}

    def many(weights: Any, values: jax.Array, modality: jax.Array | None = None) -> dict[str, jax.Array]:
        return jax.vmap(one, (None, 0, None if modality is None else 0))(weights, values, modality)

    return many


FORMAT = Format(
    "stablehlo", NAME, (CLIP, RetCLIP, FLAIR, KeepFIT, IBOT, Encoder, Segment, Landmark, Report, BackboneWithHead),
    (WEIGHTS, folder.RECORD), detect, read_model, write_folder, USAGE, difference=difference, order=12,
)  # fmt: skip
