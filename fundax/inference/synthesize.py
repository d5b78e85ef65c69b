"""Sample synthetic images from a diffusion run: labelled PNG files, a manifest, and a check for memorisation."""

from __future__ import annotations

import csv
import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from rich.progress import Progress

from data_pipelines.language.conditions import FINDINGS
from data_pipelines.pipeline import Data
from data_pipelines.records import MODALITIES, modality_name
from fundax.config import load
from fundax.evals.denoising import Denoising
from fundax.interop.folder import fresh_folder
from fundax.interop.read import read_objective
from fundax.metrics.generative import draw_pairs, memorised, nearest
from fundax.objectives.diffusion import Diffusion
from fundax.recipe import Recipe
from fundax.runtime.checkpoint import load_params, resolve
from fundax.runtime.workdir import read_config, read_optional_json, write_json
from fundax.train.rerun import trusted_config
from fundax.types import UserError

MARK = "synthetic"
COLUMNS = ("image", MARK, "model", "checkpoint", "seed", "sampler", "steps", "guidance", "modality", "findings")
CHECKED = ("neighbour", "neighbour_distance")


@dataclass(frozen=True)
class How:
    """Sampling options; see Diffusion.sample. `seed` is the seed of the first image; image i uses seed + i."""

    seed: int = 0
    steps: int = 50
    sampler: str = "ddim"
    guidance: float = 1.0
    findings: tuple[str, ...] | None = None  # None: copied from the training data, row by row
    modality: str = ""
    batch: int = 32


@dataclass(frozen=True, eq=False)
class Generator:
    """The diffusion model of a run."""

    name: str
    step: int
    objective: Diffusion
    average: Any
    modality: str = ""

    def draw(self, batch: Mapping[str, Any], how: How) -> np.ndarray:
        """Sample images u8 [B h w 3] from the seeds in the batch, `seed` i32 [B]."""
        fields = (self.objective, how.steps, how.sampler, how.guidance)
        return np.asarray(_draw(*fields, {"average": self.average}, dict(batch)))


def read_generator(run: str | Path, checkpoint: int | str = "") -> Generator:
    """Load the model of a diffusion run. Raises UserError for another kind of run."""
    read_config(run)
    objective = read_objective(run)
    if not isinstance(objective, Diffusion):
        raise UserError(f"{run} holds {type(objective).__name__}; expected a run of configs/diffusion.py")
    step = resolve(run, checkpoint)
    average = jax.tree.map(jax.numpy.asarray, load_params(run, step)[1]["average"])
    modality = read_optional_json(Path(run) / "preprocessing.json").get("modality", "")
    return Generator(Path(run).resolve().name, step, objective, average, modality)


def synthesize(
    run: str | Path,
    out: str | Path,
    n: int,
    how: How = How(),
    *,
    checkpoint: int | str = "",
    base: str | Path | None = None,
    check: bool = True,
    overwrite: bool = False,
    trust: bool = False,
) -> dict[str, Any]:
    """Write n images, each marked as synthetic, to out/images, and out/manifest.csv; returns the content of report.json.

    Args:
        run: a diffusion run. For the super-resolution stage of a cascade, give the base stage as `base`.
        base: the run whose images `run` enlarges.
        check: find the nearest training image of each image (neighbours.png, and columns of the manifest). This reads
            the training data of the run, as described by its config.
        overwrite: replace `out` if it is not empty.
        trust: run the copy of the config in the run, even if it is not one of fundax's configs (rerun.trusted_config).

    The folder is created once everything is written. Raises UserError for another kind of run, and for conditions that
    the run does not support.
    """
    if n < 1 or how.batch < 1 or not 0 <= how.seed < 2**31 - n:
        raise UserError(f"n={n}, batch={how.batch}, seed={how.seed}; expected n and batch >= 1, 0 <= seed < 2^31 - n")
    models = [read_generator(run, checkpoint)]
    if base is not None:
        models.insert(0, read_generator(base))
    _check_cascade(models, str(run))
    recipe = _recipe_of(run, trust) if check or _conditioned(models) else None
    with fresh_folder(out, overwrite) as folder, Progress() as progress:
        images, rows = _draw_all(models, n, how, recipe, progress)
        report: dict[str, Any] = {"images": n, "model": models[-1].name, MARK: True}
        if check and recipe is not None:
            found = nearest(images, _training(recipe, progress))
            unseen = nearest(held_out(recipe), _training(recipe, progress))
            report |= memorised(found.distance, unseen.distance)
            draw_pairs(images, found, unseen.distance, folder / "neighbours.png")
            for row, index, distance in zip(rows, found.index, found.distance, strict=True):
                row |= {"neighbour": int(index), "neighbour_distance": f"{distance:.2f}"}
        _write(folder, images, rows)
        write_json(folder / "report.json", report)
    return report


