"""Where arrays live: the device mesh, the table of rules that shards parameters by their path, and batch placement.

A model file never mentions devices. What may be split over the "model" axis is in RULES; everything else is
replicated, and the batch is split over "data". One mesh of one device is the same program.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from fundax.errors import UserError
from fundax.types import Batch

AXES = ("data", "model")
Rules = Sequence[tuple[str, P]]

# First match wins. Optimizer moments follow their parameter, because their paths end in the parameter's path.
# A layer's first product is split by column and its second by row: one all-reduce per attention and per MLP.
RULES: Rules = (
    (r"attention/qkv/kernel$", P(None, None, "model")),  # [D 3 D]
    (r"attention/qkv/bias$", P(None, "model")),  # [3 D]
    (r"attention/out/kernel$", P("model", None)),  # [D D]
    (r"mlp/fc1/kernel$", P(None, "model")),  # [D 4D]
    (r"mlp/fc1/bias$", P("model")),
    (r"mlp/fc2/kernel$", P("model", None)),  # [4D D]
    (r"(token|word)/embedding$", P("model", None)),  # [V D]
)
_STACKED = re.compile(r"(^|/)blocks/")  # scan over layers: one leading [layers] axis, never split

_log = logging.getLogger("fundax")


def make_mesh(shape: tuple[int, int] = (-1, 1)) -> Mesh:
    """A ("data", "model") mesh; one -1 means "the devices that are left".

    A shape smaller than the machine uses its first devices. Raises UserError where the devices do not suffice, or
    where the model axis would cross processes unevenly.
    """
    devices = jax.devices()
    known = math.prod(n for n in shape if n != -1)
    if shape.count(-1) > 1 or any(n == 0 or n < -1 for n in shape):
        raise UserError(f"mesh {shape}: expected two positive sizes (data, model), at most one of them -1")
    sizes = tuple(len(devices) // known if n == -1 else n for n in shape)
    used = math.prod(sizes)
    uneven = -1 in shape and used != len(devices)
    if used == 0 or used > len(devices) or uneven or (jax.process_count() > 1 and used != len(devices)):
        raise UserError(f"mesh {shape} does not fit {len(devices)} devices; expected a product of {len(devices)}")
    if jax.process_count() > 1 and jax.local_device_count() % sizes[1]:
        raise UserError(f"mesh {shape}: the model axis must divide the {jax.local_device_count()} local devices")
    return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * 2, devices=devices[:used])


def path_string(path: Sequence[Any]) -> str:
    """'image/block_0/norm1/scale' from a JAX key path."""
    return jax.tree_util.keystr(tuple(path), simple=True, separator="/")


def shardings(tree: Any, mesh: Mesh, rules: Rules = RULES) -> Any:
    """A NamedSharding for every leaf of a (possibly abstract) tree: parameters, optimizer state or extra.

    A dimension that its mesh axis does not divide is replicated instead, and one log line lists such leaves.
    """
    unequal: list[str] = []

    def place_leaf(path: Sequence[Any], leaf: Any) -> NamedSharding:
        name = path_string(path)
        spec, fits = _fit(spec_of(name, leaf.ndim, rules), leaf.shape, mesh)
        if not fits:
            unequal.append(f"{name} {tuple(leaf.shape)}")
        return NamedSharding(mesh, spec)

    placed = jax.tree_util.tree_map_with_path(place_leaf, tree)
    if unequal:
        more = f" and {len(unequal) - 3} more" if len(unequal) > 3 else ""
        _log.warning("replicated, not divisible by the mesh %s: %s%s", dict(mesh.shape), ", ".join(unequal[:3]), more)
    return placed


def spec_of(name: str, ndim: int, rules: Rules = RULES) -> P:
    """The PartitionSpec of a path: the first rule whose pattern is found in it, else replicated."""
    for pattern, spec in rules:
        if re.search(pattern, name):
            spec = P(None, *spec) if _STACKED.search(name) else spec
            return spec if len(spec) <= ndim else P()  # a factored moment has fewer axes than its parameter
    return P()


def _fit(spec: P, shape: tuple[int, ...], mesh: Mesh) -> tuple[P, bool]:
    for size, axis in zip(shape, spec, strict=False):
        if axis is not None and size % mesh.shape[axis]:
            return P(), False
    return spec, True


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """First axis over "data"."""
    return NamedSharding(mesh, P("data"))


def place(batch: Batch, mesh: Mesh) -> dict[str, jax.Array]:
    """The global batch out of every process's own rows [B/processes ...], first axis over "data"."""
    sharding = batch_sharding(mesh)
    return {k: jax.make_array_from_process_local_data(sharding, np.asarray(v)) for k, v in batch.items()}


def place_whole(batch: Batch, mesh: Mesh) -> dict[str, jax.Array]:
    """A batch that every process holds in full (evaluation): split over "data" where it divides, else replicated.

    Text columns are left behind: they are for people.
    """
    arrays = {k: np.asarray(v) for k, v in batch.items()}
    return {k: _put(v, mesh) for k, v in arrays.items() if v.dtype.kind not in "OUS"}


def _put(array: np.ndarray, mesh: Mesh) -> jax.Array:
    array = array.astype(jax.dtypes.canonicalize_dtype(array.dtype))
    split = array.ndim > 0 and array.shape[0] % mesh.shape["data"] == 0
    sharding = NamedSharding(mesh, P("data") if split else P())
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def put(tree: Any, placed: Any) -> Any:
    """Host arrays, the same on every process, onto their shardings."""

    def put_leaf(value: Any, sharding: NamedSharding) -> jax.Array:
        array = np.asarray(value)
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return jax.tree.map(put_leaf, tree, placed)


def gather(tree: Mapping[str, Any]) -> Any:
    """Every leaf as a full numpy array on every process."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(tree, tiled=True)
