"""Read untrusted JSON files, and check that a value has the declared type."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from typeguard import CollectionCheckStrategy, TypeCheckError, check_type

from data_pipelines.records import DataError

LARGEST = 2**30  # bytes of a file


def read_json(path: Path, form: Any, what: str) -> Any:
    """The value of a JSON file. Raises DataError naming the file for one that cannot be read, or of another form.

    form: the type of the value, such as dict[str, int]. what: what it should be, in words.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file; expected {what}")
    if path.stat().st_size > LARGEST:
        raise DataError(f"{path}: {path.stat().st_size:,} bytes; expected {what}")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON ({error}); expected {what}") from error
    return checked(value, form, f"{path}: expected {what}")


def checked(value: Any, form: Any, where: str) -> Any:
    """Return a value. Raises DataError, beginning with `where`, if the value does not have the type."""
    try:
        return check_type(value, form, collection_check_strategy=CollectionCheckStrategy.ALL_ITEMS)
    except TypeCheckError as error:
        line = " ".join(str(error).split())
        raise DataError(f"{where}: {line[:200]}") from None
