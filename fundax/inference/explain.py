"""Attention, Grad-CAM and similarity maps over photographs: overlays, a sheet of all maps, a strip over training steps.

Maps are resampled to the photograph's pixels. `inside` measures the share of attention that lies in a mask."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image
from rich.progress import track

from data_pipelines.geometry import Crop
from data_pipelines.images import decode as files
from data_pipelines.images.masks import load_mask
from data_pipelines.records import MODALITIES, modality_name
from data_pipelines.transforms.steps import preprocess
from fundax.encoders.backbone import normalized, tower_of
from fundax.encoders.saliency import class_attention
from fundax.encoders.vit import ViT
from fundax.inference.model import Model, load
from fundax.inference.outputs import names_for
from fundax.inference.saliency import points_at, saliency_maps
from fundax.interop.folder import fresh_folder
from fundax.interop.pretrained import located
from fundax.interop.read import is_run, read_objective, read_preprocessing
from fundax.interop.task_set import set_of
from fundax.interop.weights import find_file
from fundax.runtime.checkpoint import load_params, resolve, saved_steps
from fundax.types import Params, UserError

Maps = dict[str, np.ndarray]  # mean and rollout f32 [r c], heads f32 [H r c]
COLOURS = "inferno"
ATTENTION = ("Mean of heads", "Rollout", "Head ")  # titles of attention maps begin so


@dataclass(frozen=True, eq=False)
class Looker:
    """The ViT of one checkpoint, ready to compute attention maps."""

    objective: Any
    tower: ViT
    params: Params
    preprocessing: Mapping[str, Any]
    step: int | str
    row: int = 0  # the row of the objective's means to normalise by, if it has one per modality

    def __call__(self, photographs: np.ndarray) -> Maps:
        """Attention maps of images u8 [B s s 3] at the model's size; each map has a leading [B]."""
        image = normalized(self.objective, photographs, self.row)
        return jax.device_get(_maps(self.tower, self.params, image))

    def look(self, photograph: np.ndarray) -> Maps:
        """Attention maps of one photograph u8 [H W 3] of any size."""
        return {name: value[0] for name, value in self(preprocess(photograph, self.preprocessing)[None]).items()}


def read_looker(run: str | Path, checkpoint: int | str = "", modality: str = "CFP") -> Looker:
    """Load the ViT of a run's checkpoint. Raises UserError if the run has no ViT."""
    if not is_run(run):
        raise UserError(f"{run} is not a run of fundax: it has no checkpoints")
    objective, step = read_objective(run), resolve(run, checkpoint)
    tower, weights = tower_of(objective, *load_params(run, step))
    fitting = {"image_size": tower.image_size} | read_preprocessing(run, objective)
    return Looker(objective, tower, weights, fitting, step, MODALITIES.index(modality_name(modality)))


def looker_of(model: Model, step: int | str = 0) -> Looker | None:
    """The attention of a model that is open; None if its image encoder is not a ViT with a class token."""
    tower = model.objective.image
    if not isinstance(tower, ViT) or not tower.class_token:
        return None
    tower, weights = tower_of(model.objective, model.params, model.extra, model.row)
    return Looker(model.objective, tower, weights, model.preprocessing, step, model.row)


