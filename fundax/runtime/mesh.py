"""Sharding: the device mesh, rules that shard parameters by their path, and the placement of batches.

Models do not mention devices. The mesh has three axes, and a mesh of one device runs the same program:

    data    data parallelism: the batch is split, parameters are replicated
    fsdp    fully sharded data parallelism: the batch is split, and so is every large parameter with its optimizer state.
            This saves memory and adds communication.
    model   tensor parallelism: heads, hidden units and vocabularies are split; the batch is not

One table of rules serves all meshes: (8, 1, 1) is data parallelism, (1, 8, 1) is FSDP, (1, 4, 2) is FSDP with tensor
parallelism."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from fundax.params import path_string
from fundax.types import Batch, UserError

AXES = ("data", "fsdp", "model")
BATCH_AXES = ("data", "fsdp")  # the axes that split the rows of a batch
LARGEST = P("largest")  # in a rule: split the parameter's largest axis that the fsdp axis divides
Rules = Sequence[tuple[str, P]]
REPLICATED: Rules = ()


# The first match wins. Optimizer moments are sharded as their parameter, because their paths end in its path.
#
# Tensor parallelism splits the first product of a layer by column and the second by row. Each device then computes its
# own heads, or hidden units, without communication, and the second product gives partial sums: one all-reduce for each
# attention and each MLP. Heads are in the last axis of the packed [D 3 D] kernel, so splitting it splits by head.
TENSOR: Rules = (
    (r"attention/qkv/kernel$", P(None, None, "model")),  # [D 3 D]
    (r"attention/qkv/bias$", P(None, "model")),  # [3 D]
    (r"attention/out/kernel$", P("model", None)),  # [D D]
    (r"mlp/fc1/kernel$", P(None, "model")),  # [D 4D]
    (r"mlp/fc1/bias$", P("model")),
    (r"mlp/fc2/kernel$", P("model", None)),  # [4D D]
    (r"(token|word)/embedding$", P("model", None)),  # [V D]
)

# Biases, norms and statistics are too small for sharding to be worth its communication.
FSDP: Rules = ((r"(kernel|embedding|position)$", LARGEST),)

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

RULES: Rules = FSDP_TENSOR  # the part of an axis has no effect on a mesh where that axis has size 1
# Layers stacked for scan have a leading layer axis. It is never split: the scan reads one layer at a time, and with a
# split layer axis every step would need the layer of another device.
_STACKED = re.compile(r"(^|/)blocks/")
_log = logging.getLogger("fundax")


def mesh_sizes(shape: Sequence[int], devices: int) -> tuple[int, int, int]:
    """(data, fsdp, model) from a shape in which one size may be -1. Two numbers mean (data, model).

    Raises UserError for more than one -1, and if the sizes do not fit the number of devices.
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
    """A mesh with the axes data, fsdp and model, of shape (data, model) or (data, fsdp, model).

    One size may be -1, for all remaining devices. A smaller shape uses the first devices of a single process. Raises
    UserError if the devices do not suffice, or the data axis does not span the slices of a multislice.
    """
    devices = jax.devices()
    sizes = mesh_sizes(shape, len(devices))
    used = math.prod(sizes)
    if jax.process_count() > 1 and used != len(devices):
        raise UserError(
            f"mesh {tuple(shape)} does not fit {len(devices)} devices; expected a product of {len(devices)}"
        )
    # Tensor parallelism communicates in every layer. The links of a TPU slice join its hosts, too; others are slow there.
    if jax.process_count() > 1 and jax.local_device_count() % sizes[2] and devices[0].platform != "tpu":
        _log.warning(
            "the model axis of %d joins devices of several processes, and communicates in every layer", sizes[2]
        )
    return arranged(sizes, devices[:used])


