"""Compare the input pipeline with a torch DataLoader and Pillow: 512 px JPEG to 224 px, batched. Needs torch.

    python benchmarks/input_pipeline.py                    # in one process, and in 2 worker processes
    python benchmarks/input_pipeline.py --workers 8 --images 512

Both read the same files and make the same uint8 batches [64 224 224 3], with bicubic antialiased resizing. The second
DataLoader row uses Pillow's `draft`, which also decodes at a reduced scale but is not part of default transforms. Prints
medians of alternated rounds. CPU time is the time of all processes without start-up (Linux).
"""

from __future__ import annotations

import functools
import io
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from PIL import Image
from record import Table, record

from data_pipelines.images.decode import load
from data_pipelines.pipeline import streams
from data_pipelines.records import Record, View
from data_pipelines.synthetic.sources import Patients
from data_pipelines.transforms.steps import Squash
from data_pipelines.transforms.views import SingleView

try:
    from torch.utils.data import DataLoader
except ImportError:
    sys.exit("this benchmark needs torch: pip install torch (the CPU build is sufficient)")

SIZE, TARGET, BATCH = 512, 224, 64
Batches = Iterator[Any]


@dataclass(frozen=True)
class Files:
    """A source of records of the image files; `PillowFiles` is the torch data set of the same files."""

    paths: tuple[Path, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Record:
        return Record(str(index), (View(self.paths[index]),), targets={"label": index % 2})


@dataclass(frozen=True)
class PillowFiles:
    """A torch data set that opens, converts and resizes with Pillow."""

    paths: tuple[Path, ...]
    draft: bool = False

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return pillow(self.paths[index], self.draft), index % 2


def pillow(path: Path, draft: bool = False) -> np.ndarray:
    """Open, convert and resize an image with Pillow; u8 [224 224 3]."""
    with Image.open(path) as picture:
        if draft:
            picture.draft("RGB", (TARGET, TARGET))
        small = picture.convert("RGB").resize((TARGET, TARGET), Image.Resampling.BICUBIC)
    return np.array(small)


def write_images(folder: Path, count: int) -> tuple[Path, ...]:
    """Write `count` synthetic fundus photographs of 512 px as JPEG files of quality 90."""
    patients = Patients(count, seed=0, size=SIZE)
    paths = tuple(folder / f"{i:04d}.jpg" for i in range(count))
    for patient, path in zip((patients[i] for i in range(count)), paths, strict=True):
        buffer = io.BytesIO()
        Image.fromarray(load(patient.views[0].image)).save(buffer, "JPEG", quality=90)
        path.write_bytes(buffer.getvalue())
    return paths


def ours(paths: tuple[Path, ...], workers: int) -> Batches:
    """Batches of fundax, with one thread or `workers` processes."""
    steps = (SingleView(size_hint=TARGET), Squash(TARGET))
    data = streams.train(Files(paths), steps, batch=BATCH, seed=0, workers=workers, threads=1)
    return data(0, 1)


def loader(paths: tuple[Path, ...], workers: int, draft: bool = False) -> Batches:
    """Batches of an endless torch DataLoader."""
    made = DataLoader(
        PillowFiles(paths, draft),  # type: ignore[arg-type]
        BATCH,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        multiprocessing_context="spawn" if workers else None,
    )
    while True:
        yield from made


def cpu_seconds() -> float:
    """CPU time so far of this process and its live children."""
    total = time.process_time()
    for child in multiprocessing.active_children():
        fields = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
        total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def measure(batches: Batches, count: int) -> tuple[float, float]:
    """(images per second of wall time, images per second of CPU time) over `count` batches."""
    cpu, wall = cpu_seconds(), time.perf_counter()
    for _ in range(count):
        next(batches)
    wall, cpu = time.perf_counter() - wall, cpu_seconds() - cpu
    return count * BATCH / wall, count * BATCH / cpu


def compare(paths: tuple[Path, ...], workers: int, rounds: int, count: int) -> dict[str, tuple[float, float]]:
    """Medians by name. In every round, each pipeline is started, warmed up, measured and closed separately."""
    runs: dict[str, Callable[[], Batches]] = {
        "DataLoader, Pillow": functools.partial(loader, paths, workers),
        "DataLoader, Pillow draft": functools.partial(loader, paths, workers, draft=True),
        "fundax": functools.partial(ours, paths, workers),
    }
    rates: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, start in runs.items():
            batches = start()
            for _ in range(2 + 3 * workers):  # warm-up: start-up and prefetched batches
                next(batches)
            rates[name].append(measure(batches, count))
            batches.close()  # type: ignore[attr-defined]
    return {
        name: tuple(statistics.median(column) for column in zip(*pairs, strict=True)) for name, pairs in rates.items()
    }


def difference(paths: tuple[Path, ...]) -> float:
    """Mean absolute difference of our images from Pillow's full decode, in grey levels of 255."""
    step = Squash(TARGET)
    pairs = ((load(path, TARGET), pillow(path)) for path in paths[:32])
    rng = np.random.default_rng(0)
    return float(np.mean([np.abs(step({"image": a}, rng)["image"].astype(int) - b).mean() for a, b in pairs]))


def main(workers: int = 2, images: int = 256, rounds: int = 3, batches: int = 12, keep: bool = True) -> None:
    """Compare without workers and with `workers` processes, on `images` files. --no-keep does not write results."""
    columns, rows = ("workers", "pipeline", "images/s", "images/s of processor time", "ratio"), []
    with tempfile.TemporaryDirectory() as folder:
        paths = write_images(Path(folder), images)
        size = sum(path.stat().st_size for path in paths) / len(paths) / 1024
        for processes in (0, workers):
            rates = compare(paths, processes, rounds, batches)
            slow = rates["DataLoader, Pillow"][1]
            for name, (wall, cpu) in rates.items():
                rows.append((f"{processes}", name, f"{wall:.0f}", f"{cpu:.0f}", f"{cpu / slow:.2f}"))
        gap = difference(paths)
    title = f"{SIZE} px JPEG ({size:.0f} KB) to {TARGET} px, batches of {BATCH}; "
    title += f"mean difference from Pillow's full decode {gap:.2f} of 255"
    record("input_pipeline", [Table(title, columns, rows)], keep=keep)


if __name__ == "__main__":
    tyro.cli(main)
