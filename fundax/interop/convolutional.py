"""Files of convolutional encoders: batch statistics, removed classifiers, timm's configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from data_pipelines.sources.modality_folders import moments
from fundax.encoders.backbone import Convolutional, Encoder
from fundax.interop import keymap
from fundax.interop.checkpoint import IMAGENET, Checkpoint
from fundax.interop.keymap import Row
from fundax.interop.timm import CONFIG, resize_rule
from fundax.interop.weights import State, folder_of
from fundax.params import flatten, unflatten
from fundax.runtime.workdir import read_optional_json
from fundax.types import Extra

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
Norms = Sequence[tuple[str, str]]  # our path and their key of every batch norm


def statistics_rows(norms: Norms) -> list[Row]:
    """The table of running means and variances."""
    return [
        Row(f"{path}/{ours}", (f"{key}.running_{ours}",), keymap.SAME)
        for path, key in norms
        for ours in ("mean", "var")
    ]


def read_statistics(norms: Norms, state: State, shapes: keymap.Shapes, source: str) -> Extra:
    """Batch statistics by our paths; `shapes` are those of the parameters. Raises UserError naming keys that do not fit."""
    found = {key: value for key, value in state.items() if key.endswith(STATISTICS[:2])}
    wanted = {f"{path}/{name}": shapes[f"{path}/scale"] for path, _ in norms for name in ("mean", "var")}
    flat = flatten(keymap.read(statistics_rows(norms), found, wanted, source))
    for path, key in norms:
        count = state.get(f"{key}.num_batches_tracked", np.zeros((), np.int64))  # old files have none
        flat[f"{path}/count"] = np.asarray(count).astype(np.int32).reshape(())
    return unflatten(flat)


def write_statistics(norms: Norms, extra: Extra, source: str) -> State:
    """The state dict of batch statistics: fp32, counters int64."""
    flat = flatten({"image": extra["image"]})
    values = unflatten({path: leaf for path, leaf in flat.items() if not path.endswith("/count")})
    state = keymap.write(statistics_rows(norms), values, source)
    for path, key in norms:
        state[f"{key}.num_batches_tracked"] = np.asarray(flat[f"{path}/count"]).astype(np.int64)
    return state


def configuration(path: Path) -> Mapping[str, Any]:
    """timm's config.json in the folder of the weights, or {}."""
    config = read_optional_json(folder_of(path) / CONFIG)
    return config if "architecture" in config else {}


def read_encoder(
    tower: Convolutional,
    rows: Sequence[Row],
    norms: Norms,
    state: State,
    path: Path,
    *,
    classifier: str,
    modality: str = "",
    default: Mapping[str, tuple[float, ...]] | None = None,
) -> Checkpoint:
    """The encoder of a bare file, or of a folder with timm's config.json, without its classifier.

    Args:
        tower: the encoder that the shapes show.
        rows, norms: tables of the parameters and of the batch norms; paths begin with image/.
        classifier: prefix of the keys that are left out.
        modality: modality whose mean and standard deviation normalise the images, unless a configuration gives them.
        default: mean and std if neither gives them; None: ImageNet's.
    Raises:
        UserError: keys that are missing or unknown and tensors of another shape, by name.
    """
    stored = configuration(path).get("pretrained_cfg", {})
    side = int(stored.get("input_size", (3, tower.image_size, tower.image_size))[1])
    tower = tower.clone(image_size=side)
    known = dict(zip(("mean", "std"), moments((modality,)), strict=True)) if modality else {}
    own: dict[str, Any] = {
        name: (tuple(values[name]),) for values in (default or {}, stored) for name in ("mean", "std") if name in values
    }
    objective = Encoder(tower, **(own | known))
    state = {key: value for key, value in state.items() if not key.startswith(classifier)}
    weights = {key: value for key, value in state.items() if not key.endswith(STATISTICS)}
    shapes = keymap.shapes_of(objective)
    params = keymap.read(list(rows), weights, shapes, str(path))
    extra = read_statistics(norms, state, shapes, str(path)) if norms else {}
    facts = resize_rule(stored, side)
    return Checkpoint(objective, jax.tree.map(np.asarray, params), facts, extra=extra, assumed="" if own else IMAGENET)
