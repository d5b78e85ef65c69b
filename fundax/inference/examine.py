"""Examine photographs with a task set, such as `fundax-small`: what they are, labels, landmarks and vessels.

Every answer says whether it is sure: whether answers with such a score were right in cross-validation, as the model card
states. Classifiers that see the same pixels share one pass of the encoder."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
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
from fundax.interop.task_set import facts_of, read_task_set
from fundax.objectives.dense import Landmark, Segment
from fundax.types import UserError

MARKS = {"disc": (90, 220, 255), "fovea": (255, 225, 70)}
VESSEL = (70, 255, 120)
UNUSUAL = "unusual image"  # its features are further from those of the training than 99 % of them are from each other


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

    def examine(self, image: str | Path, modality: str = "") -> list[Answer]:
        """All answers about one image file; only the first if it is unlike all images of the training.

        Raises DataError naming a file that cannot be read.

        modality: modality of the image ("CFP", "OCT"), which the model recognises if it is not given.
        """
        seen: dict[str, Answer] = {}
        found = [] if modality else self._classes(image, "", seen)
        if any(one.sure == UNUSUAL for one in found):
            return found
        modality = modality or self.modality_of(found)
        found += self._classes(image, modality, seen)
        unusual = any(one.sure == UNUSUAL for one in found)
        for name in self._named(modality, Landmark):
            found += self._points(image, name, unusual)
        return found

    def modality_of(self, answers: Sequence[Answer]) -> str:
        """The modality that the first of the answers says; "" if it says none, or the image is unlike all of the training."""
        modalities = {facts["title"]: facts["modality"] for facts in self._kinds().values()}
        return modalities.get(answers[0].answer, "") if answers and answers[0].sure != UNUSUAL else ""

    def vessels(self, image: str | Path, modality: str) -> np.ndarray | None:
        """Mask bool [H W] of the segmentation for images of a modality; None without one."""
        for name in self._named(modality, Segment):
            model = self.tasks[name]
            return next(segmentation.masks(model, model.extra, [image]))[..., 0]
        return None

    def _kinds(self) -> Mapping[str, Any]:
        return next((facts["kinds"] for facts in self.about.values() if "kinds" in facts), {})

    def _named(self, modality: str, kind: type | tuple[type, ...]) -> list[str]:
        return [
            name
            for name, one in self.tasks.items()
            if self.about[name]["modality"] == modality and isinstance(one.objective, kind)
        ]

    def _classes(self, image: str | Path, modality: str, seen: dict[str, Answer]) -> list[Answer]:
        """Answers of the classifiers for a modality. What shares their pass of the encoder is kept in `seen`."""
        dense = (Segment, Landmark)
        wanted = [name for name in self._named(modality, object) if not isinstance(self.tasks[name].objective, dense)]
        for name in wanted:
            if name not in seen:
                seen.update(self._asked(image, self._with_same_pixels(name)))
        return [seen[name] for name in wanted]

    def _with_same_pixels(self, name: str) -> list[str]:
        """The classifiers that see images as the classifier `name` does."""
        wanted = _pixels_of(self.tasks[name])
        several = [key for key, one in self.tasks.items() if not isinstance(one.objective, (Segment, Landmark))]
        return [key for key in several if _pixels_of(self.tasks[key]) == wanted]

    def _asked(self, image: str | Path, names: Sequence[str]) -> dict[str, Answer]:
        models = [self.tasks[name] for name in names]
        pixels = read_photograph(image, models[0].preprocessing)
        objectives = tuple(one.objective for one in models)
        out = _forward(objectives, [one.params for one in models], [one.extra for one in models], pixels[None])
        each = zip(names, out["probabilities"], out["distance"], strict=True)
        return {name: self._answer(image, name, np.asarray(p)[0], float(unusual[0])) for name, p, unusual in each}

    def _answer(self, image: str | Path, name: str, p: np.ndarray, distance: float) -> Answer:
        facts, classes = self.about[name], names_of(self.tasks[name])
        p = np.array([1 - p[0], p[0]]) if len(p) == 1 else p
        best = int(p.argmax())
        word = facts.get("kinds", {}).get(classes[best], {}).get("title", classes[best])
        sure = "yes" if p[best] >= facts["sure"] else "no"
        return Answer(str(image), facts["title"], word, float(p[best]), UNUSUAL if distance > facts["usual"] else sure)

    def _points(self, image: str | Path, name: str, unusual: bool) -> list[Answer]:
        model, facts = self.tasks[name], self.about[name]
        ((xy, confidence),) = landmarks.points(model, model.extra, [image])
        return [
            Answer(
                str(image), f"{facts['title']}: {point}", f"({x:.0f}, {y:.0f})", float(score),
                UNUSUAL if unusual else "yes" if score >= facts["sure"][point] else "no", float(x), float(y),
            )
            for point, (x, y), score in zip(model.objective.names, xy, confidence, strict=True)
        ]  # fmt: skip


def read_examiner(path: str | Path) -> Examiner:
    """The task set in a folder. Raises UserError if it is damaged."""
    folder = located(path)
    tasks = read_task_set(folder)
    return Examiner(tasks, {name: facts_of(folder, name) for name in tasks})


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `launch.py predict` for a task set."""
    parser.add_argument("images", nargs="*", help="photographs to examine, or folders of them")
    parser.add_argument("--image", nargs="+", default=[], help="the same")
    parser.add_argument(
        "--modality", default="", help="modality of the photographs (CFP, OCT); recognised if not given"
    )
    parser.add_argument(
        "--out", help="CSV or JSON file of the answers, or a folder, which also gets vessels and pictures"
    )


