"""Metrics of generated images: nearest training images (memorisation) and the Frechet distance (arXiv:1706.08500, eq. 6)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fundax.types import UserError


@dataclass(frozen=True, eq=False)
class Neighbours:
    """Nearest neighbours of n images: distance f32 [n], and index i64 [n] and image u8 [n h w 3] of the neighbour.

    The distance is the root mean square difference of pixels in grey levels; mirrored images count as equal.
    """

    distance: np.ndarray
    index: np.ndarray
    image: np.ndarray


def nearest(images: np.ndarray, others: Iterable[tuple[np.ndarray, np.ndarray]]) -> Neighbours:
    """Find the nearest of `others`, batches of (index i64 [m], images u8 [m h w 3]), for each image u8 [n h w 3].

    `others` is iterated once, batch by batch. Raises UserError if it is empty or has images of another size.
    """
    flat = images.reshape(len(images), -1).astype(np.float32)
    best = np.full(len(images), np.inf, np.float32)
    index, neighbour = np.full(len(images), -1), np.zeros_like(images)
    for rows, batch in others:
        if batch.shape[1:] != images.shape[1:]:
            raise UserError(f"images of {images.shape[1:]} compared with images of {batch.shape[1:]}")
        for side in (batch, batch[:, :, ::-1]):
            far = _squares(flat, side.reshape(len(side), -1).astype(np.float32))  # [n m]
            at = far.argmin(1)
            closer = far[np.arange(len(flat)), at] < best
            best[closer] = far[closer, at[closer]]
            index[closer], neighbour[closer] = rows[at[closer]], side[at[closer]]
    if len(images) and index.min() < 0:
        raise UserError("there are no images to search for neighbours")
    return Neighbours(np.sqrt(best / max(flat.shape[1], 1)), index, neighbour)


def memorised(samples: np.ndarray, unseen: np.ndarray) -> dict[str, float]:
    """Compare the distances of samples [n] and of held-out images [m] to their nearest training images.

    Returns:
        median_samples and median_unseen; closest_samples and closest_unseen (the smallest distances); below_unseen, the
        fraction of samples below the first percentile of the held-out distances (0.01 by chance); copies, the number of
        samples below half the smallest held-out distance, which should be inspected.
    """
    return {
        "median_samples": float(np.median(samples)),
        "median_unseen": float(np.median(unseen)),
        "closest_samples": float(samples.min()),
        "closest_unseen": float(unseen.min()),
        "below_unseen": float((samples < np.percentile(unseen, 1)).mean()),
        "copies": float((samples < unseen.min() / 2).sum()),
    }


def draw_pairs(
    images: np.ndarray, neighbours: Neighbours, unseen: np.ndarray, path: str | Path, pairs: int = 8
) -> Path:
    """Write a PNG of the closest pairs and of pairs around the median, each a sample above its nearest training image.

    The figure also shows the distribution of the distances, compared with `unseen`, the distances of held-out images.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    order = neighbours.distance.argsort()
    middle = order[max(len(order) // 2 - pairs // 2, 0) :][:pairs]
    figure = Figure(figsize=(1.1 * pairs + 0.6, 7.4), layout="constrained")
    FigureCanvasAgg(figure)
    parts: Any = figure.subfigures(3, 1, height_ratios=(2.6, 2.6, 2.2))
    for part, title, rows in zip(parts, ("Closest", "Around the median"), (order[:pairs], middle), strict=False):
        part.suptitle(f"{title}: generated image above, nearest training image below", fontsize=10, x=0.01, ha="left")
        grid = part.subplots(2, pairs, squeeze=False)
        for cell in grid.ravel():
            cell.set_axis_off()
        for column, row in enumerate(rows):
            grid[0, column].imshow(images[row])
            grid[0, column].set_title(f"{neighbours.distance[row]:.1f}", fontsize=8, pad=2)
            grid[1, column].imshow(neighbours.image[row])
    axes = parts[2].subplots()
    bins = np.linspace(0, max(neighbours.distance.max(), unseen.max()), 41).tolist()
    axes.hist(unseen, bins, density=True, histtype="step", color="#0072B2", linewidth=1.6, label="held-out images")
    axes.hist(
        neighbours.distance,
        bins,
        density=True,
        histtype="step",
        color="#D55E00",
        linewidth=1.6,
        label="generated images",
    )
    axes.set_xlabel("Distance to the nearest training image (root mean square, grey levels)", fontsize=9)
    axes.set_yticks([])
    axes.legend(frameon=False, fontsize=9)
    axes.spines[["top", "right", "left"]].set_visible(False)
    figure.savefig(path, dpi=110)
    return Path(path)


def _squares(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Squared distances f32 [n m] of rows [n D] and [m D]."""
    return np.maximum((a * a).sum(1)[:, None] + (b * b).sum(1)[None] - 2 * a @ b.T, 0)


def frechet(first: np.ndarray, second: np.ndarray) -> float:
    """Frechet distance |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) of features f32 [n D] and [m D], computed in f64.

    The trace of the square root is computed from the symmetric C1^(1/2) C2 C1^(1/2), which has the same eigenvalues as
    C1 C2 and is real even with fewer images than features. The distance is biased upwards for few images, so compare
    sets of equal size.

    Raises UserError for fewer than two images, or features of unequal width.
    """
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1]:
        raise UserError(f"features {first.shape} and {second.shape}; expected [n D] and [m D]")
    if min(len(first), len(second)) < 2:
        raise UserError("a Frechet distance needs at least two images on each side")
    means = [np.asarray(x, np.float64).mean(0) for x in (first, second)]
    spread, other = (np.atleast_2d(np.cov(np.asarray(x, np.float64), rowvar=False)) for x in (first, second))
    root = _root(spread)
    shared = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ other @ root), 0)).sum()
    return float(((means[0] - means[1]) ** 2).sum() + np.trace(spread) + np.trace(other) - 2 * shared)


def _root(matrix: np.ndarray) -> np.ndarray:
    """The symmetric square root of a covariance [D D]."""
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(np.maximum(values, 0))[None]) @ vectors.T
