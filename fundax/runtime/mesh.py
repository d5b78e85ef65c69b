"""Where arrays live: the device mesh, the tables of rules that shard parameters by their path, and batch placement.

A model file never mentions devices. The mesh has three axes, and a mesh of one device is the same program:

    data    the batch is split over it, parameters are copies
    fsdp    the batch is split over it too, and so is every large parameter with its moments: memory falls, traffic grows
    model   (tensor parallelism) heads, hidden units and vocabularies are split over it; the batch is not

The sizes choose: (8, 1, 1) replicates, (1, 8, 1) is FSDP, (1, 4, 2) is FSDP + tensor, with one table of rules for all."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from fundax.params import path_string
from fundax.types import Batch, UserError

AXES = ("data", "fsdp", "model")
BATCH_AXES = ("data", "fsdp")  # what the rows of a batch are split over
LARGEST = P("largest")  # in a rule: its largest axis over fsdp, whichever of those that divide
Rules = Sequence[tuple[str, P]]
REPLICATED: Rules = ()


# First match wins. Optimizer moments follow their parameter, because their paths end in the parameter's path.
# A layer's first product is split by column and its second by row: one all-reduce per attention and per MLP.
TENSOR: Rules = (
    (r"attention/qkv/kernel$", P(None, None, "model")),  # [D 3 D]
    (r"attention/qkv/bias$", P(None, "model")),  # [3 D]
    (r"attention/out/kernel$", P("model", None)),  # [D D]
    (r"mlp/fc1/kernel$", P(None, "model")),  # [D 4D]
    (r"mlp/fc1/bias$", P("model")),
    (r"mlp/fc2/kernel$", P("model", None)),  # [4D D]
    (r"(token|word)/embedding$", P("model", None)),  # [V D]
)

FSDP: Rules = ((r"(kernel|embedding|position)$", LARGEST),)  # biases, norms, statistics are too small to be worth it

FSDP_TENSOR: Rules = (
    (r"attention/qkv/kernel$", P("fsdp", None, "model")),
    (r"attention/qkv/bias$", P(None, "model")),
    (r"attention/out/kernel$", P("model", "fsdp")),
    (r"mlp/fc1/kernel$", P("fsdp", "model")),
    (r"mlp/fc1/bias$", P("model")),
    (r"mlp/fc2/kernel$", P("model", "fsdp")),
    (r"(token|word)/embedding$", P("model", "fsdp")),
    *FSDP,
)

RULES: Rules = FSDP_TENSOR  # on a mesh whose fsdp or model axis is 1, that part of it says nothing
_STACKED = re.compile(r"(^|/)blocks/")  # scan over layers: one leading [layers] axis, never split
_log = logging.getLogger("fundax")


def mesh_sizes(shape: Sequence[int], devices: int) -> tuple[int, int, int]:
    """(data, fsdp, model) with its -1 filled in. Two numbers are (data, model).

    Raises UserError where there is more than one -1, or the devices do not suffice or are left over.
    """
    if len(shape) not in (2, 3) or list(shape).count(-1) > 1 or any(n == 0 or n < -1 for n in shape):
        raise UserError(
            f"mesh {tuple(shape)}: expected positive sizes (data, model) or (data, fsdp, model), at most one of them -1"
        )
    known = math.prod(n for n in shape if n != -1)
    sizes = [devices // known if n == -1 else n for n in shape]
    used = math.prod(sizes)
    if used == 0 or used > devices or (-1 in shape and used != devices):
        raise UserError(f"mesh {tuple(shape)} does not fit {devices} devices; expected a product of {devices}")
    return (sizes[0], sizes[1] if len(sizes) == 3 else 1, sizes[-1])


def make_mesh(shape: Sequence[int] = (-1, 1)) -> Mesh:
    """A ("data", "fsdp", "model") mesh of (data, model) or (data, fsdp, model); one -1 means "the devices that are left".

    A shape smaller than the machine uses its first devices. Raises UserError where the devices do not suffice, or
    where the model axis would cross processes unevenly.
    """
    devices = jax.devices()
    sizes = mesh_sizes(shape, len(devices))
    used = math.prod(sizes)
    if jax.process_count() > 1 and used != len(devices):
        raise UserError(
            f"mesh {tuple(shape)} does not fit {len(devices)} devices; expected a product of {len(devices)}"
        )
    if jax.process_count() > 1 and jax.local_device_count() % sizes[2]:
        raise UserError(f"mesh {tuple(shape)}: the model axis must divide the {jax.local_device_count()} local devices")
    return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * 3, devices=devices[:used])


def batch_axes(mesh: Mesh | AbstractMesh) -> tuple[str, ...]:
    """The axes of this mesh that a batch is split over."""
    return tuple(axis for axis in BATCH_AXES if axis in mesh.axis_names)


def batch_parts(mesh: Mesh | AbstractMesh) -> int:
    """Into how many parts a batch is split: 1 without a mesh."""
    return math.prod(mesh.shape[axis] for axis in batch_axes(mesh))


def shardings(tree: Any, mesh: Mesh | AbstractMesh, rules: Rules = RULES, warn: bool = True) -> Any:
    """A NamedSharding for every leaf of a (possibly abstract) tree: parameters, optimizer state or extra.

    An axis of an array that its mesh axis does not divide stays whole; `warn` lists such leaves in one log line.
    """
    unequal: list[str] = []

    def place_leaf(path: Sequence[Any], leaf: Any) -> NamedSharding:
        name = path_string(path)
        spec, fits = _fit(spec_of(name, leaf.ndim, rules), leaf.shape, mesh, bool(_STACKED.search(name)))
        if not fits:
            unequal.append(f"{name} {tuple(leaf.shape)}")
        return NamedSharding(mesh, spec)

    placed = jax.tree_util.tree_map_with_path(place_leaf, tree)
    if unequal and warn:
        more = f" and {len(unequal) - 3} more" if len(unequal) > 3 else ""
        _log.warning("replicated, not divisible by the mesh %s: %s%s", dict(mesh.shape), ", ".join(unequal[:3]), more)
    return placed


def spec_of(name: str, ndim: int, rules: Rules = RULES) -> P:
    """The PartitionSpec of a path: the first rule whose pattern is found in it, else replicated."""
    for pattern, spec in rules:
        if re.search(pattern, name):
            if spec == LARGEST:
                return spec
            spec = P(None, *spec) if _STACKED.search(name) else spec
            return spec if len(spec) <= ndim else P()  # a factored moment has fewer axes than its parameter
    return P()


def _fit(spec: P, shape: tuple[int, ...], mesh: Mesh | AbstractMesh, stacked: bool) -> tuple[P, bool]:
    """The spec without mesh axes of one device and without those that do not divide; whether all did."""
    if spec == LARGEST:
        return _largest(shape, mesh.shape.get("fsdp", 1), stacked), True
    sizes = [1 if axis is None else mesh.shape.get(axis, 1) for axis in spec]
    divides = [size % parts == 0 for size, parts in zip(shape, sizes, strict=False)]
    kept = [axis if n > 1 and fits else None for axis, n, fits in zip(spec, sizes, divides, strict=True)]
    return (P(*kept) if any(kept) else P()), all(divides)


def _largest(shape: tuple[int, ...], parts: int, stacked: bool) -> P:
    sizes = [size if size % parts == 0 and not (stacked and i == 0) else 0 for i, size in enumerate(shape)]
    if parts == 1 or not any(sizes):
        return P()
    axis = sizes.index(max(sizes))
    return P(*("fsdp" if i == axis else None for i in range(len(shape))))


def keep(tree: Any, rules: Rules = RULES) -> Any:
    """Inside jit: gradients or state where the rules put them, so that what one step splits the next finds split."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return tree
    return jax.lax.with_sharding_constraint(tree, shardings(tree, mesh, rules, warn=False))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """First axis over "data" and "fsdp"."""
    return NamedSharding(mesh, P(batch_axes(mesh)))


def place(batch: Batch, mesh: Mesh) -> dict[str, jax.Array]:
    """The global batch out of every process's own rows [B/processes ...], first axis over "data" and "fsdp"."""
    sharding = batch_sharding(mesh)
    return {k: jax.make_array_from_process_local_data(sharding, np.asarray(v)) for k, v in batch.items()}


def place_whole(batch: Batch, mesh: Mesh) -> dict[str, jax.Array]:
    """A batch that every process holds in full (evaluation): split where it divides, else replicated.

    Text columns are left behind: they are for people.
    """
    arrays = {k: np.asarray(v) for k, v in batch.items()}
    return {k: _put(v, mesh) for k, v in arrays.items() if v.dtype.kind not in "OUS"}


def _put(array: np.ndarray, mesh: Mesh) -> jax.Array:
    array = array.astype(jax.dtypes.canonicalize_dtype(array.dtype))
    split = array.ndim > 0 and array.shape[0] % batch_parts(mesh) == 0
    sharding = batch_sharding(mesh) if split else NamedSharding(mesh, P())
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
