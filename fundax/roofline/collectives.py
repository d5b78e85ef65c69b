"""Communication of a compiled program, parsed from its HLO text: kind, bytes, mesh axes and count of the collectives."""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from dataclasses import dataclass, replace

import numpy as np
from jax.sharding import Mesh

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all")
BETWEEN = "send to other slices"
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2}


_BYTES |= {"s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8}


_SHAPE = re.compile(r"([a-z]+\d*)\[([\d,]*)\]")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_CALLED = re.compile(r"(?:body|calls|to_apply|condition)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_CONDITION = re.compile(r"condition=%?([\w.\-]+)")
_TRIPS = re.compile(r'known_trip_count"?:\{"n":"(\d+)"')


@dataclass(frozen=True)
class Collective:
    """All collectives of one kind over one set of mesh axes."""

    kind: str
    axes: tuple[str, ...]  # () if the groups match no set of mesh axes
    count: int  # per step
    moved: int  # bytes that one device sends in all of them, with the ring algorithm
    group: int  # devices in a group


def collectives(hlo: str, mesh: Mesh) -> list[Collective]:
    """The collectives of a compiled module, summed by kind and axes, the largest first.

    Collectives in loops are multiplied by the loop's trip count if it is known. On several TPU slices, the program is that
    of one slice, and what it sends to the others is of the kind BETWEEN."""
    bodies, slices = _computations(hlo), len({getattr(d, "slice_index", 0) for d in mesh.devices.flat})
    if slices > 1:  # the data axis goes over the slices first
        mesh = Mesh(mesh.devices[: mesh.devices.shape[0] // slices], mesh.axis_names)
    runs = _runs(bodies)
    by_groups = _axes_of_groups(mesh)
    sums: dict[tuple, Collective] = {}
    for name, lines in bodies.items():
        for line in lines:
            item = _sent(line, slices) or _read(line, by_groups, mesh)
            if item is None or not runs[name]:
                continue
            item = replace(item, count=runs[name], moved=item.moved * runs[name])
            key = item.kind, item.axes, item.group
            if key in sums:
                item = replace(item, count=item.count + sums[key].count, moved=item.moved + sums[key].moved)
            sums[key] = item
    return sorted(sums.values(), key=lambda c: -c.moved)


def _computations(hlo: str) -> dict[str, list[str]]:
    bodies: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in hlo.splitlines():
        head = _HEAD.match(line)
        if head:
            name = "ENTRY" if head[1] else head[2]
            lines = bodies.setdefault(name, [])
        else:
            lines.append(line.strip())
    return bodies


def _runs(bodies: dict[str, list[str]]) -> dict[str, int]:
    """Number of times each computation runs in one call of the entry."""
    calls: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for name, lines in bodies.items():
        for line in lines:
            times = _trips(line, bodies) if " while(" in line else 1
            branches = [b.strip().lstrip("%") for b in ",".join(_BRANCHES.findall(line)).split(",") if b]
            calls[name] += [(called, times) for called in _CALLED.findall(line) + branches]
    runs: dict[str, int] = defaultdict(int)

    def visit(name: str, times: int) -> None:
        runs[name] += times
        for called, each in calls[name]:
            visit(called, times * each)

    visit("ENTRY", 1)
    return runs


def _trips(line: str, bodies: dict[str, list[str]]) -> int:
    """Trip count of a while loop, as XLA states it or from the only integer in its condition; 1 if unknown."""
    stated = _TRIPS.search(line)
    if stated:
        return int(stated[1])
    condition = _CONDITION.search(line)
    text = "\n".join(bodies.get(condition[1], [])) if condition else ""
    numbers = re.findall(r"= s32\[\]\S* constant\((\d+)\)", text)
    return int(numbers[0]) if len(numbers) == 1 else 1


def _sent(line: str, slices: int) -> Collective | None:
    """The collective of a send to other slices; its size is that of the first operand. None for other lines."""
    if " send(" not in line or "megascale" not in line:
        return None
    shape = _SHAPE.search(line)
    return Collective(BETWEEN, ("data",), 1, _size(*shape.groups()) if shape else 0, slices)


def _read(line: str, by_groups: dict, mesh: Mesh) -> Collective | None:
    match = re.match(rf"(?:ROOT )?%?[\w.\-]+ = (.*?) ({'|'.join(KINDS)})(-start)?\(", line)
    if not match:
        return None
    shapes = [_size(*shape) for shape in _SHAPE.findall(match[1])]
    kind, started = match[2], bool(match[3])
    # An asynchronous start returns operands and results. The result of a gather is the largest array, and the result of
    # a reduction has the size of its operand.
    result = max(shapes) if started or kind == "all-gather" else sum(shapes)
    if kind == "collective-permute":
        axes, size = _permuted(line, mesh)
        return Collective(kind, axes, 1, result, size)
    groups = _groups(line, mesh.size)
    size = groups.shape[1]
    share = (size - 1) / size
    moved = {"all-reduce": 2 * share * result, "reduce-scatter": (size - 1) * result}.get(kind, share * result)
    return Collective(kind, by_groups.get(_key(groups), ()), 1, int(moved), size)


def _size(dtype: str, dims: str) -> int:
    return _BYTES.get(dtype, 0) * int(np.prod([int(d) for d in dims.split(",") if d] or [1]))


def _groups(line: str, devices: int) -> np.ndarray:
    """Parse replica_groups into rows of device positions.

    XLA writes {{0,1},{2,3}}, [2,2]<=[2,2]T(1,0) or mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'b'}."""
    listed = re.search(r"replica_groups=\{(\{[\d,{}]*\})\}", line)
    if listed:
        return np.array([[int(x) for x in group.split(",")] for group in re.findall(r"\{([\d,]+)\}", listed[1])])
    iota = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", line)
    if iota:
        return _iota(iota[2], iota[3]).reshape(_numbers(iota[1]))
    named = re.search(
        r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? \{([^}]*)\}", line
    )
    if not named:
        return np.arange(devices)[None]
    sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", named[1])}
    ids = (_iota(named[2], named[3]) if named[2] else np.arange(np.prod(list(sizes.values())))).reshape(
        tuple(sizes.values())
    )
    axes = [list(sizes).index(name) for name in re.findall(r"'(\w+)'", named[4])]
    members = int(np.prod([ids.shape[a] for a in axes]))
    return np.moveaxis(ids, axes, range(-len(axes), 0)).reshape(-1, members)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(x) for x in text.split(","))


def _iota(shape: str, order: str | None) -> np.ndarray:
    ids = np.arange(np.prod(_numbers(shape))).reshape(_numbers(shape))
    return (ids.transpose(_numbers(order)) if order else ids).reshape(-1)


def _key(groups: np.ndarray) -> frozenset:
    return frozenset(frozenset(int(i) for i in group) for group in groups)


def _axes_of_groups(mesh: Mesh) -> dict[frozenset, tuple[str, ...]]:
    """The groups of device positions that vary along each set of mesh axes; smaller sets take precedence."""
    positions = np.arange(mesh.size).reshape(mesh.devices.shape)
    names = [name for name in mesh.axis_names if mesh.shape[name] > 1]
    groups: dict[frozenset, tuple[str, ...]] = {}
    for count in range(1, len(names) + 1):
        for axes in itertools.combinations(names, count):
            last = [mesh.axis_names.index(a) for a in axes]
            moved = np.moveaxis(positions, last, range(-len(last), 0))
            groups.setdefault(_key(moved.reshape(-1, int(np.prod([mesh.shape[a] for a in axes])))), axes)
    return groups


def _permuted(line: str, mesh: Mesh) -> tuple[tuple[str, ...], int]:
    """The axes along which sources and targets of a permutation differ."""
    text = re.search(r"source_target_pairs=\{(\{[\d,{}]*\})\}", line)
    pairs = [tuple(int(x) for x in p.split(",")) for p in re.findall(r"\{(\d+,\d+)\}", text[1] if text else "")]
    if not pairs:
        return (), mesh.size
    shape = mesh.devices.shape
    sources, targets = (np.array(np.unravel_index([p[i] for p in pairs], shape)) for i in (0, 1))
    differ = (sources != targets).any(axis=1)
    axes = tuple(name for name, d in zip(mesh.axis_names, differ, strict=True) if d)
    return axes, int(np.prod([mesh.shape[a] for a in axes] or [1]))
