"""Examine photographs with a task set, such as `fundax-small`: what they are, labels, landmarks and vessels.

An answer is sure if, in cross-validation, most of the answers with this score or more were right; the model card states how
many. Classifiers that see the same pixels share one pass of the encoder."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from rich.progress import track
from rich.table import Table

from data_pipelines.images.decode import load
from data_pipelines.records import modality_name
from fundax.inference import landmarks, segmentation
from fundax.inference.answers import SUFFIXES, check_out, write_rows
from fundax.inference.labels import names_of
from fundax.inference.outputs import names_for
from fundax.inference.photographs import files_of, read_photograph
from fundax.interop.checkpoint import Checkpoint
from fundax.interop.pretrained import located
from fundax.interop.task_set import read_about, read_task_set
from fundax.objectives.dense import Landmark, Segment
from fundax.objectives.ensemble import Ensemble
from fundax.types import UserError

MARKS = {"disc": (90, 220, 255), "fovea": (255, 225, 70)}
VESSEL = (70, 255, 120)
DISCLAIMER = "not a medical device"
UNUSUAL = "unusual image"  # its features are further from those of the training images than 99 % of these are


@dataclass(frozen=True)
class Answer:
    """One answer about an image.

    Attributes:
        image: the file.
        question: what is answered, in words.
        answer: a class in words, or a position (x, y) in pixels of the image.
        score: probability of the class, or the largest probability of the heat map.
        sure: "yes", "no", or why not.
        x, y: a position; None of a class.
    """

    image: str
    question: str
    answer: str
    score: float
    sure: str
    x: float | None = None
    y: float | None = None


@dataclass(frozen=True, eq=False)
class Examiner:
    """The tasks of a task set by name, and what is known about them; created by `read_examiner`."""

    tasks: Mapping[str, Checkpoint]
    about: Mapping[str, Mapping[str, Any]]

    def examine(self, photograph: np.ndarray, image: str = "", modality: str = "") -> list[Answer]:
        """All answers about a photograph u8 [H W 3]; only the first if it is unlike all images of the training.

        image: its name in the answers.
        modality: its modality ("CFP", "OCT"), which the model recognises if it is not given.
        """
        seen: dict[str, Answer] = {}
        found = [] if modality else self._classes(photograph, "", seen)
        if any(one.sure == UNUSUAL for one in found):
            return [replace(one, image=image) for one in found]
        modality = modality or self.modality_of(found)
        found += self._classes(photograph, modality, seen)
        unusual = any(one.sure == UNUSUAL for one in found)
        for name in self._named(modality, Landmark):
            found += self._points(photograph, name, unusual)
        return [replace(one, image=image) for one in found]

    def modality_of(self, answers: Sequence[Answer]) -> str:
        """The modality that the first of the answers says; "" if it says none, or the image is unlike all of the training."""
        kinds = next((facts["kinds"] for facts in self.about.values() if "kinds" in facts), {})
        modalities = {facts["title"]: facts["modality"] for facts in kinds.values()}
        return modalities.get(answers[0].answer, "") if answers and answers[0].sure != UNUSUAL else ""

    def vessels(self, photograph: np.ndarray, modality: str) -> np.ndarray | None:
        """Mask bool [H W] of the segmentation for images of a modality; None without one."""
        models = [self.tasks[name] for name in self._named(modality, Segment)]
        return next(segmentation.masks(models[0], models[0].extra, [photograph]))[..., 0] if models else None

    def _named(self, modality: str, kind: type) -> list[str]:
        """The tasks of a kind of objective for a modality."""
        tasks = self.tasks.items()
        return [
            name for name, one in tasks if self.about[name]["modality"] == modality and isinstance(one.objective, kind)
        ]

    def _classes(self, photograph: np.ndarray, modality: str, seen: dict[str, Answer]) -> list[Answer]:
        """Answers of the classifiers for a modality. Those of others in the same pass of the encoder are kept in `seen`."""
        wanted = self._named(modality, Ensemble)
        for name in wanted:
            if name not in seen:
                seen.update(self._asked(photograph, self._with_same_pixels(name)))
        return [seen[name] for name in wanted]

    def _with_same_pixels(self, name: str) -> list[str]:
        """The classifiers that see images as the classifier `name` does."""
        wanted = _pixels_of(self.tasks[name])
        tasks = self.tasks.items()
        return [key for key, one in tasks if isinstance(one.objective, Ensemble) and _pixels_of(one) == wanted]

    def _asked(self, photograph: np.ndarray, names: Sequence[str]) -> dict[str, Answer]:
        models = [self.tasks[name] for name in names]
        pixels = read_photograph(photograph, models[0].preprocessing)
        objectives = tuple(one.objective for one in models)
        out = _forward(objectives, [one.params for one in models], [one.extra for one in models], pixels[None])
        each = zip(names, out["probabilities"], out["distance"], strict=True)
        return {name: self._answer(name, np.asarray(p)[0], float(unusual[0])) for name, p, unusual in each}

    def _answer(self, name: str, p: np.ndarray, distance: float) -> Answer:
        facts, classes = self.about[name], names_of(self.tasks[name])
        p = np.array([1 - p[0], p[0]]) if len(p) == 1 else p
        best = int(p.argmax())
        word = facts.get("kinds", {}).get(classes[best], {}).get("title", classes[best])
        sure = "yes" if p[best] >= facts["sure"] else "no"
        return Answer("", facts["title"], word, float(p[best]), UNUSUAL if distance > facts["usual"] else sure)

    def _points(self, photograph: np.ndarray, name: str, unusual: bool) -> list[Answer]:
        model, facts = self.tasks[name], self.about[name]
        ((xy, confidence),) = landmarks.points(model, model.extra, [photograph])
        return [
            Answer(
                "", f"{facts['title']}: {point}", f"({x:.0f}, {y:.0f})", float(score),
                UNUSUAL if unusual else "yes" if score >= facts["sure"][point] else "no", float(x), float(y),
            )
            for point, (x, y), score in zip(model.objective.names, xy, confidence, strict=True)
        ]  # fmt: skip


def read_examiner(path: str | Path) -> Examiner:
    """The task set in a folder, on the device. Raises UserError if it is damaged."""
    folder, placed = located(path), {}

    def place(leaf: np.ndarray) -> jax.Array:  # once, although all tasks have the arrays of the encoder
        if id(leaf) not in placed:
            placed[id(leaf)] = jnp.asarray(leaf)
        return placed[id(leaf)]

    tasks = read_task_set(folder)
    on_device = {
        name: replace(one, params=jax.tree.map(place, one.params), extra=jax.tree.map(place, one.extra))
        for name, one in tasks.items()
    }
    return Examiner(on_device, read_about(folder))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `launch.py predict` for a task set."""
    parser.add_argument("images", nargs="*", help="photographs to examine, or folders of them")
    parser.add_argument("--image", nargs="+", default=[], help="further ones, as for other models")
    parser.add_argument(
        "--modality", default="", help="modality of the photographs (CFP, OCT); recognised if not given"
    )
    parser.add_argument(
        "--out", help="CSV or JSON file of the answers, or a folder, which also gets vessels and pictures"
    )


