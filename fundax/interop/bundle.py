"""A model as a folder for other programs: what every layout shares (atomic writing, model card, provenance)."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np

import fundax
from fundax.interop.weights import State, digests, write_safetensors
from fundax.runtime import serialize
from fundax.types import Params, UserError

RECORD = "fundax_export.json"


@dataclass(frozen=True)
class Bundle:
    """A model with all that it takes to use it.

    `preprocessing`: image_size, mean, std, resize (squash, shortest or longest), interpolation. `tokenizer`: anything
    with save(folder), or None. `source`: where the parameters came from, for the record (run, step, config_sha256).
    """

    objective: Any
    params: Params
    preprocessing: Mapping[str, Any]
    tokenizer: Any = None
    source: Mapping[str, Any] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)


@contextlib.contextmanager
def fresh_folder(out: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """A temporary folder that becomes `out` when the block ends without an error: nobody sees half a model.

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


def write_json(path: Path, value: Any) -> None:
    """Indented UTF-8 JSON."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: str | Path) -> dict[str, Any]:
    """A JSON object. Raises UserError naming the file if it is absent or holds something else."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error})") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


def write_model(folder: Path, weights: str, state: State, bundle: Bundle, left_out: Mapping[str, Any]) -> None:
    """The files of every layout: the weights under the name `weights`, the tokenizer, the record, the model card.

    `left_out` holds parameters the layout has no place for; they go into the record.
    """
    write_safetensors(state, folder / weights)
    if bundle.tokenizer is not None:
        bundle.tokenizer.save(folder)
    objective = serialize.to_json(bundle.objective)
    record = {
        "fundax": fundax.__version__,
        "source": dict(bundle.source),
        "objective": objective,
        "objective_sha256": hashlib.sha256(json.dumps(objective, sort_keys=True).encode()).hexdigest(),
        "preprocessing": dict(bundle.preprocessing),
        "left_out": dict(left_out),
        "tensors_sha256": digests(state),
    }
    write_json(folder / RECORD, record)


def write_card(
    folder: Path, bundle: Bundle, library: str, usage: str, tag: str = "zero-shot-image-classification"
) -> None:
    """README.md with the front matter that model hubs read; `usage` is a Python snippet."""
    facts = {name: value for name, value in {**bundle.preprocessing, **bundle.source}.items() if value is not None}
    rows = "\n".join(f"| {name} | `{value}` |" for name, value in facts.items())
    card = f"""---
library_name: {library}
pipeline_tag: {tag}
tags: [ophthalmology, fundus, retina, clip, fundax]
---

# {bundle.source.get("name", "A model of the eye")}

Trained or converted with fundax {fundax.__version__}. Fill in before you share it: the licence, the data it was
trained on, and for whom it works and for whom it does not. It is a research model and no medical device.

| | |
|---|---|
{rows}

## Use

```python
{usage.strip()}
```

`{RECORD}` names the source and the SHA-256 of every tensor.
"""
    (folder / "README.md").write_text(card, encoding="utf-8")


def preprocessing_of(bundle: Bundle) -> dict[str, Any]:
    """The bundle's preprocessing with its defaults filled in. Raises UserError where it contradicts the model."""
    objective = bundle.objective
    found = {
        "image_size": objective.image.image_size,
        "mean": list(objective.mean),
        "std": list(objective.std),
        "resize": "squash",
        "interpolation": "bicubic",
    } | dict(bundle.preprocessing)
    if int(found["image_size"]) != objective.image.image_size:
        size = objective.image.image_size
        raise UserError(f"preprocessing.image_size is {found['image_size']}, but the model takes {size} pixels")
    for name in ("mean", "std"):
        if not np.array_equal(np.asarray(found[name], float), np.asarray(getattr(objective, name), float)):
            raise UserError(f"preprocessing.{name} is {found[name]}, but the model has {getattr(objective, name)}")
    return found


def probe(bundle: Bundle, count: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Noise to compare two programs with: images f32 [B h w 3], normalised already, and texts i32 [B L]."""
    objective, rng = bundle.objective, np.random.default_rng(0)
    size, text = objective.image.image_size, objective.text
    end = text.eot_id if text.eot_id is not None else getattr(bundle.tokenizer, "end", text.vocab - 1)
    image = rng.standard_normal((count, size, size, 3), np.float32)
    ids = rng.integers(1, max(end, 2), (count, text.context), dtype=np.int32)
    for row, length in zip(ids, rng.integers(1, text.context, count), strict=True):
        row[length:] = 0
        row[length - 1] = end
    return image, ids


def largest_difference(
    bundle: Bundle, image: np.ndarray, text: np.ndarray, image_features: np.ndarray, text_features: np.ndarray
) -> float:
    """The largest absolute difference of unit features [B E] between another program's and ours in fp32."""
    towers = {name: dataclasses.replace(getattr(bundle.objective, name), dtype="float32") for name in ("image", "text")}
    objective = dataclasses.replace(bundle.objective, **towers)
    ours = jax.jit(objective.forward)(bundle.params, {}, {"image": image, "text": text})
    theirs = {"image_features": image_features, "text_features": text_features}
    return max(float(np.abs(np.asarray(ours[name]) - value).max()) for name, value in theirs.items())


def _readable(folder: Path) -> None:
    """The permissions of new files: mkdtemp's folders and safetensors' files are for their owner only."""
    mask = os.umask(0)
    os.umask(mask)
    for path in (folder, *folder.rglob("*")):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)
