"""Search for the mesh and rematerialisation that a training step runs fastest with, and the largest batch that then fits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from rich.table import Table

from fundax.recipe import Recipe
from fundax.roofline.compile import CompiledStep, compile_step, target
from fundax.runtime.chips import GIB
from fundax.types import UserError

REMAT = ("none", "dots", "full")
MODEL = (1, 2, 4)  # sizes of the model axis to try
ROOM = 0.95  # share of a chip's memory that a proposal may fill


@dataclass(frozen=True)
class Proposal:
    """A compiled step with the arguments that lead to it, and the largest batch that its memory leaves room for."""

    mesh: str
    remat: str
    step: CompiledStep
    largest: int

    @property
    def seconds(self) -> float:
        """Seconds of a step in which nothing overlaps; infinite if it does not fit."""
        return sum(self.step.roofline().values()) or float("inf")


def search(recipe_of: Callable[[str, str], Recipe], topology: str, count: int) -> list[Proposal]:
    """The `count` fastest meshes and rematerialisations of a step on a slice, the fastest first.

    All are counted (memory of the state, FLOPs, the ideal bytes of the mesh); then the most promising are compiled until
    `count` of them fit.

    Args:
        recipe_of: the recipe for --mesh and --remat; it raises UserError for a choice that the config does not have.
        topology: such as "v5e:4x4".

    Raises UserError if the topology or its chip is unknown.
    """
    found: list[Proposal] = []
    for _, mesh, remat in sorted(_counted(recipe_of, topology)):
        recipe = recipe_of(mesh, remat)
        step = compile_step(recipe, topology)
        if step.fits:
            found.append(Proposal(mesh, remat, step, _largest(step, recipe.accumulate)))
        if len(found) == count:
            break
    return sorted(found, key=lambda one: one.seconds)


def meshes_of(devices: int) -> Iterator[str]:
    """Every data,fsdp,model with power-of-two factors for this number of devices; the model axis is at most 4."""
    for model in MODEL:
        fsdp = 1
        while devices % (fsdp * model) == 0:
            yield f"{devices // (fsdp * model)},{fsdp},{model}"
            fsdp *= 2


def _counted(recipe_of: Callable[[str, str], Recipe], topology: str) -> Iterator[tuple[float, str, str]]:
    """(seconds at best, mesh, remat) of every division whose state fits into memory."""
    mesh, chip = target(recipe_of("-1,1", REMAT[0]), topology)
    if chip is None:
        raise UserError(f"{topology}: its chip is unknown, so nothing can be ranked")
    for division in meshes_of(mesh.size):
        for remat in REMAT:
            try:
                step = compile_step(recipe_of(division, remat), topology, compiling=False)
            except UserError:  # the batch does not divide, or the config has no such choice
                continue
            if step.fits is not False:
                yield sum(step.roofline().values()) + step.ideal / (chip.links / 2), division, remat


def _largest(step: CompiledStep, accumulate: int) -> int:
    """The largest batch that fits, if temporaries grow with it; a multiple of what the mesh divides."""
    assert step.chip is not None and step.temporaries is not None
    room = ROOM * step.chip.memory - step.arguments
    parts = step.mesh["data"] * step.mesh["fsdp"] * accumulate
    return max(int(step.batch * room / max(step.temporaries, 1)) // parts, 1) * parts


def search_table(proposals: list[Proposal], topology: str) -> Table:
    """The proposals as a table."""
    title = f"{topology}: the fastest divisions that fit"
    columns = (
        "--mesh",
        "--remat",
        "memory, GiB",
        "step, overlapped",
        "step, nothing overlapped",
        "MFU",
        "largest --batch",
    )
    table = Table(*columns, title=title)
    for one in proposals:
        parts = one.step.roofline()
        low, high = max(parts.values()), sum(parts.values())
        memory = (one.step.arguments + (one.step.temporaries or 0)) / GIB
        share = f"{100 * one.step.mfu(high):.0f}-{100 * one.step.mfu(low):.0f} %"
        table.add_row(
            one.mesh,
            one.remat,
            f"{memory:.2f}",
            f"{1000 * low:,.1f} ms",
            f"{1000 * high:,.1f} ms",
            share,
            f"{one.largest:,}",
        )
    return table