def run(path: str | Path, given: argparse.Namespace) -> Table:
    """Examine from the parsed arguments; returns what `launch.py predict` prints."""
    images = files_of([*given.images, *given.image])
    if not images:
        raise UserError("predict: name photographs, or folders of them")
    out, modality = Path(given.out or ""), modality_name(given.modality) if given.modality else ""
    folder = out if given.out and out.suffix.lower() not in SUFFIXES else None
    table_file = _made(folder) / "answers.csv" if folder else given.out
    check_out(table_file)
    examiner = read_examiner(path)
    named = zip(images, names_for(images, (".png", "_vessels.png")), strict=True)
    rows: list[dict[str, Any]] = []
    for image, name in track(named, "examining", len(images), transient=True, disable=len(images) < 2):
        photograph = load(image)
        answers = examiner.examine(photograph, str(image), modality)
        if folder:
            vessels = examiner.vessels(photograph, modality or examiner.modality_of(answers))
            _draw(folder / name, photograph, answers, vessels)
        rows += map(asdict, answers)
    write_rows(table_file, rows)
    return _table(rows, len(images) > 1, f"written to {out}" if given.out else "")


def _made(folder: Path) -> Path:
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; expected a folder, or a file that ends in {' or '.join(SUFFIXES)}")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _table(rows: Sequence[Mapping[str, Any]], several: bool, note: str) -> Table:
    caption = "; ".join(filter(None, (note, DISCLAIMER)))
    table = Table(*(["image"] if several else []), "question", "answer", "score", "sure", caption=caption)
    for row in rows:
        first = [Path(row["image"]).name] if several else []
        table.add_row(*first, row["question"], row["answer"], f"{row['score']:.3f}", row["sure"])
    return table


