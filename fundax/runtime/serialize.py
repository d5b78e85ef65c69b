"""Serialize objectives as JSON, so that a run can be opened without its config file.

Null, booleans, numbers, strings, lists and dicts are written as they are; anything else is an object with one "@" key:
    {"@": "encoders.ViT", "patch": 16, ...}   a frozen dataclass or Linen module, with its fields
    {"@function": "encoders.quick_gelu"}      a function
    {"@tuple": [...]}   {"@dtype": "bfloat16"}   {"@float": "inf"}

A name is a room of fundax and a public name of that room, so files can move within a room. Runs made before the rooms
existed hold module paths ("fundax.encoders.vit:ViT"); BEFORE_ROOMS translates them.

The file may come from an untrusted source: only public names of the three ROOMS are resolved, and only dataclasses are called.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import math
import re
import types
import typing
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from typeguard import TypeCheckError

from fundax.runtime.shapes import has_type
from fundax.types import UserError

ROOMS = ("encoders", "losses", "objectives")
NAME = re.compile(rf"({'|'.join(ROOMS)})\.([A-Za-z][A-Za-z0-9_]*)")
BEFORE_ROOMS = {
    "fundax.encoders.autoencoder:ImageDecoder": "encoders.ImageDecoder",
    "fundax.encoders.autoencoder:ImageEncoder": "encoders.ImageEncoder",
    "fundax.encoders.bert:BERT": "encoders.BERT",
    "fundax.encoders.clip_text:TextTransformer": "encoders.TextTransformer",
    "fundax.encoders.decoder_heads:ForecastHead": "encoders.ForecastHead",
    "fundax.encoders.decoder_heads:MLPHead": "encoders.MLPHead",
    "fundax.encoders.heads:IBOTHead": "encoders.IBOTHead",
    "fundax.encoders.layers:gelu_exact": "encoders.gelu_exact",
    "fundax.encoders.layers:gelu_tanh": "encoders.gelu_tanh",
    "fundax.encoders.layers:init_clip_text": "encoders.init_clip_text",
    "fundax.encoders.layers:init_clip_vision": "encoders.init_clip_vision",
    "fundax.encoders.layers:quick_gelu": "encoders.quick_gelu",
    "fundax.encoders.mae:MaskedDecoder": "encoders.MaskedDecoder",
    "fundax.encoders.report_decoder:ReportDecoder": "encoders.ReportDecoder",
    "fundax.encoders.resnet:ResNet": "encoders.ResNet",
    "fundax.encoders.unet:UNet": "encoders.UNet",
    "fundax.encoders.unetr:Linear": "encoders.Linear",
    "fundax.encoders.unetr:UNETR": "encoders.UNETR",
    "fundax.encoders.vit:ViT": "encoders.ViT",
    "fundax.encoders.vit:init_dino": "encoders.init_dino",
    "fundax.label_aware:Similarity": "losses.Similarity",
    "fundax.losses:matching_targets": "losses.matching_targets",
    "fundax.losses:sigmoid_contrastive": "losses.sigmoid_contrastive",
    "fundax.losses:softmax_contrastive": "losses.softmax_contrastive",
    "fundax.objectives.classify:Classify": "objectives.Classify",
    "fundax.objectives.clip:CLIP": "objectives.CLIP",
    "fundax.objectives.clip_adapter:Adapted": "objectives.Adapted",
    "fundax.objectives.clip_adapter:ClipAdapter": "objectives.ClipAdapter",
    "fundax.objectives.clip_adapter:TipAdapter": "objectives.TipAdapter",
    "fundax.objectives.diffusion:Diffusion": "objectives.Diffusion",
    "fundax.objectives.encoder:Encoder": "encoders.Encoder",
    "fundax.objectives.flair:FLAIR": "objectives.FLAIR",
    "fundax.objectives.forecast:Forecast": "objectives.Forecast",
    "fundax.objectives.ibot:IBOT": "objectives.IBOT",
    "fundax.objectives.ibot:Temperature": "objectives.Temperature",
    "fundax.objectives.keepfit:KeepFIT": "objectives.KeepFIT",
    "fundax.objectives.landmark:Landmark": "objectives.Landmark",
    "fundax.objectives.masked_text:MaskedText": "objectives.MaskedText",
    "fundax.objectives.multi_modality:MultiModality": "objectives.MultiModality",
    "fundax.objectives.regress:Regress": "objectives.Regress",
    "fundax.objectives.report:Report": "objectives.Report",
    "fundax.objectives.ret_clip:Reconstruction": "objectives.Reconstruction",
    "fundax.objectives.ret_clip:RetCLIP": "objectives.RetCLIP",
    "fundax.objectives.segment:Segment": "objectives.Segment",
    "fundax.objectives.vector_quantize:VectorQuantize": "objectives.VectorQuantize",
    "fundax.reference:Attention": "objectives.Attention",
    "fundax.reference:Reference": "objectives.Reference",
    "fundax.tower:Tower": "encoders.Backbone",
}
LARGEST = 2**31  # of the whole numbers in an objective, such as numbers of words and of steps
# Fields of older versions: (class, old name) -> (new name, the new value of each old one; {} if values are unchanged).
RENAMED_FIELDS: dict[tuple[str, str], tuple[str, dict[bool, str]]] = {
    ("RetCLIP", "soft_targets"): ("repeats", {False: "negatives", True: "share"}),
    ("Classify", "peer_softmax"): ("second_softmax", {}),
    ("TipAdapter", "peer_training"): ("flair_training", {}),
    ("Report", "told"): ("finding_threshold", {}),
}
_LINEN_FIELDS = ("parent", "name")  # set by Linen, no part of what a module is


def to_json(value: Any) -> Any:
    """Convert an objective, or any value in one, to JSON.

    A field whose value is its default and has no JSON form (an initializer of Flax, say) is left out.

    Raises:
        UserError: a value that has no JSON form, with the path of fields that leads to it.
    """
    return _write(value, "objective")


def from_json(value: Any) -> Any:
    """Read a value written by `to_json`.

    Raises:
        UserError: anything outside the form above: an unknown name, class or field.
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
    half, room = (*thing.__module__.split("."), "")[:2]
    name = f"{room}.{thing.__qualname__}"
    if half != "fundax" or not NAME.fullmatch(name) or _public(name) is not thing:
        full = f"{thing.__module__}.{thing.__qualname__}"
        raise UserError(f"{where}: {full} has no JSON form; expected a public name of fundax.{', fundax.'.join(ROOMS)}")
    return name


