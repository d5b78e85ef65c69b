"""Ahead-of-time compilation of a training step for TPU topologies: memory, communication and roofline time.

libtpu (extra `tpu`) describes a TPU slice without any TPU, and nothing is run. The roofline times are lower bounds: they
follow from the peak numbers of the chip, for each resource separately. A real step takes longer."""

from __future__ import annotations

import importlib.util
import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from rich.console import Group
from rich.table import Table

from fundax.params import path_string
from fundax.recipe import Recipe
from fundax.roofline.collectives import BETWEEN, Collective, collectives
from fundax.runtime import flops
from fundax.runtime import mesh as meshes
from fundax.runtime.chips import CHIPS, GIB, Chip, chip_named, chip_of
from fundax.train import loop
from fundax.train.state import abstract_state
from fundax.tuning import count_trained
from fundax.types import UserError

# libtpu must not search for a TPU or for another process that uses one. The last two variables have no effect on the
# topology, but without them libtpu prints warnings.
QUIET = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
}


@dataclass(frozen=True)
class CompiledStep:
    """Result of compiling one step. Bytes are per device; FLOPs and images are totals over all devices."""

    topology: str
    chip: Chip | None
    mesh: dict[str, int]
    batch: int
    images: int  # per step; two for a patient with two eyes
    parameters: int
    trained: int  # of them
    state: int  # bytes: parameters, optimizer state and extra state
    arguments: int  # bytes: the state and the batch
    temporaries: int | None  # bytes: activations, gradients; None if compilation failed or was not run
    communication: tuple[Collective, ...]
    model_flops: int  # of the step, without rematerialisation
    done_flops: int  # including rematerialisation
    moved: int  # bytes that matrix products read and write, total over all devices
    seconds_to_compile: float
    ideal: int = 0  # bytes that leave a device at best, without those of the model axis, see ideal_bytes
    refused: str = ""  # the compiler's message, if the program does not fit

    @property
    def devices(self) -> int:
        return math.prod(self.mesh.values())

    @property
    def sent(self) -> int:
        """Bytes that a device sends over the links of its slice."""
        return sum(c.moved for c in self.communication if c.kind != BETWEEN)

    @property
    def fits(self) -> bool | None:
        """None if the chip is unknown, or if nothing was compiled and the arguments alone fit."""
        if self.refused:
            return False
        if self.chip is None:
            return None
        if self.temporaries is None:
            return False if self.arguments > self.chip.memory else None
        return self.arguments + self.temporaries <= self.chip.memory

    def roofline(self) -> dict[str, float]:
        """Seconds by resource; empty if the chip is unknown or the program does not fit.

        The memory time assumes that matrix products read operands and write results once, and that the state is read and
        written once. The interconnect time is that of the bytes that a device sends, over all its links in one direction;
        it is known only after compilation.
        """
        if self.chip is None or self.fits is False:
            return {}
        seconds = {
            "compute": self.done_flops / self.devices / self.chip.flops,
            "memory": (self.moved / self.devices + 2 * self.state) / self.chip.bandwidth,
        }
        if self.temporaries is not None:
            seconds["interconnect"] = self.sent / (self.chip.links / 2)
        return seconds

    def mfu(self, seconds: float) -> float:
        """Model FLOPs utilisation of a step that takes this many seconds."""
        assert self.chip is not None
        return self.model_flops / self.devices / self.chip.flops / seconds


def compile_step(recipe: Recipe, topology: str | None = None, compiling: bool = True) -> CompiledStep:
    """Compile the training step of a recipe for a TPU slice or for the local devices.

    Args:
        recipe: the recipe to compile.
        topology: for example "v5p:4x8x8", or "v5e:4x4*2" for two slices; None uses the local devices.
        compiling: False takes seconds instead of minutes, but gives only the memory of the state and the FLOPs.

    Raises UserError if libtpu is missing, the topology is unknown, or the batch or the mesh does not fit the devices.
    """
    mesh, chip = target(recipe, topology)
    loop.check_batch(recipe, mesh)
    state = abstract_state(recipe, mesh)
    spec = recipe.objective.batch_spec(recipe.batch)
    rows = meshes.batch_sharding(mesh)
    batch = {key: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=rows) for key, s in spec.items()}
    memory, wires, refused, seconds = None, (), "", 0.0
    with jax.set_mesh(mesh):
        step = loop.train_step(recipe)
        if compiling:
            memory, wires, refused, seconds = _compile(step, state, batch, mesh)
        rng, now = jax.eval_shape(lambda: (jax.random.key(0), jnp.int32(0)))
        model = flops.training_flops(recipe.objective.loss, state.params, state.extra, batch, rng, now)
        done, moved = (count(step, state, batch) for count in (flops.forward_flops, flops.product_bytes))
    stored = _bytes(state)
    return CompiledStep(
        topology=topology or f"{mesh.devices.flat[0].device_kind}, as here",
        chip=chip,
        mesh=dict(mesh.shape),
        batch=recipe.batch,
        images=sum(s.shape[0] for s in spec.values() if len(s.shape) > 3),
        parameters=sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        trained=count_trained(recipe.tune, state.params),
        state=stored,
        arguments=memory.argument_size_in_bytes if memory else stored + _bytes(batch),
        temporaries=memory.temp_size_in_bytes if memory else None,
        communication=wires,
        model_flops=min(model, done) if recipe.tune.rows is not None else model,
        done_flops=done,
        moved=moved,
        seconds_to_compile=seconds,
        ideal=ideal_bytes(state.params, mesh),
        refused=refused,
    )


