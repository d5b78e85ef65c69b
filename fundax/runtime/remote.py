"""Runs on remote storage: a run at gs://, s3:// or another address is written through a local mirror of its folder.

The mirror holds everything but the checkpoints of gs://, which Orbax writes there itself, from all processes. Process 0
uploads the other files before every save and at the end, so what is stored always belongs together. Other addresses keep
their checkpoints in the mirror, too, and serve one process."""

from __future__ import annotations

import contextlib
import io
import json
import os
import platform
import re
import secrets
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
from etils import epath

import data_pipelines.files.storage as storage
from fundax.types import UserError

_LINK = ".fundax_mirror.json"  # in the mirror's folder: its address, and what was uploaded
_OWNER = "owner.json"  # at the address: the training that started last
_COMMITTED = "commit_success.txt"  # of a step: written by Orbax, and uploaded, after its other files
_STEP = re.compile(r"(?:^|/)checkpoints/(\d+)/(.*)")


@contextmanager
def mirrored(workdir: str | Path) -> Iterator[Path]:
    """A context with a local mirror of the run at an address, which is uploaded on exit. A local folder is used directly.

    Raises DataError if the storage cannot be read or written.
    """
    if not storage.is_address(workdir):
        yield Path(workdir)
        return
    address = storage.normal(workdir)
    with tempfile.TemporaryDirectory(prefix="fundax-run-", ignore_cleanup_errors=True) as place:
        folder = Path(place) / address.rpartition("/")[2]
        folder.mkdir()
        system, root = storage.opened(address)
        names = _kept(set(storage.files(address)), opt=True, steps=not _direct(address))
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            system.get_file(f"{root}/{name}", str(folder / name))
        here = {name: [status.st_size, status.st_mtime_ns] for name in names if (status := (folder / name).stat())}
        _write(folder, {"address": address, "files": here})
        try:
            yield folder
        finally:
            if not _link(folder).get("lost"):
                push(folder)


def push(workdir: str | Path) -> None:
    """Upload the changes in a mirror, on process 0. Does nothing for a local folder.

    Raises UserError if another training of the run has started since: this one ends and leaves it undisturbed.
    """
    link = _link(workdir)
    if not link or jax.process_index():
        return
    if link.get("token") and (owner := _owner(link["address"])).get("token") != link["token"]:
        _write(workdir, {**link, "lost": True})
        who = f"process {owner.get('pid')} on {owner.get('host')}"
        raise UserError(f"{link['address']}: another training of this run has started ({who}), so this one ends")
    files = storage.upload(Path(workdir), link["address"], link["files"], _commits)
    _write(workdir, {**link, "files": files})


def claim(workdir: str | Path) -> None:
    """Make this process the owner of the run at a mirror's address. An earlier training ends at its next save."""
    link = _link(workdir)
    owner = {"host": platform.node(), "pid": os.getpid(), "token": secrets.token_hex(8)}
    system, root = storage.opened(link["address"])
    system.makedirs(root, exist_ok=True)
    system.pipe_file(f"{root}/{_OWNER}", json.dumps(owner).encode())
    _write(workdir, {**link, "token": owner["token"]})


def shown(workdir: str | Path) -> str:
    """The name of a run's folder for messages: the address of a mirror."""
    return _link(workdir).get("address", str(workdir))


def is_mirror(workdir: str | Path) -> bool:
    """Whether a folder is the local mirror of a run on remote storage."""
    return bool(_link(workdir))


def checkpoints_of(workdir: str | Path) -> Any:
    """The folder of a run's checkpoints, a pathlib path, or an epath.Path on gs://.

    Raises UserError for several processes and an address other than gs://.
    """
    address = storage.normal(workdir) if storage.is_address(workdir) else _link(workdir).get("address", "")
    if not address:
        return Path(workdir).absolute() / "checkpoints"
    if _direct(address):
        return epath.Path(address) / "checkpoints"
    if jax.distributed.is_initialized() and jax.process_count() > 1:
        raise UserError(f"{address}: several processes save to gs:// or to a folder that all of them reach")
    return Path(workdir).absolute() / "checkpoints"


