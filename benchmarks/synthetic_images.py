"""Measure the Fréchet distance of synthetic eyes to real ones.

    python benchmarks/synthetic_images.py --images synthetic --encoder runs/quickstart

`--images` is a folder written by `launch.py synth`. Here, real eyes are those of data_pipelines.synthetic. Prints the
distances of held-out eyes, in the features of --encoder, to other held-out eyes (the lower bound), to the synthetic images,
and to blurred and noised eyes. The distance to synthetic images should be below half of the distance to blurred eyes.
Writes a contact sheet.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image
from record import Table, record
from rich.progress import track

from data_pipelines.images.decode import load
from data_pipelines.synthetic.sources import Eyes
from data_pipelines.transforms.steps import preprocess
from fundax.interop.read import read_objective
from fundax.metrics.generative import frechet
from fundax.runtime.checkpoint import load_params
from fundax.runtime.workdir import read_json
from fundax.types import UserError

FEATURES = ("features", "image_raw", "image_features")  # the first output of the model among these is used
BLUR, NOISE = 1 / 32, 0.1  # of the degraded eyes: Gaussian as a fraction of the side, noise as a fraction of the range
LEVELS = ((BLUR / 2, NOISE / 2), (BLUR, NOISE), (2 * BLUR, 2 * NOISE))


class Encoder:
    """Computes the image features of a run."""

    def __init__(self, run: str | Path) -> None:
        self._objective = read_objective(run)
        self._state = jax.tree.map(jax.numpy.asarray, load_params(run))
        self._preprocessing = read_json(Path(run) / "preprocessing.json")
        self._forward: Any = jax.jit(self._objective.forward)

    def __call__(self, images: np.ndarray, batch: int = 50) -> np.ndarray:
        """Features f32 [n D] of images u8 [n h w 3], which are normalised as colour photographs."""
        results = []
        for at in track(range(0, len(images), batch), "features", transient=True):
            pixels = np.stack([preprocess(image, self._preprocessing) for image in images[at : at + batch]])
            out = self._forward(*self._state, {"image": pixels, "modality": np.zeros(len(pixels), np.int32)})
            name = next((name for name in FEATURES if name in out), None)
            if name is None:
                raise UserError(f"the encoder gives {', '.join(out)}; expected one of {', '.join(FEATURES)}")
            results.append(np.asarray(out[name], np.float32))
        return np.concatenate(results)


def degraded(images: np.ndarray, blur: float, noise: float, seed: int = 0) -> np.ndarray:
    """Blur images u8 [n h w 3] with a Gaussian (sigma is `blur` times the side), and add normal noise (`noise` times 255)."""
    from scipy.ndimage import gaussian_filter

    sigma = blur * images.shape[1]
    smooth = gaussian_filter(images.astype(np.float32), (0, sigma, sigma, 0))
    drawn = np.random.default_rng(seed).standard_normal(images.shape, np.float32)
    return np.clip(smooth + 255 * noise * drawn, 0, 255).round().astype(np.uint8)


def read_images(folder: Path) -> np.ndarray:
    """Read the images u8 [n h w 3] of a manifest. Raises UserError for an image that is not marked as synthetic."""
    path = folder / "manifest.csv"
    if not path.is_file():
        raise UserError(f"{path}: no such file; expected the output of `launch.py synth`")
    with path.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if wrong := [row["image"] for row in rows if row.get("synthetic") != "yes"]:
        raise UserError(f"{path}: {wrong[0]} is not marked as synthetic")
    return np.stack([load(folder / row["image"]) for row in rows])


def eyes(n: int, size: int, start: int) -> np.ndarray:
    """Rendered eyes u8 [n size size 3] that are not used in training."""
    return np.stack(list(_views(Eyes(n, size=size, start=start))))


def _views(source: Eyes) -> Iterator[np.ndarray]:
    for row in track(range(len(source)), "eyes", transient=True):
        yield load(source[row].views[0].image)


def contact_sheet(drawn: np.ndarray, real: np.ndarray, path: Path, columns: int = 12, rows: int = 4) -> None:
    """Draw synthetic images above and rendered eyes below a white line, each enlarged to at least 96 pixels."""
    scale = max(96 // drawn.shape[1], 1)
    parts = [_grid(images[: columns * rows], columns, scale) for images in (drawn, real[: columns * 2])]
    line = np.full((8, parts[0].shape[1], 3), 255, np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate([parts[0], line, parts[1]])).save(path, quality=85)


def _grid(images: np.ndarray, columns: int, scale: int) -> np.ndarray:
    images = images[: len(images) // columns * columns]
    n, h, w, _ = images.shape
    sheet = images.reshape(n // columns, columns, h, w, 3).swapaxes(1, 2).reshape(n // columns * h, columns * w, 3)
    picture = Image.fromarray(sheet)
    return np.asarray(picture.resize((sheet.shape[1] * scale, sheet.shape[0] * scale), Image.Resampling.BICUBIC))


def main() -> None:
    """Measure and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path, required=True, help="folder written by launch.py synth")
    parser.add_argument("--encoder", required=True, help="CLIP or VisionFM run that computes the features")
    parser.add_argument("--sheet", type=Path, default=Path("docs/pictures/synthetic_eyes.jpg"), help="contact sheet")
    parser.add_argument("--no-keep", action="store_true", help="do not write benchmarks/results")
    options = parser.parse_args()
    drawn, encode = read_images(options.images), Encoder(options.encoder)
    n, size = len(drawn), drawn.shape[1]
    real, other = eyes(n, size, 2_000_000), eyes(n, size, 3_000_000)
    contact_sheet(drawn, other, options.sheet)
    held_out = encode(real)
    results = {
        "other held-out eyes": frechet(held_out, encode(other)),
        "synthetic images": frechet(held_out, encode(drawn)),
    }
    for blur, noise in LEVELS:
        name = f"blurred by {blur * size:.1f} px, noise {100 * noise:.0f} %"
        results[name] = frechet(held_out, encode(degraded(other, blur, noise)))
    bar = results[f"blurred by {BLUR * size:.1f} px, noise {100 * NOISE:.0f} %"]
    columns = ("images", "Fréchet distance", "relative to the blurred eyes")
    rows = [(name, f"{value:.4f}", f"{value / bar:.2f}") for name, value in results.items()]
    table = Table(f"Fréchet distance of {n} images of {size} px to held-out eyes", columns, rows)
    record(f"synthetic_images_{Path(options.encoder).name}", [table], keep=not options.no_keep)
    verdict = "below" if results["synthetic images"] < bar / 2 else "NOT below"
    print(f"synthetic images are {verdict} half of the blurred eyes; contact sheet: {options.sheet}")


if __name__ == "__main__":
    main()
