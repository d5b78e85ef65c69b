"""Remote storage: local copies of files and folders at gs://, s3:// and any other address that fsspec knows.

Files that are read are copied to a cache, and copied again only after they have changed. Files that are written are uploaded
when they are complete. So all other code uses local paths. The extra `remote` installs the file systems of gs:// and s3://."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from data_pipelines.records import DataError

Stamp = list[str | int]  # size and version of a stored file
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+")  # pathlib turns gs:// into gs:/
_VERSIONS = ("etag", "ETag", "generation", "mtime", "LastModified", "updated", "created")
_TABLES = (".csv", ".tsv", ".txt", ".xlsx", ".parquet", ".jsonl", ".gz")


def is_address(path: str | os.PathLike[str]) -> bool:
    """Whether a path is an address such as gs://bucket/run instead of a local path."""
    return bool(_ADDRESS.match(str(path)))


def fetched(path: str | os.PathLike[str], wanted: Callable[[set[str]], set[str]] = lambda names: names) -> Path:
    """Copy the file or folder at an address to the cache and return the copy; a local path is returned unchanged.

    The cache is in XDG_CACHE_HOME or ~/.cache. A file is copied again if its size or version has changed.

    Args:
        path: an address or a local path.
        wanted: selects the files to copy from the names of all files below the folder.

    Raises DataError if nothing is stored there, if it cannot be read, or if the package for its file system is missing.
    """
    if not is_address(path):
        return Path(path)
    address = normal(path)
    system, root = opened(address)
    there = files(address)
    if not there:
        raise DataError(f"{address}: nothing is stored there")
    protocol = address.partition("://")[0]
    target = _cache() / protocol / root.strip("/")
    names = wanted(set(there))
    with _record(address) as known:
        stale = [n for n in names if known.get(n) != there[n] or not (target / n if n else target).is_file()]
        with _errors(address):
            for name in stale:
                copy = target / name if name else target
                copy.parent.mkdir(parents=True, exist_ok=True)
                system.get_file(_join(root, name), f"{copy}.part")
                os.replace(f"{copy}.part", copy)
        for name in known.keys() - names:
            (target / name).unlink(missing_ok=True)
        known.clear()
        known.update({name: there[name] for name in names})
    return target


def fetched_word(word: str, tables_alone: bool = False) -> str:
    """Replace the addresses in a --data argument, such as gs://b/labels.csv,images=gs://b/photos, by local copies.

    tables_alone: the images of a table are in another folder, so that the folder of the table need not be copied.
    """
    head, *options = word.split(",")
    kind = "array_record:" if head.startswith("array_record:") else ""
    head, own = head.removeprefix(kind), any(option.startswith("images=") for option in options)
    table = is_address(head) and head.lower().endswith(_TABLES)
    if table and not own and not tables_alone:
        head = str(fetched(head.rpartition("/")[0]) / head.rpartition("/")[2])
    options = [f"images={fetched(o.removeprefix('images='))}" if is_address(o[7:]) else o for o in options]
    return ",".join([kind + (str(fetched(head)) if is_address(head) else head), *options])


def upload(
    folder: Path, address: str, known: Mapping[str, Stamp] | None = None, last: Callable[[str], bool] = bool
) -> dict[str, Stamp]:
    """Upload the new and changed files of a folder, or one file; returns the size and time of each.

    Args:
        folder: the folder or file. Names that start with a dot or contain ".orbax-checkpoint-tmp" are not uploaded.
        address: destination.
        known: the result of an earlier upload; files that have been deleted since then are removed from the address.
        last: whether a file is uploaded after the others, because its presence marks a complete upload.

    Raises DataError if the address cannot be written.
    """
    system, root = opened(address)
    here = {name: _stat(folder / name if name else folder) for name in _local(folder)}
    known = known or {}
    changed = sorted((n for n in here if here[n] != known.get(n)), key=lambda n: (last(n), n))
    with _errors(address):
        for name in changed:
            system.makedirs(_join(root, name).rpartition("/")[0], exist_ok=True)
            system.put_file(str(folder / name if name else folder), _join(root, name))
        for name in known.keys() - here.keys():
            with contextlib.suppress(FileNotFoundError):
                system.rm_file(_join(root, name))
    return here


def files(address: str) -> dict[str, Stamp]:
    """Size and version of every file at an address, by its path relative to the address ("" for a single file)."""
    system, root = opened(address)
    with _errors(address):
        system.invalidate_cache()
        try:
            found = system.find(root, detail=True)
        except FileNotFoundError:
            return {}
    return {name[len(root) :].strip("/"): _stamp(info) for name, info in found.items() if info["type"] == "file"}


def opened(address: str) -> tuple[Any, str]:
    """The fsspec file system of an address, and the path in it. Raises DataError if its package is missing."""
    import fsspec

    try:
        with _errors(address):
            return fsspec.core.url_to_fs(address)
    except ImportError as error:
        scheme = address.partition("://")[0]
        raise DataError(f"{address}: {scheme}:// needs a package: pip install -e '.[remote]' ({error})") from None


def normal(path: str | os.PathLike[str]) -> str:
    """An address as text; also repairs the address in a pathlib path, which has one slash instead of two."""
    return re.sub(r"^([A-Za-z][A-Za-z0-9+.-]+):/(?!/)", r"\1://", str(path)).rstrip("/")


@contextlib.contextmanager
def _errors(address: str) -> Iterator[None]:
    try:
        yield
    except (ImportError, FileNotFoundError):
        raise
    except Exception as error:  # every file system has its own
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(f"{address}: {type(error).__name__}: {reason[:300]}") from error


@contextlib.contextmanager
def _record(address: str) -> Iterator[dict[str, Stamp]]:
    """The list of cached files of an address, which is saved on exit and locked against other processes of the machine."""
    import fcntl

    path = _cache() / "records" / f"{hashlib.sha256(address.encode()).hexdigest()[:20]}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        text = file.read()
        known: dict[str, Stamp] = json.loads(text) if text.endswith("}") else {}
        yield known
        file.truncate(0)
        file.write(json.dumps(known))


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "fundax" / "files"


def _local(folder: Path) -> list[str]:
    """The files below a folder that are uploaded; [""] for a single file."""
    if folder.is_file():
        return [""]
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    left_out = (".orbax-checkpoint-tmp", "/.")
    return [str(path) for path in found if not any(word in f"/{path}" for word in left_out)]


def _stat(path: Path) -> Stamp:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def _stamp(info: Mapping[str, Any]) -> Stamp:
    version = next((info[name] for name in _VERSIONS if info.get(name) is not None), "")
    return [int(info.get("size") or 0), str(version)]


def _join(root: str, name: str) -> str:
    return f"{root.rstrip('/')}/{name}" if name else root