def _public(name: str) -> Any:
    """The thing of that name in its room's table of contents, or None."""
    room, _, attribute = name.partition(".")
    thing = getattr(importlib.import_module(f"fundax.{room}"), attribute, None)
    return thing if getattr(thing, "__module__", "").startswith(f"fundax.{room}.") else None


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
    for (owner, old), (new, values) in RENAMED_FIELDS.items():
        if cls.__name__ == owner and old in fields:
            before = fields.pop(old)
            fields[new] = values[bool(before)] if values else before
    if unknown := sorted(set(fields) - known):
        raise UserError(f"{where}: {value['@']} has no field {', '.join(unknown)}; it has {', '.join(sorted(known))}")
    _check_types(cls, fields, where)
    try:
        return cls(**fields)
    except (TypeError, ValueError, LookupError, ArithmeticError) as error:
        raise UserError(f"{where}: {value['@']} cannot be built: {error}") from error


def _check_types(cls: type, fields: Mapping[str, Any], where: str) -> None:
    """Raise UserError for a field whose value is not of the type that its class declares."""
    hints = _hints(cls)
    for name, item in fields.items():
        if isinstance(item, int) and not -LARGEST <= item <= LARGEST:
            raise UserError(f"{where}.{name}: {item} is not a size of any model")
        try:
            has_type(item, hints.get(name, Any))
        except TypeCheckError as error:
            raise UserError(f"{where}.{name}: {' '.join(str(error).split())[:200]}") from error


@functools.cache
def _hints(cls: type) -> Mapping[str, Any]:
    """The types of a class's fields, where they can be known; names that are imported for type checkers alone cannot."""
    try:
        return typing.get_type_hints(cls)
    except NameError:
        return {}


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
    except (TypeError, AttributeError) as error:
        raise UserError(f"{where}: {name!r} is not a dtype") from error


def _read_float(text: Any, where: str) -> float:
    if text not in ("inf", "-inf", "nan"):
        raise UserError(f"{where}: '@float' expects inf, -inf or nan, got {text!r}")
    return float(text)


_READERS = {"@function": _read_function, "@tuple": _read_tuple, "@dtype": _read_dtype, "@float": _read_float}


def _import(name: Any, where: str) -> Any:
    """The class or function of that public name."""
    name = BEFORE_ROOMS.get(name, name) if isinstance(name, str) else name
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise UserError(
            f"{where}: {name!r} is not accepted; expected '<room>.<name>' with a room of {', '.join(ROOMS)}"
        )
    thing = _public(name)
    if thing is None:
        raise UserError(f"{where}: this version of fundax has no {name}")
    return thing
