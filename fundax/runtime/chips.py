"""Peak numbers of accelerators, by the names that JAX and topology strings use, with their sources."""

from __future__ import annotations

from dataclasses import dataclass

from fundax.types import UserError

GIB = 2**30


@dataclass(frozen=True)
class Chip:
    """Peak numbers of one chip, as stated by its manufacturer."""

    name: str
    flops: float  # bf16 FLOP/s, dense
    memory: float  # bytes
    bandwidth: float  # bytes/s of that memory
    links: float  # bytes/s to other chips, sum of both directions
    source: str


_CLOUD = "cloud.google.com/tpu/docs, read in November 2026"
_NVIDIA = "NVIDIA data sheet of the SXM part, read in November 2026"

CHIPS = {
    "v4": Chip("TPU v4", 275e12, 32 * GIB, 1228e9, 600e9, f"{_CLOUD}: v4"),
    "v5e": Chip("TPU v5e", 197e12, 16 * GIB, 819e9, 400e9, f"{_CLOUD}: v5e"),
    "v5p": Chip("TPU v5p", 459e12, 95 * GIB, 2765e9, 1200e9, f"{_CLOUD}: v5p"),
    "v6e": Chip("TPU v6e", 918e12, 32 * GIB, 1638e9, 800e9, f"{_CLOUD}: v6e"),
    "A100": Chip("NVIDIA A100 80GB", 312e12, 80e9, 2039e9, 600e9, _NVIDIA),
    "H100": Chip("NVIDIA H100", 989e12, 80e9, 3350e9, 900e9, _NVIDIA),
    "H200": Chip("NVIDIA H200", 989e12, 141e9, 4800e9, 900e9, _NVIDIA),
}

_KINDS = {
    "TPU v4": "v4",
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v5": "v5p",
    "TPU v6 lite": "v6e",
    "TPU v6e": "v6e",
}


def chip_named(name: str) -> Chip:
    """The chip with this name, such as "v5p" of "v5p:2x4x4". Raises UserError if it is not in the table."""
    if name not in CHIPS:
        raise UserError(f"chip {name!r} is not in the table; expected one of {', '.join(CHIPS)}")
    return CHIPS[name]


def chip_of(device_kind: str) -> Chip | None:
    """The chip of a device kind that JAX reports, or None if it is not in the table."""
    if device_kind in _KINDS:
        return CHIPS[_KINDS[device_kind]]
    return next((chip for name, chip in CHIPS.items() if name in device_kind.replace("-", " ").split()), None)