def mirrors_checkpoints(workdir: str | Path) -> bool:
    """Whether a run's checkpoints are uploaded with its mirror, and not by Orbax."""
    link = _link(workdir)
    return bool(link) and not _direct(link["address"])


def is_complete(step: Any) -> bool:
    """Whether the folder of a step holds all of it; on gs:// a step is visible while it is written."""
    return not str(step).startswith("gs://") or (step / _COMMITTED).exists()


def fetched(path: str | Path) -> Path:
    """Copy what a command reads from an address to a local folder; the optimizer state of a run is left out."""
    return storage.fetched(path, lambda names: _kept(names, opt=False, steps=True))


@contextmanager
def localized(verb: str, argv: Sequence[str]) -> Iterator[list[str]]:
    """The words of a verb with local copies of what it reads at addresses. What it writes is uploaded afterwards.

    Raises DataError if something is at the address to write to, unless --overwrite is given.
    """
    outputs = _outputs(verb, argv)
    overwrite = "--overwrite" in argv
    with tempfile.TemporaryDirectory(prefix="fundax-out-", ignore_cleanup_errors=True) as place:
        here: list[str] = []
        written: dict[str, Path] = {}
        for k, word in enumerate(argv):
            flag, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
            if k in outputs and storage.is_address(value):
                address = storage.normal(value)
                if not overwrite and storage.files(address):
                    raise storage.DataError(f"{address} exists; choose another address, or remove it")
                written[address] = Path(place) / str(len(written)) / address.rpartition("/")[2]
                written[address].parent.mkdir()
                value = str(written[address])
            elif "://" in value:
                value = storage.fetched_word(value) if verb.startswith("data") or "," in value else str(fetched(value))
            here.append(f"{flag}{equals}{value}")
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            yield here
        text = printed.getvalue()
        for address, path in written.items():
            before = {name: [] for name in storage.files(address)} if overwrite else {}
            storage.upload(path, address, before)
            text = text.replace(str(path), address)
        print(text, end="")


def _outputs(verb: str, argv: Sequence[str]) -> set[int]:
    """The positions of the words that name what a verb writes."""
    names = ("--out", "--workdir") + (("--data-dir",) if list(argv[:1]) == ["build"] else ())
    found = {k for k, word in enumerate(argv) if word.partition("=")[0] in names and "=" in word}
    found |= {k + 1 for k, word in enumerate(argv) if word in names}
    if verb == "export":  # export RUN OUT
        plain = [
            k
            for k, word in enumerate(argv)
            if not word.startswith("--")
            and (k == 0 or not argv[k - 1].startswith("--") or argv[k - 1] == "--overwrite")
        ]
        found |= set(plain[1:2])
    return found


def _direct(address: str) -> bool:
    return address.startswith("gs://")


def _kept(names: set[str], opt: bool, steps: bool) -> set[str]:
    """The files without those of incomplete steps, and without all steps or the state of the optimizer."""
    parts = {name: found.groups() for name in names if (found := _STEP.search(name))}
    complete = {step for step, rest in parts.values() if rest == _COMMITTED}

    def keep(name: str) -> bool:
        if name == _OWNER:
            return False
        if name not in parts:
            return "/checkpoints/" not in f"/{name}" or steps
        step, rest = parts[name]
        return steps and step in complete and (opt or not rest.startswith("opt/"))

    return {name for name in names if keep(name)}


def _commits(name: str) -> bool:
    found = _STEP.search(name)
    return found is not None and found[2] == _COMMITTED


def _owner(address: str) -> dict[str, Any]:
    system, root = storage.opened(address)
    system.invalidate_cache()
    try:
        return json.loads(system.cat_file(f"{root}/{_OWNER}"))
    except (OSError, ValueError):
        return {}


def _link(workdir: str | Path) -> dict[str, Any]:
    path = Path(workdir).absolute().parent / _LINK
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _write(workdir: str | Path, link: dict[str, Any]) -> None:
    (Path(workdir).absolute().parent / _LINK).write_text(json.dumps(link), encoding="utf-8")