def summary(out: str | Path, report: Mapping[str, Any]) -> str:
    """A text summary of the report of `synthesize`."""
    lines = [f"{out}: {report['images']} images of {report['model']}, all marked as synthetic (manifest.csv)"]
    if "copies" in report:
        lines.append(
            "nearest training image, root mean square in grey levels: "
            f"drawn {report['median_samples']:.1f} (closest {report['closest_samples']:.1f}), "
            f"held out {report['median_unseen']:.1f} (closest {report['closest_unseen']:.1f}); "
            f"{report['copies']:.0f} drawn closer than half the closest held-out one: see {Path(out) / 'neighbours.png'}"
        )
    return "\n".join(lines)


def held_out(recipe: Recipe) -> np.ndarray:
    """The held-out images u8 [n h w 3] on which a diffusion recipe evaluates its error."""
    passes = [one.data for one in recipe.evals.values() if isinstance(one, Denoising)]
    if not passes:
        raise UserError("the run's config holds out no images, so there is nothing to compare neighbours with")
    return np.concatenate([batch["image"][batch["valid"]] for data in passes for batch in data()])


def _recipe_of(run: str | Path, trust: bool) -> Recipe:
    return load(trusted_config(run, trust), read_config(run).get("argv", []))[0]


def _check_cascade(models: Sequence[Generator], run: str) -> None:
    last = models[-1].objective
    if bool(last.low_size) != (len(models) > 1):
        raise UserError(
            f"{run} enlarges images of {last.low_size} pixels: give the run that draws them as the base"
            if last.low_size
            else f"{run} draws images by itself and takes no base"
        )
    if len(models) > 1 and (models[0].objective.low_size or models[0].objective.size != last.low_size):
        raise UserError(f"{run} enlarges images of {last.low_size} pixels, the base draws {models[0].objective.size}")


def _conditioned(models: Sequence[Generator]) -> bool:
    return any(model.objective.condition_width for model in models)


