"""Frechet distance between the features of two sets of images (arXiv:1706.08500, eq. 6)."""

from __future__ import annotations

import numpy as np

from fundax.errors import UserError


def frechet(first: np.ndarray, second: np.ndarray) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) of features f32 [n D] and [m D], computed in f64.

    The trace of the square root is taken of the symmetric (C1^(1/2) C2 C1^(1/2)), which has the same eigenvalues as C1 C2
    and stays real where there are fewer images than features. It is biased upwards for few images: compare sets of equal
    size. Raises UserError for fewer than two images or features of unequal width.
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
