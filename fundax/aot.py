"""The real train step compiled for machines that are not there: does it fit, what does it say over the wires, how fast can it be.

A TPU slice is described by libtpu (extra `tpu`) and needs no TPU. Nothing is run. The times are a roofline: what the chip's
peak numbers allow at best, each resource by itself; a real step takes longer.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding
from rich.console import Group
from rich.table import Table

from fundax import flops, train
from fundax import mesh as meshes
from fundax.chips import GIB, Chip, chip_named, chip_of
from fundax.collectives import Collective, collectives
from fundax.errors import UserError
from fundax.recipe import Recipe


@dataclass(frozen=True)
class Report:
    """What compiling says of one step. Bytes and FLOPs are per device unless they say otherwise."""

    topology: str
    chip: Chip | None
    mesh: dict[str, int]
    batch: int
    arguments: int  # bytes: parameters, optimizer state, the batch
    temporaries: int  # bytes: activations, gradients
    communication: tuple[Collective, ...]
    model_flops: int  # of the whole step on all devices, without what remat repeats
    done_flops: int  # the same with it

    @property
    def devices(self) -> int:
        size = 1
        for n in self.mesh.values():
            size *= n
        return size

    @property
    def memory(self) -> int:
        """Bytes a device needs at once."""
        return self.arguments + self.temporaries

    @property
    def fits(self) -> bool | None:
        """None where the chip is unknown."""
        return None if self.chip is None else self.memory <= self.chip.memory

    def seconds(self) -> dict[str, float]:
        """The roofline by resource. Memory: state in and out, temporaries written and read, once each. Links: one direction."""
        if self.chip is None:
            return {}
        moved = sum(c.moved for c in self.communication)
        return {
            "compute": self.done_flops / self.devices / self.chip.flops,
            "memory": 2 * self.memory / self.chip.bandwidth,
            "interconnect": moved / (self.chip.links / 2),
        }

    def mfu(self) -> float | None:
        """Model FLOPs of a step over what the chips could do in the time of the slowest resource."""
        if self.chip is None:
            return None
        return self.model_flops / self.devices / self.chip.flops / max(self.seconds().values())


def compile_step(recipe: Recipe, topology: str | None = None) -> Report:
    """Compile `recipe`'s train step for a slice such as "v5p:4x8x8" (or "v5e:4x4*2" for two slices), or for the devices
    here. Raises UserError without libtpu, for an unknown topology, and where the compiler says that memory is exhausted."""
    mesh, chip = _mesh(recipe, topology)
    state = train.layout(recipe, mesh)
    batch = {
        key: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=meshes.batch_sharding(mesh))
        for key, s in recipe.objective.spec(recipe.batch).items()
    }
    with jax.set_mesh(mesh):
        step = train.train_step(recipe)
        lowered = step.lower(state, batch)
        try:
            compiled = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            raise UserError(f"{topology or 'this machine'}: does not fit: {_first(error)}") from None
        rng = jax.ShapeDtypeStruct((), jax.random.key(0).dtype)
        now = jax.ShapeDtypeStruct((), jnp.int32)
        model = flops.training_flops(recipe.objective.loss, state.params, state.extra, batch, rng, now)
        done = flops.forward_flops(step, state, batch)
    memory = compiled.memory_analysis()
    return Report(
        topology or mesh.devices.flat[0].device_kind,
        chip,
        dict(mesh.shape),
        recipe.batch,
        memory.argument_size_in_bytes,
        memory.temp_size_in_bytes,
        tuple(collectives(compiled.as_text(), mesh)),
        model,
        done,
    )


def _first(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if "Ran out of memory" in line or "xceeded" in line), lines[0])[:300]


def _mesh(recipe: Recipe, topology: str | None) -> tuple[Mesh, Chip | None]:
    if topology is None:
        mesh = meshes.make_mesh(recipe.mesh)
        return mesh, chip_of(mesh.devices.flat[0].device_kind)
    chip = chip_named(topology.split(":")[0])
    devices = _devices(topology)
    sizes = meshes.mesh_sizes(recipe.mesh, len(devices))
    from jax.experimental import mesh_utils

    grid = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    return Mesh(grid, meshes.AXES, axis_types=(AxisType.Auto,) * len(meshes.AXES)), chip


def _devices(topology: str) -> list[Any]:
    # libtpu must not look for a machine, nor for another process that holds one
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    from jax.experimental import topologies

    name, _, slices = topology.partition("*")
    options = {"num_slices": int(slices)} if slices else {}
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=name, **options).devices
    except Exception as error:
        try:
            import libtpu  # noqa: F401
        except ImportError:
            raise UserError(f"{topology}: compiling for a TPU needs libtpu: pip install 'fundax[tpu]'") from None
        raise UserError(
            f"topology {topology!r}: {_first(error)}; expected such as v5e:4x4, v5p:2x4x4, v6e:16x16"
        ) from None


def tables(report: Report) -> Group:
    """The report for people."""
    top = Table(
        "what",
        "value",
        title=f"{report.topology}, {report.devices} devices, mesh {report.mesh}, batch {report.batch:,}",
    )
    room = f" of {report.chip.memory / GIB:.1f}" if report.chip else ""
    top.add_row("arguments per device", f"{report.arguments / GIB:.2f} GiB")
    top.add_row("temporaries per device", f"{report.temporaries / GIB:.2f} GiB")
    top.add_row("memory per device", f"{report.memory / GIB:.2f}{room} GiB")
    verdict = {True: "fits", False: "does not fit", None: "unknown: this chip is not in the table"}[report.fits]
    top.add_row("verdict", verdict)
    top.add_row("model FLOPs per step", f"{report.model_flops:.3e}")
    top.add_row("with what remat repeats", f"{report.done_flops:.3e}")
    seconds = report.seconds()
    for name, value in seconds.items():
        top.add_row(f"roofline, {name}", f"{1000 * value:.1f} ms")
    if seconds:
        slowest = max(seconds.values())
        top.add_row("images/s/chip, at most", f"{report.batch / slowest / report.devices:,.0f}")
        top.add_row("MFU, at most", f"{100 * (report.mfu() or 0):.0f} %")
    wires = Table("collective", "over", "devices", "times", "MiB leaving a device", title="communication of a step")
    for c in report.communication[:12]:
        wires.add_row(c.kind, " x ".join(c.axes) or "other", str(c.group), str(c.count), f"{c.moved / 2**20:,.1f}")
    return Group(top, wires)


def shardings_table(recipe: Recipe, mesh: Mesh) -> Table:
    """Every leaf of the state: its shape, how it is split, its share on one device."""
    table = Table("path", "shape", "split", "MiB per device")
    for path, leaf in jax.tree_util.tree_leaves_with_path(train.layout(recipe, mesh)):
        sharding: NamedSharding = leaf.sharding
        part = sharding.shard_shape(leaf.shape)
        size = leaf.dtype.itemsize
        for n in part:
            size *= n
        table.add_row(meshes.path_string(path), str(tuple(leaf.shape)), str(sharding.spec), f"{size / 2**20:.2f}")
    return table