def arranged(sizes: Sequence[int], devices: Sequence[Any]) -> Mesh:
    """Arrange the devices in a mesh of (data, fsdp, model), with neighbours close to each other.

    On several TPU slices the data axis goes over the slices first, so only gradients cross the slower network between
    them. Raises UserError if the data axis is not a multiple of the number of slices.
    """
    from jax.experimental import mesh_utils

    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if sizes[0] % slices:
        raise UserError(
            f"mesh {tuple(sizes)}: the data axis is {sizes[0]}; over {slices} slices expected a multiple of {slices}"
        )
    if slices > 1:
        inside, between = (sizes[0] // slices, *sizes[1:]), (slices, 1, 1)
        grid = mesh_utils.create_hybrid_device_mesh(inside, between, devices, allow_split_physical_axes=True)
    else:
        grid = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    # Auto: XLA propagates the shardings through the program from those of its inputs and the constraints in it.
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def batch_axes(mesh: Mesh | AbstractMesh) -> tuple[str, ...]:
    """The axes of this mesh that split a batch."""
    return tuple(axis for axis in BATCH_AXES if axis in mesh.axis_names)


def batch_parts(mesh: Mesh | AbstractMesh) -> int:
    """Number of parts that a batch is split into."""
    return math.prod(mesh.shape[axis] for axis in batch_axes(mesh))


def shardings(tree: Any, mesh: Mesh | AbstractMesh, rules: Rules = RULES, warn: bool = True) -> Any:
    """A NamedSharding for every leaf of a tree, which may be abstract: parameters, optimizer state or extra state.

    An axis that the mesh does not divide is not split; `warn` logs one line with such leaves.
    """
    indivisible: list[str] = []

    def place_leaf(path: Sequence[Any], leaf: Any) -> NamedSharding:
        name = path_string(path)
        spec, fits = _fit(spec_of(name, leaf.ndim, rules), leaf.shape, mesh, bool(_STACKED.search(name)))
        if not fits:
            indivisible.append(f"{name} {tuple(leaf.shape)}")
        return NamedSharding(mesh, spec)

    placed = jax.tree_util.tree_map_with_path(place_leaf, tree)
    if indivisible and warn:
        names, more = ", ".join(indivisible[:3]), f" and {len(indivisible) - 3} more" if len(indivisible) > 3 else ""
        _log.warning("replicated, not divisible by the mesh %s: %s%s", dict(mesh.shape), names, more)
    return placed


def spec_of(name: str, ndim: int, rules: Rules = RULES) -> P:
    """The PartitionSpec of the first rule whose pattern is found in the path; replicated if there is none."""
    for pattern, spec in rules:
        if re.search(pattern, name):
            if spec == LARGEST:
                return spec
            spec = P(None, *spec) if _STACKED.search(name) else spec
            return (
                spec if len(spec) <= ndim else P()
            )  # factored optimizer moments have fewer axes than their parameter: replicate them
    return P()


def _fit(spec: P, shape: tuple[int, ...], mesh: Mesh | AbstractMesh, stacked: bool) -> tuple[P, bool]:
    """The spec without mesh axes of size 1 and without those that do not divide; and whether all divide."""
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


def constrain(tree: Any, rules: Rules = RULES) -> Any:
    """Inside jit: constrain gradients or state to the shardings of the rules."""
    # Without it XLA may choose another sharding for the new state than the old state has: the next step would be compiled
    # again, and the donated memory could not be reused.
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return tree
    return jax.lax.with_sharding_constraint(tree, shardings(tree, mesh, rules, warn=False))


def constrain_rows(x: jax.Array) -> jax.Array:
    """Inside jit: constrain activations [B ...] to rows over "data" and "fsdp", with nothing else split.

    Encoders call it at the entry and exit of every block.
    """
    # Without it the sharding of the kernels spreads to the activations: on an fsdp axis XLA then sums activations over
    # devices in every layer instead of gathering weights (docs/measurements/performance.md).
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or x.shape[0] % batch_parts(mesh):
        return x
    return jax.lax.with_sharding_constraint(x, P(batch_axes(mesh)))


def replicate(x: jax.Array) -> jax.Array:
    """Inside jit: keep a small array whole on each device. XLA sends a split one many times, for example to sort it."""
    mesh = jax.sharding.get_abstract_mesh()
    return x if mesh.empty or mesh.manual_axes else jax.lax.with_sharding_constraint(x, P())


def gather_parameter(x: jax.Array, path: Sequence[str], rules: Rules = RULES) -> jax.Array:
    """Inside jit: a parameter where it is used, gathered over "fsdp"; its gradient is scattered again.

    path: names of the modules that own the parameter, and its own name. The split over "model" stays.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.shape.get("fsdp", 1) == 1:
        return x
    name = _STACKED.sub(r"\1", "/".join(path))  # inside a scan there is one layer, without the leading axis
    split, _ = _fit(spec_of(name, x.ndim, rules), x.shape, mesh, stacked=False)
    whole = P(*(None if axis == "fsdp" else axis for axis in split))
    return _gathered(whole, split, x)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _gathered(whole: P, split: P, x: jax.Array) -> jax.Array:
    return jax.lax.with_sharding_constraint(x, whole)


def _gathered_forward(whole: P, split: P, x: jax.Array) -> tuple[jax.Array, None]:
    return _gathered(whole, split, x), None


def _gathered_backward(whole: P, split: P, _: None, g: jax.Array) -> tuple[jax.Array]:
    return (jax.lax.with_sharding_constraint(g, split),)


_gathered.defvjp(_gathered_forward, _gathered_backward)  # pyright: ignore[reportFunctionMemberAccess]


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of a batch: the first axis over "data" and "fsdp"."""
    return NamedSharding(mesh, P(batch_axes(mesh)))


def shard_batch(batch: Batch, mesh: Mesh) -> dict[str, jax.Array]:
    """The global batch from each process's own rows [B/processes ...], sharded over "data" and "fsdp"."""
    sharding = batch_sharding(mesh)
    return {k: jax.make_array_from_process_local_data(sharding, np.asarray(v)) for k, v in batch.items()}


def shard_full_batch(batch: Batch, mesh: Mesh) -> dict[str, jax.Array]:
    """A batch that every process has in full, as in evaluation: sharded if it divides, else replicated.

    Columns of strings are left out.
    """
    arrays = {k: np.asarray(v) for k, v in batch.items()}
    return {k: _shard(v, mesh) for k, v in arrays.items() if v.dtype.kind not in "OUS"}


def _shard(array: np.ndarray, mesh: Mesh) -> jax.Array:
    array = array.astype(jax.dtypes.canonicalize_dtype(array.dtype))
    split = array.ndim > 0 and array.shape[0] % batch_parts(mesh) == 0
    sharding = batch_sharding(mesh) if split else NamedSharding(mesh, P())
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def device_put(tree: Any, placed: Any) -> Any:
    """Put host arrays, equal on all processes, on the devices with the shardings `placed`."""
    # jax.device_put with several processes would also check that the arrays are equal, with one broadcast per array.

    def put_leaf(value: Any, sharding: NamedSharding) -> jax.Array:
        array = np.asarray(value)
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return jax.tree.map(put_leaf, tree, placed)


def gather(tree: Mapping[str, Any]) -> Any:
    """Every leaf as a full NumPy array on every process."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(tree, tiled=True)
