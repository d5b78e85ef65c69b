"""Features of the images of folders and tables of any size, written as .npz or Parquet; a killed command resumes.

Finished parts are kept in a folder next to the output until all are there, so memory does not grow with the number of images."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import shutil
import sys
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

from data_pipelines.records import DataError, Record, Source, View
from data_pipelines.words import named
from fundax.inference.answers import check_out
from fundax.inference.model import Model, load
from fundax.inference.photographs import IMAGES, files_of
from fundax.runtime.workdir import read_optional_json, write_json
from fundax.types import UserError

PART = 256  # records of a part, which is what a stop costs at most
SUFFIXES = (".npz", ".parquet")
COLUMNS = ("image", "patient", "eye", "modality")  # texts in addition to the features
_log = logging.getLogger("fundax")


@dataclass(frozen=True)
class Files:
    """Image files as a source of records."""

    paths: Sequence[Path]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Record:
        return Record("", (View(self.paths[index]),), where=str(self.paths[index]))


def embed(
    run: str | Path,
    images: Sequence[str | Path],
    out: str | Path,
    *,
    checkpoint: int | str = "",
    feature: str = "",
    modality: str = "",
    batch: int = 32,
    skip_bad: bool = False,
) -> str:
    """Write the features of all images of files, folders and tables; returns a line on what was written.

    Args:
        run: anything that `fundax.load` opens.
        images: image files, folders with images below them, or words that name a source: a CSV, tfds:NAME, ...
        out: .npz with features f32 [N E], row i64 [N] (of the source) and texts [N]: image, patient, eye, modality; or
            .parquet with the same columns. A record of several views has a row for each.
        feature: see `Model.encode_image`.
        skip_bad: leave out images that cannot be read, and log their names; otherwise they are an error.
    Raises:
        UserError: `out` exists or has another ending; features of other images or of another model are stored unfinished next to
            it. DataError: an image that cannot be read. Finished parts are kept, and the same command resumes.
    """
    check_out(out, SUFFIXES)
    if Path(out).suffix.lower() == ".parquet":
        _pyarrow()
    sources, names = zip(*map(_source, images), strict=True) if images else ((), ())
    if not (total := sum(map(len, sources))):
        raise UserError("embed: no images; give files, folders or tables")
    model = load(run, checkpoint, batch, modality=modality)
    feature = model.feature_named(feature)
    parts = Path(f"{out}.parts")
    facts = {"model": {k: str(v) for k, v in model.card.items()}, "feature": feature, "images": names, "records": total}
    _begin(parts, json.loads(json.dumps(facts)))
    bar = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*bar, console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("images", total=total)
        for number in range(-(-total // PART)):
            path, rows = parts / f"{number:06d}.npz", range(number * PART, min((number + 1) * PART, total))
            if not path.exists():
                _write_part(path, model, feature, _records(sources, rows), skip_bad)
            progress.advance(task, len(rows))
    shape, skipped = _merge(parts, Path(out))
    shutil.rmtree(parts)
    note = f"; {skipped} images could not be read and are left out" if skipped else ""
    return f"{out}: {feature} {shape} of {run}, {model.source.get('origin', '')}{note}"


def _source(word: str | Path) -> tuple[Source, str]:
    """The records of one word of the command line, and a digest of their names."""
    path = Path(word)
    if path.is_dir() or path.suffix.lower() in IMAGES:
        paths = files_of([path])
        return Files(paths), hashlib.sha256("\n".join(map(str, paths)).encode()).hexdigest()
    source = named(str(word)).source
    return source, f"{word} {len(source)}"


def _records(sources: Sequence[Source], rows: range) -> Iterator[tuple[int, Record]]:
    """The records with these numbers over all sources."""
    first = 0
    for source in sources:
        for row in range(max(rows.start, first), min(rows.stop, first + len(source))):
            yield row, source[row - first]
        first += len(source)


def _begin(parts: Path, facts: dict[str, Any]) -> None:
    """Make the folder of the parts, or go on with one of the same model and images."""
    known = read_optional_json(parts / "about.json")
    if known and known != facts:
        wrong = next(name for name in facts if known.get(name) != facts[name])
        raise UserError(f"{parts} has parts of another {wrong}; remove the folder, or choose another --out")
    parts.mkdir(exist_ok=True)
    if known:
        done = len(list(parts.glob("*.npz")))
        _log.info("%s: resuming after %d of %d parts", parts, done, -(-facts["records"] // PART))
    else:
        write_json(parts / "about.json", facts)


def _write_part(path: Path, model: Model, feature: str, records: Iterator[tuple[int, Record]], skip_bad: bool) -> None:
    rows = [(row, record, view) for row, record in records for view in record.views]
    bad: list[int] = []
    features = np.concatenate(
        list(model.image_features([view.image for _, _, view in rows], feature, bad if skip_bad else None))
    )
    kept = np.setdiff1d(np.arange(len(rows)), bad)
    for k in bad:
        _log.warning("%s cannot be read and is left out", rows[k][1].where or f"row {rows[k][0]}")
    texts: dict[str, Any] = {name: np.array([_texts(*rows[k][1:])[name] for k in kept], dtype=str) for name in COLUMNS}
    numbers = np.array([rows[k][0] for k in kept], np.int64)
    temporary = path.with_suffix(".part")
    with temporary.open("wb") as file:
        np.savez(file, features=features[kept], row=numbers, skipped=len(bad), **texts)
    temporary.replace(path)


def _texts(record: Record, view: View) -> dict[str, str]:
    image = view.image
    name = record.where if isinstance(image, bytes | np.ndarray) else str(image)
    return {"image": name, "patient": str(record.patient), "eye": view.eye, "modality": view.modality}


def _merge(parts: Path, out: Path) -> tuple[str, int]:
    """Write the parts as one file, one part in memory at a time; returns the shape in words and what was skipped."""
    paths = sorted(parts.glob("*.npz"))
    widths: dict[str, int] = dict.fromkeys(map(str, COLUMNS), 1)
    count, skipped, shape = 0, 0, (0, 0)
    for path in paths:
        with np.load(path) as part:
            shape = part["features"].shape
            count, skipped = count + shape[0], skipped + int(part["skipped"])
            widths = {name: max(width, part[name].dtype.itemsize // 4) for name, width in widths.items()}
    if not count:
        raise DataError("embed: none of the images can be read")
    temporary = parts / f"whole{out.suffix}"
    write = _write_parquet if out.suffix.lower() == ".parquet" else _write_npz
    write(temporary, paths, count, shape[1], widths)
    temporary.replace(out)
    return f"{count} x {shape[1]}", skipped


def _write_npz(out: Path, paths: Sequence[Path], count: int, width: int, widths: dict[str, int]) -> None:
    arrays = {"features": ("<f4", (count, width)), "row": ("<i8", (count,))}
    arrays |= {name: (f"<U{length}", (count,)) for name, length in widths.items()}
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for name, (kind, shape) in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                header = io.BytesIO()
                facts = {"descr": kind, "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(header, facts)
                file.write(header.getvalue())
                for path in paths:
                    with np.load(path) as part:
                        file.write(np.ascontiguousarray(part[name].astype(kind)).tobytes())


def _write_parquet(out: Path, paths: Sequence[Path], count: int, width: int, widths: dict[str, int]) -> None:
    del count, widths
    pa, parquet = _pyarrow()
    fields = [
        ("row", pa.int64()),
        *((name, pa.string()) for name in COLUMNS),
        ("features", pa.list_(pa.float32(), width)),
    ]
    schema = pa.schema(fields)
    with parquet.ParquetWriter(out, schema) as writer:
        for path in paths:
            with np.load(path) as part:
                columns = [pa.array(part["row"]), *(pa.array(part[name].tolist(), pa.string()) for name in COLUMNS)]
                flat = pa.array(part["features"].reshape(-1))
                writer.write_table(pa.table([*columns, pa.FixedSizeListArray.from_arrays(flat, width)], schema=schema))


def _pyarrow() -> Any:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise UserError("writing .parquet needs pyarrow: pip install -e '.[parquet]'; .npz needs nothing") from error
    return pyarrow, parquet
