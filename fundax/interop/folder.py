"""Folders for other programs: atomic writing, model card and provenance record, shared by all formats."""

from __future__ import annotations

import contextlib
import hashlib
import html
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import fundax
from fundax.interop.checkpoint import Checkpoint
from fundax.interop.weights import FILE_NAMES, State, digests, folder_of, write_safetensors
from fundax.runtime import serialize
from fundax.runtime.shapes import Record
from fundax.runtime.workdir import read_optional_json, write_json
from fundax.types import UserError

RECORD = "fundax_export.json"


@contextlib.contextmanager
def fresh_folder(out: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """Context with a temporary folder, which is renamed to `out` if no error occurs, so that `out` is never incomplete.

    Raises UserError if `out` is a file, or is not empty and `overwrite` is False.
    """
    out = Path(out).absolute()
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; expected a folder to write")
    if out.is_dir() and any(out.iterdir()) and not overwrite:
        raise UserError(f"{out} is not empty; name another folder, or ask for it to be overwritten")
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        yield temporary
        _readable(temporary)
        if out.is_dir():
            old = Path(tempfile.mkdtemp(prefix=f".{out.name}.old.", dir=out.parent))
            os.replace(out, old)
            os.replace(temporary, out)
            shutil.rmtree(old)
        else:
            os.replace(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_model(folder: Path, weights: str, state: State, model: Checkpoint, left_out: Mapping[str, Any]) -> None:
    """Write what every folder with safetensors has: weights (file name `weights`), tokenizer and record."""
    write_safetensors(state, folder / weights)
    write_record(folder, state, model, left_out)


def write_record(folder: Path, state: State, model: Checkpoint, left_out: Mapping[str, Any]) -> None:
    """Write the tokenizer, and fundax_export.json: source, objective, digests of the tensors.

    left_out: values of parameters that the format has no place for, or their shapes where they are large.
    """
    if model.tokenizer is not None:
        model.tokenizer.save(folder)
    objective = serialize.to_json(model.objective)
    record = {
        "fundax": fundax.__version__,
        "source": {name: value for name, value in model.source.items() if name != "card"},
        "objective": objective,
        "objective_sha256": hashlib.sha256(json.dumps(objective, sort_keys=True).encode()).hexdigest(),
        "preprocessing": dict(model.preprocessing),
        "left_out": dict(left_out),
        "tensors_sha256": digests(state),
    }
    write_json(folder / RECORD, record)


def read_record(path: str | Path) -> dict[str, Any]:
    """The record of an exported folder, or of the folder of a weights file; {} if there is none."""
    file = folder_of(path) / RECORD
    record = read_optional_json(file, Record)
    if record and (missing := [key for key in ("objective", "preprocessing", "tensors_sha256") if key not in record]):
        raise UserError(f"{file}: has no {missing[0]}; expected the record that an export writes")
    return record


def check_record(path: str | Path, state: State) -> None:
    """Raise UserError if a folder with a record of write_record does not hold the weights that were exported."""
    if Path(path).is_file() and Path(path).name not in FILE_NAMES:  # another checkpoint in the folder of an export
        return
    known = read_record(path).get("tensors_sha256", {})
    named = {bare: value for name, value in state.items() if (bare := _bare(name)) in known}
    if wrong := [name for name, digest in digests(named).items() if digest != known[name]]:
        raise UserError(
            f"{path}: {len(wrong)} of {len(known)} tensors are not those that were exported, the first is {wrong[0]}; copy "
            f"the folder again, or remove {RECORD} if they were changed on purpose"
        )


def _bare(name: str) -> str:
    """The name of a tensor without what training programs put before it."""
    return re.sub(r"^(?:teacher\.|module\.|backbone\.)+", "", name)


def write_card(
    folder: Path, model: Checkpoint, library: str, usage: str, tag: str = "zero-shot-image-classification"
) -> None:
    """Write README.md with the front matter that model hubs read; `usage` is a Python snippet."""
    source = {name: value for name, value in model.source.items() if name != "card"}
    about = dict(model.source.get("card", {}))
    facts = {name: value for name, value in {**model.preprocessing, **source}.items() if value is not None}
    trained = {name: about[name] for name in ("config", "data", "batch", "seed", "dtype") if name in about}
    base = f"base_model: {about['base_model']}\n" if "base_model" in about else ""
    scores = _table(about.get("scores", {})) or "The run has no evaluation."
    card = f"""---
library_name: {library}
pipeline_tag: {tag}
license: {about.get("license", "other")}
{base}tags: [ophthalmology, fundus, retina, fundax]
---

# {_plain(source.get("name", "A model of the eye"))}

Trained or converted with fundax {fundax.__version__}. A research model, not a medical device: it has not been approved for
the diagnosis or treatment of patients. {_licence(about)}

{_table(facts)}

## Training

{_table(trained) or "Not known: an imported checkpoint."}

## Scores

These are the results of the run's last evaluation up to this step. `launch.py report` adds confidence intervals.

{scores}

## Intended use and limits

For research on images of the modality and cameras it was trained on. Scores on other cameras, populations and diseases
can be much lower; check them on your own labelled data first. Describe here for whom it works and for whom it does not.

## Use

```python
{usage.strip()}
```

`{RECORD}` names the source and the SHA-256 of every tensor.
"""
    (folder / "README.md").write_text(card, encoding="utf-8")


def _plain(text: Any) -> str:
    """Convert a value to one line of text without characters that begin HTML, tables or code in Markdown."""
    return re.sub(r"[`|]", "'", html.escape(" ".join(str(text).split()), quote=False))


def _table(facts: Mapping[str, Any]) -> str:
    """A table in Markdown; "" without rows."""
    shown = {name: f"{value:.4f}" if isinstance(value, float) else value for name, value in facts.items()}
    rows = [f"| {_plain(name)} | `{_plain(value)}` |" for name, value in shown.items()]
    return "\n".join(["| | |", "|---|---|", *rows]) if rows else ""


def _licence(about: Mapping[str, Any]) -> str:
    if "license" in about:
        return ""
    start = f" of {about['base_model']}" if "base_model" in about else " of the weights it started from"
    return f"Fill in the licence before you share it: derived weights keep that{start}."


def _readable(folder: Path) -> None:
    """Give the usual permissions of new files: mkdtemp and safetensors make theirs readable by the owner only."""
    mask = os.umask(0)
    os.umask(mask)
    for path in (folder, *folder.rglob("*")):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)
