"""A sheet of the images an evaluation went worst and best on, out of the pictures it kept."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from fundax.types import UserError

KEYS = ("pictures", "picture_index", "picture_score")  # u8 [T h w 3], i [T], f [T]: ascending scores


def draw_cases(workdir: str | Path) -> list[Path]:
    """figures/NAME_cases.png for every evals/NAME.npz with KEYS (segmentation, landmarks). Returns the paths written."""
    written = []
    for file in sorted((Path(workdir) / "evals").glob("[!.]*.npz")):
        with np.load(file, allow_pickle=False) as stored:
            if set(KEYS) <= set(stored):
                pictures, index, score = (stored[key] for key in KEYS)
                written.append(cases(pictures, index, score, Path(workdir) / "figures" / f"{file.stem}_cases.png"))
    return written


def cases(pictures: np.ndarray, index: np.ndarray, score: np.ndarray, path: str | Path) -> Path:
    """Pictures two in a row, each with its row of the data (from 0) and its score. Returns the path written.

    Raises UserError for pictures that are none.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if pictures.ndim != 4 or not len(pictures):
        raise UserError(f"pictures {pictures.shape}; expected [T h w 3]")
    rows, aspect = math.ceil(len(pictures) / 2), pictures.shape[2] / pictures.shape[1]
    figure = Figure(figsize=(9.4, (4.6 / aspect + 0.3) * rows), layout="constrained")
    FigureCanvasAgg(figure)
    for at, axes in enumerate(figure.subplots(rows, 2, squeeze=False).ravel()):
        axes.set_axis_off()
        if at < len(pictures):
            axes.imshow(pictures[at])
            axes.set_title(f"row {index[at]}: {score[at]:.3g}", loc="left", fontsize=9)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, bbox_inches="tight", pad_inches=0.1)
    return Path(path)
