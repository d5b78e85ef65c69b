"""Parse command lines: the given arguments, and relative paths made absolute."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import data_pipelines.files.storage as storage
from fundax.runtime import remote
from fundax.types import UserError

# Arguments whose values are paths, or name a path before options ("labels.csv,images=photos").
PATHS = frozenset(
    {"appearance", "cache", "data", "data_dir", "elite", "image_dir", "init", "init_text", "rfmid_root", "split"}
    | {"modality_file", "texts", "tokenizer", "val"}
)


def given(argv: Sequence[str]) -> dict[str, list[str]]:
    """The arguments of a command line by name ("image_dir") with their values; the last one counts."""
    return {name: values for name, _, values in _groups(argv) if name}


def without(argv: Sequence[str], names: Iterable[str]) -> list[str]:
    """The command line without these arguments."""
    left_out = set(names)
    return [word for name, words, _ in _groups(argv) if name not in left_out for word in words]


def absolute(argv: Sequence[str]) -> list[str]:
    """Make existing paths of a command line absolute."""
    found: list[str] = []
    for name, words, _ in _groups(argv):
        if name in PATHS:
            flag, equals, value = words[0].partition("=")
            words = [flag + equals + absolute_path(value), *map(absolute_path, words[1:])]
        found += words
    return found


def absolute_values(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Make the paths among the values of arguments absolute."""
    found = dict(arguments)
    for name in PATHS & found.keys():
        value = found[name]
        if isinstance(value, str):
            found[name] = absolute_path(value)
        elif isinstance(value, list | tuple):
            found[name] = [absolute_path(word) if isinstance(word, str) else word for word in value]
    return found


def absolute_path(word: str) -> str:
    """The word with its path, and the path of an option images=, made absolute where they exist."""
    head, *options = word.split(",")
    kind = "array_record:" if head.startswith("array_record:") else ""
    options = [f"images={_absolute(o.removeprefix('images='))}" if o.startswith("images=") else o for o in options]
    return ",".join([kind + _absolute(head.removeprefix(kind)), *options])


def fetched_value(name: str, value: Any, with_images: bool = True) -> Any:
    """The value of an argument with local copies of what it names at addresses such as gs://bucket/labels.csv.

    Args:
        name: the name of the argument.
        value: its value; tuples and lists are converted item by item.
        with_images: whether to copy the images of a table as well, from the table's folder.

    Raises:
        UserError: a folder that the run would write to.
        DataError: an address at which nothing is stored.
    """
    if isinstance(value, tuple | list):
        return type(value)(fetched_value(name, one, with_images) for one in value)
    if (
        not isinstance(value, str) or "://" not in value or name == "data_dir"
    ):  # a data set is copied from its folder when it is opened
        return value
    if name == "cache":
        raise UserError(f"--cache {value}: expected a local folder")
    if name in ("data", "elite", "val"):
        return storage.fetched_word(value, tables_alone=not with_images)
    return str(remote.fetched(value))


def missing_paths(argv: Sequence[str]) -> list[str]:
    """The paths of a command line that do not exist."""
    words = [value.split(",")[0] for name, values in given(argv).items() if name in PATHS for value in values]
    return [word for word in words if word and ":" not in word and word != "synthetic" and not Path(word).exists()]


def _absolute(path: str) -> str:
    return os.path.abspath(path) if path and Path(path).exists() else path


def _groups(argv: Sequence[str]) -> Iterator[tuple[str, list[str], list[str]]]:
    """(name, words, values) of each argument with its values; the name of what stands before the first one is ""."""
    words: list[str] = []
    for word in [*argv, "--"]:
        if word.startswith("--") and words:
            flag, equals, value = words[0].partition("=")
            named = flag.startswith("--")
            name = flag.removeprefix("--").replace("-", "_").removeprefix("no_") if named else ""
            yield name, words, ([value] if equals else []) + words[1:] if named else []
            words = []
        words.append(word)
