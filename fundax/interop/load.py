"""Former names, until the configs use `interop.warm_start` and `interop.load` (fundax/interop/read.py)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fundax.interop.initial import warm_start
from fundax.interop.read import is_run, load, read_objective
from fundax.types import Params

__all__ = ["init_from", "is_run", "load", "parts_from", "read_objective", "text_from"]


def init_from(path: str | Path, objective: Any) -> Callable[[Params], Params]:
    """Former name of `warm_start`."""
    return warm_start(path, objective).init_from[0]


def text_from(path: str | Path, tower: Any) -> Callable[[Params], Params]:
    """Former name of `warm_start(path, objective, ("text",))`."""
    from fundax.objectives.masked_text import MaskedText

    return warm_start(path, MaskedText(tower, tower.context), ("text",)).init_from[0]


def parts_from(run: str | Path, names: Sequence[str]) -> Callable[[Params], Params]:
    """Former name of `warm_start(path, objective, parts)`."""
    return warm_start(run, None, names).init_from[0]
