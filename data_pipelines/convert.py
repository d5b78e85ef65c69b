"""Convert a source to shards of small images, which are then decoded and resized once instead of every epoch."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
from PIL import Image

from data_pipelines.geometry import MASKS, Move, Resize, mask_pixels
from data_pipelines.images.decode import StoredImage, exif_orientation, load_sized
from data_pipelines.images.masks import BACKGROUND, load_mask, read_field_of_view, read_mask
from data_pipelines.pipeline.workers import death
from data_pipelines.records import DataError, Record, Source, View
from data_pipelines.sources.shards import FORMAT, shard_name, write_shard


@dataclass(frozen=True)
class Sizing:
    """Shrink images so that the shorter side is at most `size`; encode as "jpeg" with `quality`, or as lossless "png"."""

    size: int
    images: str = "jpeg"
    quality: int = 95

    def __post_init__(self) -> None:
        if self.size < 1 or not 1 <= self.quality <= 100 or self.images not in ("jpeg", "png"):
            raise DataError("size is 1 or more, quality 1 to 100, images jpeg or png")

    def __call__(self, record: Record) -> Record:
        """Return the record with encoded images, and with masks and points resized with them.

        The bytes of a JPEG that is small enough and upright are kept. Raises DataError naming the record.
        """
        try:
            views, moves = zip(*(self._view(view) for view in record.views), strict=True)
            read = {name: _read(name, value, record.views, moves) for name, value in record.targets.items()}
            targets = {name: _resize_target(name, value, moves) for name, value in read.items()}
        except DataError as error:
            message = str(error)
            raise DataError(message if record.where in message else f"{record.where}: {message}") from None
        return replace(record, views=views, targets=targets)

    def _view(self, view: View) -> tuple[View, _Moved]:
        array, size = load_sized(view.image, self.size)
        short = min(size)
        if short <= self.size:
            return replace(view, image=self._encode(view.image, array)), (None, size)
        height, width = (max(round(side * self.size / short), 1) for side in size)
        move = Resize(height, width, "bicubic")
        return replace(view, image=self._encode(None, move.pixels(array))), (move, size)

    def _encode(self, original: Any, array: np.ndarray) -> bytes:
        if self.images == "png":
            buffer = io.BytesIO()
            Image.fromarray(array).save(buffer, "PNG")
            return buffer.getvalue()
        data = Path(original).read_bytes() if isinstance(original, os.PathLike) else original
        if isinstance(data, bytes) and data[:2] == b"\xff\xd8" and exif_orientation(data) == 1:
            return data
        return simplejpeg.encode_jpeg(np.ascontiguousarray(array), self.quality, "RGB", "444")


_Moved = tuple[Move | None, tuple[int, int]]  # how a view is resized, and its (height, width) before


def _read(name: str, value: Any, views: Sequence[View], moves: Sequence[_Moved]) -> Any:
    """Read a mask or field of view, which must have the size of its image; other targets are returned unchanged."""
    if name not in MASKS:
        return value
    if isinstance(value, tuple):
        raise DataError(f"{len(value)} masks of one image cannot be converted; train from the CSV itself")
    if isinstance(value, StoredImage) and any(not n.isdecimal() and n != BACKGROUND for _, n in value.reading.values):
        raise DataError("data convert stores the numbers of classes: write values=128:2 instead of values=128:NAME")
    if len(views) > 1:
        return value if isinstance(value, np.ndarray) else load_mask(value)
    if not isinstance(value, np.ndarray):
        read = read_mask if name == "mask" else read_field_of_view
        return read(value, moves[0][1], image=views[0].image)
    if moves[0][1] not in (value.shape[:2], value.shape[1:]):
        raise DataError(f"target {name!r} is {list(value.shape)}, its image {list(moves[0][1])} (height, width)")
    return value


def _resize_target(name: str, value: Any, moves: Sequence[_Moved]) -> Any:
    """Resize a target with its image. It belongs to a single view, or has one entry per view on its first axis."""
    if name not in (*MASKS, "masks", "points") or not any(move for move, _ in moves):
        return value
    if isinstance(value, tuple | list):
        return tuple(_apply(name, one, move) for one, move in zip(value, moves, strict=True))
    if isinstance(value, np.ndarray) and value.ndim == 3 and len(value) == len(moves):
        parts = [_apply(name, one, move) for one, move in zip(value, moves, strict=True)]
        if len({part.shape for part in parts}) > 1:
            raise DataError(f"target {name!r} is one array for views of different sizes; shrink them beforehand")
        return np.stack(parts)
    if len(moves) > 1:
        raise DataError(f"target {name!r} belongs to one of {len(moves)} views, but it is not known to which one")
    return _apply(name, value, moves[0])


def _apply(name: str, value: Any, moved: _Moved) -> Any:
    move, size = moved
    if move is None:
        return value
    if isinstance(value, Mapping):
        return {key: _apply(name, inner, moved) for key, inner in value.items()}
    if name == "points":
        return move.points(np.asarray(value, np.float32), size)
    return mask_pixels(move, value.astype(np.int32)).astype(value.dtype)


def convert(source: Source, out: str | Path, sizing: Sizing, *, shard: int = 1024, workers: int = 0) -> Path:
    """Write every record of `source` to ArrayRecord files in `out`, and return that folder.

    Args:
        source: the records.
        out: folder to create. It appears only when all files are written; after an error no files remain.
        sizing: size and encoding of the images.
        shard: records per file.
        workers: processes, each of which writes whole files; 0 writes in this process.

    Raises DataError if the data are invalid, a worker died or `out` exists. Shows progress on a terminal.
    """
    out = Path(out)
    if out.exists():
        raise DataError(f"{out} exists; choose another folder or remove it")
    if not len(source):
        raise DataError("the source has no records")
    if shard < 1 or workers < 0:
        raise DataError("records per file are 1 or more, workers 0 or more")
    scratch = out.with_name(f".{out.name}.unfinished")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        patients = _write(source, scratch, sizing, shard, workers)
        _describe(source, scratch, sizing, patients, shard)
        scratch.rename(out)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return out


def _write(source: Source, folder: Path, sizing: Sizing, shard: int, workers: int) -> list[str]:
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

    shards = -(-len(source) // shard)
    jobs = [(source, folder / shard_name(k, shards), sizing, k * shard, min((k + 1) * shard, len(source)))
            for k in range(shards)]  # fmt: skip
    columns = (SpinnerColumn(), TextColumn("records"), MofNCompleteColumn(), TimeRemainingColumn())
    patients: list[str] = []
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=len(source))
        if not workers:
            for job in jobs:
                patients += _one(*job, lambda: progress.advance(task))
            return patients
        return _in_processes(jobs, workers, lambda count: progress.update(task, completed=count))
    return patients


def _in_processes(jobs: Sequence[tuple[Any, ...]], workers: int, done: Callable[[int], None]) -> list[str]:
    """Run all jobs in worker processes and return their patients. Raises DataError if a process dies."""
    before = multiprocessing.active_children()
    started: list[BaseProcess] = []
    patients: list[str] = []
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        try:
            futures = [pool.submit(_one, *job) for job in jobs]
            started = [child for child in multiprocessing.active_children() if child not in before]
            for future in futures:
                patients += future.result()
                done(len(patients))
            return patients
        except BaseException as error:
            pool.shutdown(wait=True, cancel_futures=True)
            if not isinstance(error, BrokenProcessPool):
                raise
    codes = [child.exitcode for child in started if child.exitcode]
    # the pool ends the others with SIGTERM, so the one that died first most likely has another exit code
    raise death(next((code for code in codes if code != -signal.SIGTERM), codes[0] if codes else None))


def _one(source: Source, path: Path, sizing: Sizing, first: int, last: int, done: Any = None) -> list[str]:
    def records() -> Iterator[Record]:
        for row in range(first, last):
            record = source[row]
            yield sizing(record if record.where else replace(record, where=f"row {row + 1}"))
            if done:
                done()

    return write_shard(path, records())


def _describe(source: Source, folder: Path, sizing: Sizing, patients: list[str], shard: int) -> None:
    info = {
        "format": FORMAT,
        "records": len(patients),
        "shards": -(-len(patients) // shard),
        "classes": list(getattr(source, "classes", ())),
        "size": sizing.size,
        "images": sizing.images,
        "quality": sizing.quality,
    }
    lines = "".join(json.dumps(name, ensure_ascii=False) + "\n" for name in patients)
    (folder / "patients.jsonl").write_text(lines, encoding="utf-8")
    (folder / "info.json").write_text(json.dumps(info, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
