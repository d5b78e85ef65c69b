"""Segment photographs: masks as PNG files at the resolution of the photographs."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from pathlib import Path

import jax
import numpy as np
from PIL import Image
from rich.progress import track
from rich.table import Table

from data_pipelines.sources.wrap import wrap
from data_pipelines.transforms.dense import Prepared
from fundax.evals.original_grid import original_map, slide
from fundax.evals.pictures import COLOURS
from fundax.evals.segmentation import decided
from fundax.inference.outputs import distinct, name_of_class, names_for
from fundax.inference.photographs import files_of, forward
from fundax.interop.checkpoint import Checkpoint
from fundax.interop.read import load
from fundax.objectives.dense import Segment
from fundax.types import Extra, UserError

OBJECTIVE = Segment  # launch.py predict uses this module for this objective


def masks(
    model: Checkpoint,
    extra: Extra,
    images: Iterable[str | Path | np.ndarray],
    threshold: float = 0.5,
    overlap: float = 0.5,
) -> Iterator[np.ndarray]:
    """Yield the mask bool [H W K] of each photograph over the K classes of the model, at the photograph's resolution.

    images: files, or photographs u8 [H W 3].
    A model with an input smaller than the image is applied in sliding windows, as in its evaluation. Raises DataError
    naming an image that cannot be read.
    """
    objective, facts = model.objective, model.preprocessing
    size = int(facts["image_size"])
    params = jax.tree.map(jax.numpy.asarray, model.params)

    def maps(views: np.ndarray) -> np.ndarray:
        return np.asarray(forward(objective, params, extra, {"image": views})["probability"])

    for photograph in images:
        seen = Prepared(
            wrap([{"image": photograph}]), size, resize=facts["resize"], crop=facts.get("crop_field", False)
        )[0]
        image, window = seen.views[0].image, objective.image.image_size
        assert isinstance(image, np.ndarray)
        values = slide(maps, image, window, overlap) if size > window else maps(image[None])[0]
        original = original_map(values, seen.targets["frame"], tuple(seen.targets["size"]))
        yield decided(original, len(objective.classes), objective.overlapping, threshold)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `launch.py predict` for this kind of model."""
    parser.add_argument("--image", required=True, nargs="+", help="photographs to segment, or folders of them")
    parser.add_argument(
        "--out", required=True, help="folder to write the masks to; existing masks are never overwritten"
    )
    parser.add_argument(
        "--threshold", type=float, default=0.5, help="probability threshold for a single class or overlapping classes"
    )


def run(path: str | Path, given: argparse.Namespace) -> Table:
    """Predict from the parsed arguments; returns a table of the files and the fraction of pixels in each class.

    NAME.png contains class numbers 0, 1, ... like the training masks, or 0 and 255 for a single class. Overlapping
    classes have one file each.
    """
    model, images = load(path, given.checkpoint), files_of(given.image)
    classes, out = model.objective.classes, Path(given.out)
    several = model.objective.overlapping
    endings = [f"_{name}.png" for name in distinct(list(map(name_of_class, classes)))] if several else [".png"]
    names = [[f"{name}{ending}" for ending in endings] for name in names_for(images, endings)]
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; --out is the folder of the masks")
    if taken := [out / name for each in names for name in each if (out / name).exists()]:
        raise UserError(f"{taken[0]} already exists; choose another --out")
    table = Table("image", "mask", *(f"{name}, fraction of pixels" for name in classes))
    predictions = masks(model, model.extra, images, given.threshold)
    progress = track(predictions, "segmenting", len(names), transient=True)
    out.mkdir(parents=True, exist_ok=True)
    for image, each, mask in zip(images, names, progress, strict=True):
        for k, name in enumerate(each):
            picture(mask[..., k : k + 1] if several else mask).save(out / name)
        table.add_row(str(image), str(out / each[0]), *(f"{part:.4f}" for part in mask.mean((0, 1))))
    return table


def picture(mask: np.ndarray) -> Image.Image:
    """Convert a mask bool [H W K] to a palette image of class numbers, or to grey 0 and 255 for a single class."""
    if mask.shape[-1] == 1:
        return Image.fromarray(mask[..., 0].astype(np.uint8) * 255)
    index = (mask * np.arange(1, mask.shape[-1] + 1)).max(-1).astype(np.uint8)
    image = Image.fromarray(index).convert("P")
    image.putpalette([0, 0, 0, *(value for k in range(mask.shape[-1]) for value in COLOURS[k % len(COLOURS)])])
    return image
