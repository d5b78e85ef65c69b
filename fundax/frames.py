"""Where the pixels of the original image lie in the one a model sees: three points that every move takes along.

`frame` f32 [3 2] holds where the original's points (0, 0), (1000, 0) and (0, 1000) are now, as (x, y). Crops, resizes,
mirrors and rotations are affine, so three points say all. data_pipelines.dense makes frames.
"""

from __future__ import annotations

import numpy as np

UNIT = 1000.0


def axes(frame: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Matrices f64 [B 2 2] and origins [B 2] of frames [B 3 2]: seen = matrix @ original + origin."""
    frame = np.asarray(frame, np.float64)
    origin = frame[:, 0]
    return np.swapaxes((frame[:, 1:] - origin[:, None]) / UNIT, 1, 2), origin


def original_points(points: np.ndarray, frame: np.ndarray) -> np.ndarray:
    """Points [B n 2] of the seen images, in pixels of the originals; f64 [B n 2]. frame f32 [B 3 2]."""
    matrix, origin = axes(frame)
    moved = np.asarray(points, np.float64) - origin[:, None]
    return np.einsum("bij,bnj->bni", np.linalg.inv(matrix), moved)


def original_map(values: np.ndarray, frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Values [h w K] of a seen image on the grid of its original, f32 [H W K]: bilinear, the nearest beyond the edges.

    frame f32 [3 2]; size: (H, W).
    """
    from scipy import ndimage

    matrix, origin = (part[0] for part in axes(frame[None]))
    flip = np.array([[0, 1], [1, 0]])  # scipy counts rows first
    out = np.empty((*size, values.shape[-1]), np.float32)
    for k in range(values.shape[-1]):
        ndimage.affine_transform(
            values[..., k], flip @ matrix @ flip, origin[::-1], size, out[..., k], order=1, mode="nearest"
        )
    return out
