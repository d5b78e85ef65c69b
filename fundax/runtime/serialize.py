"""An objective as JSON and back: what a run keeps, so that its checkpoint opens without its config file.

Null, booleans, numbers, strings, lists and dicts stay themselves; the rest is an object with one "@" key:
    {"@": "fundax.encoders.vit:ViT", "patch": 16, ...}     a frozen dataclass or Linen module, with its fields
    {"@function": "fundax.encoders.layers:quick_gelu"}     a function, by name
    {"@tuple": [...]}   {"@dtype": "bfloat16"}   {"@float": "inf"}

The file may come from a stranger: only dataclasses and functions of modules under `fundax.` are imported,
and only dataclasses are called."""

from __future__ import annotations

import dataclasses
import importlib
import math
import re
import types
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from fundax.types import UserError

NAME = re.compile(r"(fundax(?:\.[a-z][a-z0-9_]*)+):([A-Za-z][A-Za-z0-9_]*)")


_LINEN_FIELDS = ("parent", "name")  # set by Linen, no part of what a module is


def to_json(value: Any) -> Any:
    """The JSON form of an objective or of any value one holds.

    A field whose value is its default and has no JSON form (an initializer of Flax, say) is left out.

    Raises:
        UserError: a value that has no JSON form, with the path of fields that leads to it.
    """
    return _write(value, "objective")


def from_json(value: Any) -> Any:
    """The value that `to_json` wrote: equal to the one it was given.

    Raises:
        UserError: anything outside the form above: a name outside `fundax.`, an unknown class or field.
    """
    try:
        return _read(value, "objective")
    except RecursionError as error:
        raise UserError("objective: nested too deeply to be one") from error


def _write(value: Any, where: str) -> Any:
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, np.bool_ | np.integer | np.floating):
        return _write(value.item(), where)
    if isinstance(value, float):
        return value if math.isfinite(value) else {"@float": repr(value)}
    if isinstance(value, tuple):
        return {"@tuple": [_write(item, f"{where}[{i}]") for i, item in enumerate(value)]}
    if isinstance(value, list):
        return [_write(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, Mapping) and all(isinstance(key, str) and key[:1] != "@" for key in value):
        return {key: _write(item, f"{where}.{key}") for key, item in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {"@": _name(type(value), where), **_write_fields(value, where)}
    if isinstance(value, types.FunctionType):
        return {"@function": _name(value, where)}
    return {"@dtype": _dtype_name(value, where)}


def _write_fields(value: Any, where: str) -> dict[str, Any]:
    fields = {}
    for field in dataclasses.fields(value):
        if not field.init or field.name in _LINEN_FIELDS:
            continue
        item = getattr(value, field.name)
        try:
            fields[field.name] = _write(item, f"{where}.{field.name}")
        except UserError:
            if item is not field.default:
                raise
    return fields


def _name(thing: Any, where: str) -> str:
    name = f"{thing.__module__}:{thing.__qualname__}"
    if (
        not NAME.fullmatch(name)
        or getattr(importlib.import_module(thing.__module__), thing.__name__, None) is not thing
    ):
        raise UserError(f"{where}: {name} cannot be written; expected a class or function of a module under fundax")
    return name


def _dtype_name(value: Any, where: str) -> str:
    # np.dtype(an array) would quietly give the array's dtype
    if isinstance(value, np.dtype) or (isinstance(value, type) and hasattr(value, "dtype")):
        return jnp.dtype(value).name
    raise UserError(f"{where}: a {type(value).__name__} has no JSON form")


def _read(value: Any, where: str) -> Any:
    if isinstance(value, list):
        return [_read(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if not isinstance(value, dict):
        return value
    tags = [key for key in value if key.startswith("@")]
    if not tags:
        return {key: _read(item, f"{where}.{key}") for key, item in value.items()}
    if tags == ["@"]:
        return _read_dataclass(value, where)
    if len(value) > 1 or tags[0] not in _READERS:
        raise UserError(f"{where}: expected one of '@', {', '.join(map(repr, _READERS))}, got {sorted(value)}")
    return _READERS[tags[0]](value[tags[0]], where)


def _read_dataclass(value: dict[str, Any], where: str) -> Any:
    cls = _import(value["@"], where)
    if not (isinstance(cls, type) and dataclasses.is_dataclass(cls)):
        raise UserError(f"{where}: {value['@']} is not a dataclass")
    known = {field.name for field in dataclasses.fields(cls) if field.init} - set(_LINEN_FIELDS)
    fields = {key: _read(item, f"{where}.{key}") for key, item in value.items() if key != "@"}
    if unknown := sorted(set(fields) - known):
        raise UserError(f"{where}: {value['@']} has no field {', '.join(unknown)}; it has {', '.join(sorted(known))}")
    try:
        return cls(**fields)
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: {value['@']} cannot be built: {error}") from error


def _read_function(name: Any, where: str) -> Any:
    function = _import(name, where)
    if not isinstance(function, types.FunctionType):
        raise UserError(f"{where}: {name} is not a function")
    return function


def _read_tuple(items: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(items, list):
        raise UserError(f"{where}: '@tuple' expects a list")
    return tuple(_read(item, f"{where}[{i}]") for i, item in enumerate(items))


def _read_dtype(name: Any, where: str) -> Any:
    try:
        return getattr(jnp, jnp.dtype(str(name)).name)  # as configs write it: jnp.bfloat16
    except TypeError as error:
        raise UserError(f"{where}: {name!r} is not a dtype") from error


def _read_float(text: Any, where: str) -> float:
    if text not in ("inf", "-inf", "nan"):
        raise UserError(f"{where}: '@float' expects inf, -inf or nan, got {text!r}")
    return float(text)


_READERS = {"@function": _read_function, "@tuple": _read_tuple, "@dtype": _read_dtype, "@float": _read_float}


def _import(name: Any, where: str) -> Any:
    """The class or function of that name, if it is defined in that very module under `fundax.`."""
    match = NAME.fullmatch(name) if isinstance(name, str) else None
    if not match:
        raise UserError(f"{where}: {name!r} refused; only 'fundax.<module>:<name>' is ever imported")
    try:
        module = importlib.import_module(match[1])
    except ImportError as error:
        raise UserError(f"{where}: this version of fundax has no module {match[1]}") from error
    thing = getattr(module, match[2], None)
    if getattr(thing, "__module__", None) != match[1]:
        raise UserError(f"{where}: {match[1]} defines no {match[2]}")
    return thing