def run(path: str | Path, given: argparse.Namespace) -> Table:
    """Examine from the parsed arguments; returns what `launch.py predict` prints."""
    to_file = bool(given.out) and Path(given.out).suffix.lower() in SUFFIXES
    if to_file:
        check_out(given.out)
    images = files_of([*given.images, *given.image])
    if not images:
        raise UserError("predict: name photographs, or folders of them")
    modality = modality_name(given.modality) if given.modality else ""
    examiner = read_examiner(path)
    answers = list(_examined(examiner, images, modality))
    rows = [asdict(one) for each in answers for one in each]
    if to_file:
        write_rows(given.out, rows)
    elif given.out:
        _write(Path(given.out), examiner, images, answers, modality)
    several = len(images) > 1
    table = Table(
        *(["image"] if several else []), "question", "answer", "score", "sure", caption=_caption(given, images)
    )
    for row in rows:
        first = [Path(row["image"]).name] if several else []
        table.add_row(*first, row["question"], row["answer"], f"{row['score']:.3f}", row["sure"])
    return table


def _caption(given: argparse.Namespace, images: Sequence[Path]) -> str:
    if given.out:
        return f"written to {given.out}; not a medical device"
    return f"{images[0].name if len(images) == 1 else f'{len(images)} images'}; not a medical device"


def _examined(examiner: Examiner, images: Sequence[Path], modality: str) -> Iterator[list[Answer]]:
    for image in track(images, "examining", transient=True, disable=len(images) < 2):
        yield examiner.examine(image, modality)


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
    z = (feature[:, None] - norm["mean"][None]) / jax.numpy.sqrt(norm["var"][None] + 1e-12)  # [B members C]
    return jax.numpy.minimum(z**2, 100.0).mean((1, 2))


def _write(
    out: Path, examiner: Examiner, images: Sequence[Path], answers: Sequence[Sequence[Answer]], modality: str
) -> None:
    """answers.csv, and for each image a picture with its marks and its mask of vessels."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; expected a folder, or a file that ends in {' or '.join(SUFFIXES)}")
    out.mkdir(parents=True, exist_ok=True)
    check_out(out / "answers.csv")
    names = names_for(images, (".png", "_vessels.png"))
    pairs = zip(images, names, answers, strict=True)
    for image, name, each in track(pairs, "drawing", len(images), transient=True):
        vessels = examiner.vessels(image, modality or examiner.modality_of(each))
        if vessels is not None:
            segmentation.picture(vessels[..., None]).save(out / f"{name}_vessels.png")
        drawn(load(image), each, vessels).save(out / f"{name}.png")
    write_rows(out / "answers.csv", [asdict(one) for each in answers for one in each])


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
            colour = MARKS.get(one.question.rpartition(": ")[2], (255, 255, 255))
            draw.ellipse(
                (one.x - size, one.y - size, one.x + size, one.y + size), outline=colour, width=max(size // 6, 2)
            )
            draw.text((one.x + 1.2 * size, one.y - size), one.question.rpartition(": ")[2], fill=colour, font_size=size)
    lines = [f"{one.question}: {one.answer}  ({_sureness(one)})" for one in answers if one.x is None]
    page = Image.new("RGB", (picture.width, picture.height + int(1.5 * size * (len(lines) + 1))), "white")
    page.paste(picture)
    writer, font = ImageDraw.Draw(page), ImageFont.load_default(size)
    for k, line in enumerate([*lines, "not a medical device"]):
        grey = (110, 110, 110) if k == len(lines) else (20, 20, 20)
        writer.text((size, picture.height + size * (0.25 + 1.5 * k)), line, fill=grey, font=font)
    return page


def _sureness(one: Answer) -> str:
    return f"{100 * one.score:.0f} %, " + {"yes": "sure", "no": "not sure"}.get(one.sure, one.sure)