def _pixels_of(model: Checkpoint) -> dict[str, Any]:
    """The preprocessing of the images of a model."""
    return {name: value for name, value in model.preprocessing.items() if name not in ("classes", "names")}


@functools.partial(jax.jit, static_argnums=0)
def _forward(objectives: tuple[Any, ...], params: Any, extra: Any, image: Any) -> dict[str, list[jax.Array]]:
    """Probabilities [B K] of classifiers on one frozen encoder, and the distance [B] of the features from those they know."""
    feature, _ = objectives[0].tower.features(params[0], extra[0], {"image": image})
    out: dict[str, list[jax.Array]] = {"probabilities": [], "distance": []}
    for one, tree, state in zip(objectives, params, extra, strict=True):
        out["probabilities"].append(one.forward(tree, state, {"feature": feature})["probabilities"])
        out["distance"].append(distance(feature, state))
    return out


def distance(feature: jax.Array, extra: Any) -> jax.Array:
    """Mean square of features f32 [B C], standardised as the heads of an ensemble do; about 1 for images of the training.

    A square counts as at most 100, so that a feature that hardly varies in the training does not decide.
    """
    norm = extra["members"]["head"]["norm"]
    z = (feature[:, None] - norm["mean"][None]) / jnp.sqrt(norm["var"][None] + 1e-12)  # [B members C]
    return jnp.minimum(z**2, 100.0).mean((1, 2))


def _draw(stem: Path, photograph: np.ndarray, answers: Sequence[Answer], vessels: np.ndarray | None) -> None:
    """A picture of the photograph with its marks, and its mask of vessels."""
    if vessels is not None:
        segmentation.picture(vessels[..., None]).save(stem.with_name(f"{stem.name}_vessels.png"))
    drawn(photograph, answers, vessels).save(stem.with_name(f"{stem.name}.png"))


def drawn(photograph: np.ndarray, answers: Sequence[Answer], vessels: np.ndarray | None) -> Image.Image:
    """The photograph u8 [H W 3] with vessels, disc and fovea marked, and the answers below it."""
    pixels = photograph.copy()
    if vessels is not None:
        pixels[vessels] = (0.45 * pixels[vessels] + 0.55 * np.array(VESSEL)).astype(np.uint8)
    picture = Image.fromarray(pixels)
    size = max(picture.width // 50, 10)
    draw = ImageDraw.Draw(picture)
    for one in answers:
        if one.x is not None and one.y is not None and one.sure == "yes":
            name = one.question.rpartition(": ")[2]
            colour = MARKS.get(name, (255, 255, 255))
            draw.ellipse(
                (one.x - size, one.y - size, one.x + size, one.y + size), outline=colour, width=max(size // 6, 2)
            )
            draw.text((one.x + 1.2 * size, one.y - size), name, fill=colour, font_size=size)
    lines = [f"{one.question}: {one.answer}  ({_sureness(one)})" for one in answers if one.x is None]
    page = Image.new("RGB", (picture.width, picture.height + int(1.5 * size * (len(lines) + 1))), "white")
    page.paste(picture)
    writer, font = ImageDraw.Draw(page), ImageFont.load_default(size)
    for k, line in enumerate([*lines, DISCLAIMER]):
        grey = (110, 110, 110) if k == len(lines) else (20, 20, 20)
        writer.text((size, picture.height + size * (0.25 + 1.5 * k)), line, fill=grey, font=font)
    return page


def _sureness(one: Answer) -> str:
    return f"{100 * one.score:.0f} %, " + {"yes": "sure", "no": "not sure"}.get(one.sure, one.sure)