def explain(
    run: str | Path,
    photographs: Sequence[str | Path],
    out: str | Path,
    *,
    checkpoints: str = "",
    modality: str = "CFP",
    mass: float = 1.0,
    texts: Sequence[str] = (),
    target: str = "",
    masks: Sequence[str | Path] = (),
    overwrite: bool = False,
) -> list[Path]:
    """Write overlays of all maps of each photograph and a sheet of them: attention of a ViT, Grad-CAM, similarity.

    A ViT with a class token gives its mean attention, the rollout and each head. What has an answer gives its Grad-CAM, and
    an image-text model gives two maps for each text (inference.saliency).

    Args:
        checkpoints: best, latest, a step, several steps separated by commas, or all; "" is best if the run selected one.
            With more than one, a strip that compares the attention of the steps is written as well.
        modality: modality of the photographs, for models with one mean and standard deviation per modality.
        mass: 0.6 shows only the patches that hold 60 % of a map's attention, as DINO's figures do; 1 shows all.
        texts: what to look for with an image-text model, such as "hard exudates".
        target: the class, value, structure or landmark to explain; "" takes the likeliest class or the first.
        masks: a mask file of each photograph; explain.json then says whether each map points into it.
        overwrite: replace `out` if it is not empty.

    The overlays show the last of the checkpoints. Raises UserError for a model without an image encoder, and DataError
    naming a photograph or mask that cannot be read. Returns the paths of the pictures.
    """
    if not photographs:
        raise UserError("no photograph to explain; give at least one image file")
    if not 0 < mass <= 1:
        raise UserError(f"mass is {mass}; expected more than 0 and at most 1")
    if masks and len(masks) != len(photographs):
        raise UserError(f"{len(masks)} masks for {len(photographs)} photographs; expected one each, in the same order")
    steps = _steps(run, checkpoints)
    pixels = [files.load(path) for path in photographs]
    inside_of = [load_mask(path) > 0 for path in masks]
    models = [load(run, step, modality=modality) for step in steps]
    lookers = [looker_of(model, step) for model, step in zip(models, steps, strict=True)]
    heads = [f"_head{k + 1}" for looker in lookers[-1:] if looker for k in range(looker.tower.heads)]
    names = names_for(photographs, ("", "_strip", "_mean", "_rollout", *heads))
    facts, pointing = models[-1].preprocessing, {}
    with fresh_folder(out, overwrite) as folder:
        written = []
        for number, (name, photograph) in enumerate(track(list(zip(names, pixels, strict=True)), "photographs")):
            seen = [looker.look(photograph) for looker in lookers if looker is not None]
            maps = _named(seen[-1]) if seen else {}
            saliency = saliency_maps(models[-1], photograph, texts, target)
            shown = maps | {title: one - min(one.min(), 0) for title, one in saliency.items()}
            written += _write(folder, name, photograph, shown, facts, mass)
            if len(seen) > 1:
                over_steps = dict(zip(steps, seen, strict=True))
                written.append(strip(photograph, over_steps, folder / f"{name}_strip.png", facts))
            if masks:
                pointing[name] = _pointing(maps | saliency, inside_of[number], facts)
        sizes = {name: list(image.shape[:2]) for name, image in zip(names, pixels, strict=True)}
        record = {"run": str(run), "steps": list(steps), "photographs": sizes} | (
            {"pointing": pointing} if masks else {}
        )
        (folder / "explain.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return [Path(out) / path.name for path in written]


def _pointing(maps: Mapping[str, np.ndarray], mask: np.ndarray, facts: Mapping[str, Any]) -> dict[str, Any]:
    found = {
        title: points_at(over_photograph(one, mask.shape[0], mask.shape[1], facts), mask) for title, one in maps.items()
    }
    return {title: {"hit": hit, "chance": chance} for title, (hit, chance) in found.items()}


def overlay(
    photograph: np.ndarray, attention: np.ndarray, facts: Mapping[str, Any] = {}, mass: float = 1.0
) -> np.ndarray:
    """Overlay a map f32 [r c] on a photograph at the photograph's resolution; returns u8 [H W 3].

    The colour scale ends at the largest value of the map. The weight of the colour grows with attention, from 0.15 to
    0.65.
    """
    import matplotlib

    shown = attention * top_mass(attention, mass) if mass < 1 else attention
    height, width = photograph.shape[:2]
    heat = over_photograph(shown / max(float(shown.max()), 1e-12), height, width, facts)
    colour = np.asarray(matplotlib.colormaps[COLOURS](np.clip(heat, 0, 1)))[..., :3] * 255
    weight = (0.15 + 0.5 * np.clip(heat, 0, 1))[..., None]
    return np.round(photograph * (1 - weight) + colour * weight).astype(np.uint8)


def sheet(
    photograph: np.ndarray, maps: Mapping[str, np.ndarray], path: Path, facts: Mapping[str, Any], mass: float = 1.0
) -> Path:
    """Write a PNG of the photograph and of every map; titles of attention give the maximum relative to uniform."""
    columns = min(4, len(maps) + 1)
    rows = -(-(len(maps) + 1) // columns)
    figure = _figure(2.6 * columns + 0.2, 2.85 * rows)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for cell in grid:
        cell.set_axis_off()
    grid[0].imshow(photograph)
    grid[0].set_title("Photograph", fontsize=9, loc="left")
    for cell, (title, one) in zip(grid[1:], maps.items(), strict=False):
        attends = title.startswith(ATTENTION)
        cell.imshow(overlay(photograph, one, facts, mass if attends else 1.0))
        cell.set_title(
            f"{title}: at most {one.max() * one.size:.1f} x even" if attends else title, fontsize=8.5, loc="left"
        )
    figure.savefig(path, dpi=130)
    return path


def strip(photograph: np.ndarray, maps: Mapping[Any, Maps], path: Path, facts: Mapping[str, Any]) -> Path:
    """Write a PNG of the maps over training: one column per step, with the mean above the rollout."""
    steps = sorted(maps)
    figure = _figure(2.1 * len(steps) + 0.4, 4.6)
    grid = figure.subplots(2, len(steps), squeeze=False)
    for column, step in enumerate(steps):
        for row, name in enumerate(("mean", "rollout")):
            cell, one = grid[row, column], maps[step][name]
            cell.imshow(overlay(photograph, one, facts))
            cell.set(xticks=[], yticks=[])
            cell.spines[:].set_visible(False)
            cell.set_xlabel(f"at most {one.max() * one.size:.1f} x even", fontsize=8)
        grid[0, column].set_title(f"step {step}", fontsize=9)
    grid[0, 0].set_ylabel("Mean of heads", fontsize=9)
    grid[1, 0].set_ylabel("Rollout", fontsize=9)
    figure.savefig(path, dpi=110)
    return path


def _named(maps: Maps) -> dict[str, np.ndarray]:
    """The attention maps by title."""
    named = {"Mean of heads": maps["mean"], "Rollout": maps["rollout"]}
    return named | {f"Head {k + 1}": head for k, head in enumerate(maps["heads"])}


def _write(
    folder: Path,
    name: str,
    photograph: np.ndarray,
    maps: Mapping[str, np.ndarray],
    facts: Mapping[str, Any],
    mass: float,
) -> Iterator[Path]:
    for title, one in maps.items():
        attends = title.startswith(ATTENTION)
        short = {"Mean of heads": "mean"}.get(title) or re.sub(r"\W+", "" if attends else "_", title.lower())
        path = folder / f"{name}_{short}.png"
        Image.fromarray(overlay(photograph, one, facts, mass if attends else 1.0)).save(path)
        yield path
    yield sheet(photograph, maps, folder / f"{name}.png", facts, mass)


def _steps(run: str | Path, checkpoints: str) -> list[int | str]:
    if not is_run(run):
        try:
            find_file(set_of(located(run)))
        except UserError as error:
            raise UserError(
                f"{run} is not a run of fundax, which would have checkpoints, and holds no weights"
            ) from error
        return [""]
    if checkpoints == "all":
        return list(saved_steps(run))
    return [resolve(run, word.strip()) for word in checkpoints.split(",")]


def _figure(width: float, height: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


@functools.partial(jax.jit, static_argnums=0)
def _maps(tower: ViT, params: Params, image: jax.Array) -> dict[str, jax.Array]:
    return class_attention(tower, params, image)


def top_mass(attention: np.ndarray, share: float) -> np.ndarray:
    """Mask bool [r c] of the fewest patches that hold `share` of the map's sum (0.6 in DINO's figures)."""
    flat = attention.ravel()
    order = np.argsort(-flat, kind="stable")
    before = np.cumsum(flat[order]) - flat[order]
    kept = np.zeros(flat.size, bool)
    kept[order[before < share * flat.sum()]] = True
    return kept.reshape(attention.shape)


def over_photograph(
    attention: np.ndarray, height: int, width: int, facts: Mapping[str, Any] = {}, smooth: bool = True
) -> np.ndarray:
    """Resample a map f32 [r c] to the pixels f32 [height width] of the original photograph.

    facts: preprocessing, which says how the photograph was made square (see eval_step); where the model did not see the
    photograph, the map is 0. smooth: interpolate bilinearly; otherwise all pixels of a patch have its value.
    """
    resize, shown = facts.get("resize", "squash"), facts.get("resize_to") or 0
    part = facts["image_size"] / shown if shown else 1.0  # of what was resized, the model saw this much
    side = {"squash": None, "shortest": min(height, width), "longest": max(height, width), "canvas": max(height, width)}
    high, wide = (round((side[resize] or length) * part) for length in (height, width))
    top, left = (0, 0) if resize == "canvas" else ((high - height) // 2, (wide - width) // 2)
    return Crop(top, left, height, width).pixels(_resized(attention, high, wide, smooth))


def inside(attention: np.ndarray, mask: np.ndarray, field: np.ndarray | None = None) -> tuple[float, float]:
    """The share of the attention and the share of the area that lie in a mask, as a pair.

    attention: f32 [h w]; mask and field: bool [h w]. If `field` (the field of view) is given, both shares are relative to
    it. Raises UserError if the field is empty or contains no attention.
    """
    field = np.ones_like(mask) if field is None else field
    total, area = float(attention[field].sum()), int(field.sum())
    if total <= 0 or not area:
        raise UserError("no attention lies in the field of view")
    both = mask & field
    return float(attention[both].sum()) / total, int(both.sum()) / area


def _resized(attention: np.ndarray, height: int, width: int, smooth: bool) -> np.ndarray:
    from PIL import Image

    how = Image.Resampling.BILINEAR if smooth else Image.Resampling.NEAREST
    return np.asarray(Image.fromarray(np.asarray(attention, np.float32)).resize((width, height), how))
