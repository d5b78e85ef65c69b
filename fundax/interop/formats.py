"""All file formats of other programs; `launch.py export --to`, help texts and docs are made from this table.

A new format is one file of this folder with a `Format` at its top: nothing lists it."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from pathlib import Path

from fundax.interop.checkpoint import Checkpoint, Format
from fundax.interop.weights import State
from fundax.types import UserError


@functools.cache
def all_formats() -> tuple[Format, ...]:
    """The formats that the files of this folder define, in the order in which they are tried."""
    names = sorted(found.name for found in pkgutil.iter_modules([str(Path(__file__).parent)]))
    modules = [importlib.import_module(f"fundax.interop.{name}") for name in names]
    found = {value: None for module in modules for value in vars(module).values() if isinstance(value, Format)}
    return tuple(sorted(found, key=lambda one: one.order))


def format_of(state: State, source: str) -> Format:
    """The format with these keys. Raises UserError naming a few of the keys if there is none."""
    for found in all_formats():
        if found.detect(state):
            return found
    titles = " or ".join(dict.fromkeys(found.title for found in all_formats()))
    raise UserError(f"{source}: the keys are not those of {titles}; it has {', '.join(sorted(state)[:5])}, ...")


def export_names() -> tuple[str, ...]:
    """The choices of `export --to`."""
    return tuple(dict.fromkeys(found.name for found in all_formats() if found.write is not None))


def check_name(name: str) -> None:
    """Raise UserError unless `name` is one of `export_names()`."""
    if name not in export_names():
        raise UserError(f"cannot export to '{name}'; expected {', '.join(export_names())}")


def writer(name: str, checkpoint: Checkpoint) -> Format:
    """The format of that name for a model. Raises UserError, listing the possible names, if it cannot hold the model."""
    fitting = [found for found in all_formats() if found.write and isinstance(checkpoint.objective, found.holds)]
    named = [found for found in fitting if found.name == name]
    if named:  # several classes of one program: the one for this architecture, or the first, which says what it lacks
        return next((found for found in named if found.fits(checkpoint.objective)), named[0])
    kind = type(checkpoint.objective).__name__
    names = ", ".join(dict.fromkeys(found.name for found in fitting)) or "none of the formats"
    title = next(found.title for found in all_formats() if found.name == name)
    raise UserError(f"{title} cannot hold a {kind}: cannot export to '{name}'; expected {names}")