def _draw_all(
    models: Sequence[Generator], n: int, how: How, recipe: Recipe | None, progress: Progress
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Sample all images u8 [n h w 3]; also returns the rows of the manifest."""
    conditions = _conditions(models, n, how, recipe) if _conditioned(models) else {}
    task = progress.add_task("images", total=n)
    images, rows = [], []
    for at in range(0, n, how.batch):
        seeds = np.arange(at, at + how.batch, dtype=np.int32) + np.int32(how.seed)  # a full batch, so one compilation
        part = {key: np.resize(v[at : at + how.batch], (how.batch, *v.shape[1:])) for key, v in conditions.items()}
        batch = {"seed": seeds, **part}
        drawn = models[0].draw(batch, how)
        for model in models[1:]:
            drawn = model.draw(batch | {"low": drawn}, how)
        count = min(how.batch, n - at)
        images.append(drawn[:count])
        rows += [_row(models, how, {k: v[i] for k, v in batch.items()}) for i in range(count)]
        progress.advance(task, count)
    return np.concatenate(images), rows


def _row(models: Sequence[Generator], how: How, one: Mapping[str, Any]) -> dict[str, Any]:
    modality = MODALITIES[int(one["modality"])] if "modality" in one else how.modality or models[0].modality
    present = [FINDINGS[k] for k in np.flatnonzero(one["findings"])] if "findings" in one else []
    return {
        MARK: "yes",
        "model": "+".join(model.name for model in models),
        "checkpoint": "+".join(str(model.step) for model in models),
        "seed": int(one["seed"]),
        "sampler": how.sampler,
        "steps": how.steps,
        "guidance": how.guidance,
        "modality": modality,
        "findings": "; ".join(present),
    }


def _conditions(models: Sequence[Generator], n: int, how: How, recipe: Recipe | None) -> dict[str, np.ndarray]:
    """Conditions of each image: those requested; the others are copied from the training rows in order."""
    objective = next(m.objective for m in models if m.objective.condition_width)
    found: dict[str, np.ndarray] = {}
    if how.modality and objective.modalities:
        found["modality"] = np.full(n, MODALITIES.index(modality_name(how.modality)), np.int32)
    if how.findings is not None:
        if not objective.findings:
            raise UserError("this model is not conditioned on findings; train with --conditional")
        if wrong := [name for name in how.findings if name not in FINDINGS]:
            raise UserError(f"findings {', '.join(wrong)} are unknown; expected some of {', '.join(FINDINGS)}")
        found["findings"] = np.tile(np.array([k in how.findings for k in FINDINGS], np.float32), (n, 1))
    wanted = [k for k, used in (("modality", objective.modalities), ("findings", objective.findings)) if used]
    missing = [key for key in wanted if key not in found]
    if missing and recipe is not None:
        batches = list(itertools.islice(_batches(recipe), -(-n // recipe.batch)))
        found |= {k: np.resize(np.concatenate([b[k] for b in batches]), (n, *batches[0][k].shape[1:])) for k in missing}
    return found


def _batches(recipe: Recipe) -> Iterator[Mapping[str, np.ndarray]]:
    """One pass over the training data of a recipe, without the padding of the last batch."""
    if not isinstance(recipe.train, Data):
        raise UserError("the run's training data cannot be read again; draw without the check")
    for data in recipe.train.passes():
        for batch in data():
            yield {key: value[batch["valid"]] for key, value in batch.items()}


def _training(recipe: Recipe, progress: Progress) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the row numbers and images of all training data, batch by batch."""
    task, seen = progress.add_task("neighbours", total=None), 0
    for batch in _batches(recipe):
        rows = np.arange(seen, seen + len(batch["image"]))
        seen += len(rows)
        yield rows, batch["image"]
        progress.update(task, completed=seen)
    progress.update(task, total=seen)


def _write(folder: Path, images: np.ndarray, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the manifest and the PNG files; text fields in each PNG record how it was made."""
    (folder / "images").mkdir()
    checked = [name for name in CHECKED if name in rows[0]]
    with (folder / "manifest.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*COLUMNS, *checked])
        writer.writeheader()
        for number, (image, row) in enumerate(zip(images, rows, strict=True)):
            name = f"images/{MARK}_{number:06d}.png"
            words = PngInfo()
            words.add_text("Synthetic", "yes: made by a diffusion model, no photograph of a patient")
            words.add_text("Software", "fundax")
            for key in ("model", "checkpoint", "seed", "sampler", "steps", "guidance"):
                words.add_text(key.capitalize(), str(row[key]))
            Image.fromarray(image).save(folder / name, pnginfo=words)
            writer.writerow({"image": name, **row})


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _draw(
    objective: Diffusion, steps: int, sampler: str, guidance: float, extra: Any, batch: Mapping[str, Any]
) -> jax.Array:
    return objective.sample(extra, batch, steps, sampler, guidance)  # type: ignore[arg-type]