def _compile(step: Any, state: Any, batch: Any, mesh: Mesh) -> tuple[Any, tuple[Collective, ...], str, float]:
    """Compile and return memory, communication, the error if the program does not fit, and the seconds it took."""
    lowered = step.lower(state, batch)
    start = time.perf_counter()
    try:
        compiled = lowered.compile()
        memory, wires, refused = compiled.memory_analysis(), tuple(collectives(compiled.as_text(), mesh)), ""
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        memory, wires, refused = None, (), _first(error)
    return memory, wires, refused, time.perf_counter() - start


def _bytes(tree: Any) -> int:
    """Bytes of abstract arrays on one device."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
        for x in jax.tree.leaves(tree)
        if not jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    )


def ideal_bytes(params: Any, mesh: Mesh) -> int:
    """Bytes that must leave a device in a step: split weights are gathered for the forward and the backward pass and their
    gradients scattered; the gradients of the others, and those of each part over "data", are summed. All in fp32.
    """
    data, fsdp = mesh.shape["data"], mesh.shape["fsdp"]
    total = 0.0
    for leaf in jax.tree.leaves(params):
        local = math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        split = any("fsdp" in (axis if isinstance(axis, tuple) else (axis,)) for axis in leaf.sharding.spec if axis)
        copies = data if split else data * fsdp
        total += 2 * (copies - 1) / copies * local + (3 * (fsdp - 1) * local if split else 0)
    return int(total)


def _first(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if "Ran out of memory" in line or "xceeded" in line), lines[0])[:300]


def target(recipe: Recipe, topology: str | None) -> tuple[Mesh, Chip | None]:
    """The mesh of a described slice or of the local devices, and its chip if that is in the table."""
    if topology is None:
        mesh = meshes.make_mesh(recipe.mesh)
        return mesh, chip_of(mesh.devices.flat[0].device_kind)
    chip = chip_named(topology.split(":")[0])
    devices = _devices(topology)
    sizes = meshes.mesh_sizes(recipe.mesh, len(devices))
    return meshes.arranged(sizes, devices[: math.prod(sizes)]), chip


def _devices(topology: str) -> Sequence[Any]:
    if CHIPS[topology.split(":")[0]].name.startswith("NVIDIA"):
        raise UserError(
            f"topology {topology!r}: only TPU slices can be described without hardware; run the command on the GPUs"
        )
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(f"{topology}: compiling for a TPU needs libtpu: pip install -e '.[tpu]'")
    from jax.experimental import topologies

    name, _, slices = topology.partition("*")
    options = {"num_slices": int(slices)} if slices.isdigit() else {}
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=name, **options).devices
    except Exception as error:  # jaxlib raises several types
        expected = "examples are v5e:4x4, v5p:2x4x4 and v6e:16x16"
        raise UserError(f"topology {topology!r}: {_first(error)}; {expected}") from None


# --- tables -------------------------------------------------------------------------------------------------------


def tables(compiled: CompiledStep) -> Group:
    """A compiled step as two tables, with a line about its limits."""
    mesh = ", ".join(f"{name} {size}" for name, size in compiled.mesh.items())
    title = f"{compiled.topology}: {compiled.devices} devices ({mesh}), batch {compiled.batch:,}"
    top = Table("per device", "", title=title, min_width=min(len(title), 100))
    for name, value in (*_memory(compiled), *_speed(compiled)):
        top.add_row(name, value)
    parts: list[Any] = [top]
    if compiled.communication:
        wires = Table("collective", "axes", "devices", "count", "MiB sent per device", title="communication per step")
        for c in compiled.communication[:12]:
            over = " x ".join(c.axes) or "other"
            wires.add_row(c.kind, over, str(c.group), str(c.count), f"{c.moved / 2**20:,.1f}")
        parts.append(wires)
        parts.append(_sent_and_ideal(compiled))
    return Group(*parts, _caveat(compiled))


def _memory(compiled: CompiledStep) -> list[tuple[str, str]]:
    rows = [
        ("parameters, all devices", f"{compiled.parameters / 1e6:,.1f} M{_share(compiled)}"),
        ("parameters and optimizer state", f"{compiled.state / GIB:.2f} GiB"),
        ("arguments (state and batch)", f"{compiled.arguments / GIB:.2f} GiB"),
    ]
    if compiled.temporaries is not None:
        total, share = compiled.arguments + compiled.temporaries, ""
        if compiled.chip:
            share = f" of {compiled.chip.memory / GIB:.1f} GiB ({100 * total / compiled.chip.memory:.0f} %)"
        rows += [("temporaries", f"{compiled.temporaries / GIB:.2f} GiB"), ("memory", f"{total / GIB:.2f} GiB{share}")]
    unknown = "unknown: nothing was compiled" if compiled.chip else "unknown"
    verdict = {True: "fits", False: "does not fit", None: unknown}[compiled.fits]
    return [*rows, ("verdict", f"{verdict}: {compiled.refused}" if compiled.refused else verdict)]


def _share(compiled: CompiledStep) -> str:
    share = compiled.trained / compiled.parameters
    return f", of which {compiled.trained / 1e6:,.2f} M train ({100 * share:.2f} %)" if share < 1 else ""


def _speed(compiled: CompiledStep) -> list[tuple[str, str]]:
    rows = [
        ("model FLOPs per step, all devices", f"{compiled.model_flops:.3e}"),
        ("including rematerialisation", f"{compiled.done_flops:.3e}"),
    ]
    if compiled.seconds_to_compile:
        rows.append(("compiled in", f"{compiled.seconds_to_compile:.0f} s"))
    seconds = compiled.roofline()
    if not seconds:
        return rows
    rows += [(f"roofline, {name}", _ms(value)) for name, value in seconds.items()]
    for words, step in (("all overlapped", max(seconds.values())), ("nothing overlapped", sum(seconds.values()))):
        images = compiled.images / step / compiled.devices
        rows.append(
            (f"step, {words}", f"{_ms(step)}, MFU {100 * compiled.mfu(step):.0f} %, {images:,.0f} images/s/chip")
        )
    return rows


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:,.1f} ms" if seconds < 1 else f"{1000 * seconds:,.0f} ms"


def _sent_and_ideal(compiled: CompiledStep) -> str:
    sent = compiled.sent
    line = f"Sent per device: {sent / 2**20:,.1f} MiB; at best {compiled.ideal / 2**20:,.1f} MiB"
    if compiled.mesh["model"] > 1:
        return f"{line}, and the activations that the model axis sums in every layer."
    if sent > 2 * compiled.ideal:
        return f"{line}. WARNING: more than twice the best; activations may be sent in place of weights."
    return f"{line} for this mesh, with weights and gradients in float32."


def _caveat(compiled: CompiledStep) -> str:
    if compiled.chip is None:
        return (
            f"{compiled.topology} is not in the table of chips (fundax/runtime/chips.py), so its memory limit and speed are "
            "unknown. Memory is XLA's count for this device. For a TPU slice pass --topology, for example v5e:4x4."
        )
    between = ""
    if "*" in compiled.topology:
        crossing = sum(c.moved for c in compiled.communication if c.kind == BETWEEN)
        between = f" {crossing / 2**20:,.1f} MiB per device go to other slices, over a slower network that the times leave out."
    return f"Nothing was run: the times follow from the peak numbers of {compiled.chip.name} ({compiled.chip.source}).{between}"


def shardings_table(recipe: Recipe, mesh: Mesh) -> Table:
    """Table of the leaves of the state: shape, sharding and memory on one device."""
    table = Table("path", "shape", "split", "MiB per device", title=f"state on a mesh of {dict(mesh.shape)}")
    for path, leaf in jax.tree_util.tree_leaves_with_path(abstract_state(recipe, mesh)):
        sharding: NamedSharding = leaf.sharding
        split = ", ".join(str(axis or "-") for axis in sharding.spec) if any(sharding.spec) else "whole"
        table.add_row(path_string(path), str(tuple(leaf.shape)), split, f"{_bytes(leaf) / 2**20:.2f}")
    return table
