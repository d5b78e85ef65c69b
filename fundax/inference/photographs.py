"""Read photographs (files, arrays, bytes, Pillow images) in threads, and compute them batch by batch."""

from __future__ import annotations

import functools
import itertools
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.progress import Progress

from data_pipelines.images import decode as files
from data_pipelines.images.decode import EXTENSIONS
from data_pipelines.records import DataError
from data_pipelines.transforms.steps import preprocess
from fundax.types import Extra, Params, UserError

Compute = Callable[[np.ndarray], Mapping[str, Any]]
IMAGES = (*EXTENSIONS, ".dcm")
THREADS = min(8, os.cpu_count() or 1)


def read_photograph(image: Any, preprocessing: Mapping[str, Any], where: str = "") -> np.ndarray:
    """Read and preprocess one photograph to u8 [S S 3]; JPEGs are decoded at full resolution.

    image: a path, encoded bytes, an open binary file, a Pillow image, or an array [H W], [H W 3] or [H W 4].
    where: name of the image in messages, for those without a path. Raises DataError if it cannot be read.
    """
    data = image.read() if hasattr(image, "read") and not isinstance(image, files.Image.Image) else image
    try:
        return preprocess(files.load(data), preprocessing)
    except DataError as error:
        known = isinstance(image, str | os.PathLike) or not where
        raise error if known else DataError(f"{where}: {error}") from error


def listed(images: Any, what: str = "image") -> Any:
    """An iterable over the images. Raises UserError for a single image if several are expected."""
    single = isinstance(images, str | bytes | os.PathLike | files.Image.Image) or hasattr(images, "read")
    if single:
        raise UserError(f"encode_{what} takes a list, not one {type(images).__name__}: write [{what}]")
    if isinstance(images, np.ndarray) and (images.ndim < 3 or (images.ndim == 3 and images.shape[-1] in (3, 4))):
        raise UserError(
            f"encode_{what} takes a list, not one array {images.shape}: write [{what}], or stack to [N H W 3]"
        )
    if images is None or not isinstance(images, Iterable):
        raise UserError(f"encode_{what} takes a list of {what}s, not {type(images).__name__}")
    return images


def files_of(words: Sequence[str | Path]) -> list[Path]:
    """Image files, and the images of folders and their subfolders, sorted by name within each.

    Raises DataError for a path that is not there and for a folder without images.
    """
    found: list[Path] = []
    for word in map(Path, words):
        if word.is_dir():
            inside = sorted(path for path in word.rglob("*") if path.suffix.lower() in IMAGES and path.is_file())
            if not inside:
                raise DataError(f"{word}: no images in the folder or below it ({', '.join(IMAGES)})")
            found += inside
        elif word.exists():
            found.append(word)
        else:
            files.read_bytes(word)  # raises with the file that may have been meant
    return found


def compute_batches(
    images: Iterable[Any], read: Callable[[Any, int], np.ndarray], compute: Compute, batch: int, title: str = ""
) -> Iterator[dict[str, np.ndarray]]:
    """Read images in threads and yield what `compute` gives for every batch, without its padding.

    Batches have one shape: the last one is padded to it, or to a power of two where there are fewer than three. `read` takes
    an image and its number. A bar with `title` is shown on a terminal if there is more than one batch.
    """
    total = len(images) if isinstance(images, Sized) else None
    hidden = not title or not sys.stderr.isatty() or (total is not None and total <= batch)
    with (
        ThreadPoolExecutor(THREADS) as pool,
        Progress(console=Console(stderr=True), transient=True, disable=hidden) as bar,
    ):
        task = bar.add_task(title, total=total)
        for number, arrays in enumerate(_batches(images, read, batch, pool)):
            rows = batch if number > 1 else min(batch, power_of_two(len(arrays)))
            padded = np.stack([*arrays, *arrays[-1:] * (rows - len(arrays))])
            yield {name: np.asarray(value)[: len(arrays)] for name, value in compute(padded).items()}
            bar.advance(task, len(arrays))


def _batches(
    images: Iterable[Any], read: Callable[[Any, int], np.ndarray], batch: int, pool: ThreadPoolExecutor
) -> Iterator[list[np.ndarray]]:
    """Batches of read images in order; the threads read up to two batches ahead while one is computed."""
    numbered, waiting = enumerate(images), deque[Any]()
    try:
        while True:
            for number, image in itertools.islice(numbered, 2 * batch - len(waiting)):
                waiting.append(pool.submit(read, image, number))
            if not waiting:
                return
            yield [waiting.popleft().result() for _ in range(min(batch, len(waiting)))]
    finally:
        for future in waiting:
            future.cancel()


@functools.partial(jax.jit, static_argnums=0)
def forward(objective: Any, params: Params, extra: Extra, batch: Mapping[str, Any]) -> dict[str, jax.Array]:
    """The jitted forward pass of an objective, shared by all predictions."""
    return objective.forward(params, extra, batch)


def power_of_two(n: int) -> int:
    """Round up to a power of two, so that few shapes are compiled."""
    return 1 << max(n - 1, 0).bit_length()
