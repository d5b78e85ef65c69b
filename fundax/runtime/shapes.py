"""Declared types of the JSON files of a run, and checks that a value has its type.

A key that a form does not name is another version's, and passes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypedDict, get_args, get_origin, get_type_hints, is_typeddict

from typeguard import CollectionCheckStrategy, ForwardRefPolicy, TypeCheckError, check_type

from fundax.types import UserError

DEEPEST = 64  # levels of lists and objects within one another
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")  # as JSON writes half of a character beyond U+FFFF


class Source(TypedDict, total=False):
    """A source of the training data of a run."""

    name: str
    word: str
    rows: int
    digest: str


class Data(TypedDict, total=False):
    """The training data of a run."""

    sources: list[Source]
    classes: list[str] | None
    split: dict[str, Any]
    part: str


class Entry(TypedDict, total=False):
    """An entry of the history of a run: one command."""

    time: str
    step: int
    argv: list[str]
    changed: dict[str, Any]


class Config(TypedDict, total=False):
    """config.json."""

    config: str
    argv: list[str]
    args: dict[str, Any]
    objective: dict[str, Any] | None
    steps: int
    batch: int
    seed: int
    data: Data
    versions: dict[str, str | None]
    history: list[Entry]


class Preprocessing(TypedDict, total=False):
    """preprocessing.json."""

    image_size: int
    resize: str
    interpolation: str
    resize_to: int | None
    round_down: bool
    crop_field: bool
    mean: list[float] | list[list[float]]
    std: list[float] | list[list[float]]
    classes: list[str]
    names: list[str]
    findings: list[str]


class Index(TypedDict):
    """The index of weights in several files."""

    weight_map: dict[str, Any]


class Record(TypedDict, total=False):
    """fundax_export.json."""

    fundax: str
    source: dict[str, Any]
    objective: dict[str, Any]
    preprocessing: Preprocessing
    left_out: dict[str, Any]
    tensors_sha256: dict[str, str]


class Task(TypedDict):
    """A task of a task set."""

    objective: dict[str, Any]
    preprocessing: Preprocessing
    about: dict[str, Any]


class TaskSet(TypedDict):
    """model.json of a task set (fundax/interop/task_set.py)."""

    version: int
    sha256: dict[str, str]
    tasks: dict[str, Task]


def check_json(value: Any, form: Any, where: str, text: str = "") -> None:
    """Raise UserError, naming `where` and the key, if a JSON value does not have the declared type.

    text: the JSON text of the value, which is checked for lone surrogates and very deep nesting.
    """
    if _depth(value) > DEEPEST:
        raise UserError(f"{where}: nested more than {DEEPEST} levels deep")
    if text and _SURROGATE.search(text) and _has_surrogate(value):
        raise UserError(f"{where}: holds half of a character (a lone surrogate such as \\ud800)")
    try:
        has_type(_known(value, form), form)
    except TypeCheckError as error:
        raise UserError(f"{where}: {' '.join(str(error).split())[:200]}") from None


def has_type(value: Any, form: Any) -> None:
    """Raise typeguard.TypeCheckError, with the position, if a value does not have the type."""
    check_type(
        value,
        form,
        forward_ref_policy=ForwardRefPolicy.IGNORE,
        collection_check_strategy=CollectionCheckStrategy.ALL_ITEMS,
    )


def _known(value: Any, form: Any) -> Any:
    """The value with only those keys that its form names."""
    if is_typeddict(form) and isinstance(value, Mapping):
        hints = get_type_hints(form)
        return {key: _known(one, hints[key]) for key, one in value.items() if key in hints}
    if get_origin(form) is list and isinstance(value, list):
        return [_known(one, get_args(form)[0]) for one in value]
    if get_origin(form) is dict and isinstance(value, Mapping):
        return {key: _known(one, get_args(form)[1]) for key, one in value.items()}
    return value


def _depth(value: Any) -> int:
    deepest, waiting = 0, [(value, 1)]
    while waiting:
        one, depth = waiting.pop()
        deepest = max(deepest, depth)
        inner = one.values() if isinstance(one, dict) else one if isinstance(one, list) else ()
        waiting.extend((item, depth + 1) for item in inner if isinstance(item, dict | list))
    return deepest


def _has_surrogate(value: Any) -> bool:
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, str) and any("\ud800" <= letter <= "\udfff" for letter in one):
            return True
        waiting += [*one, *one.values()] if isinstance(one, dict) else one if isinstance(one, list) else []
    return False
