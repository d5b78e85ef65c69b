"""Examining photographs with a task set whose answers are known by construction."""

import csv
import json

import jax
import numpy as np
import pytest
from PIL import Image

import launch
from data_pipelines.images.decode import load
from fundax.encoders.backbone import Backbone
from fundax.encoders.heads import MLPHead
from fundax.encoders.pyramid import FPN
from fundax.encoders.resnet import ResNet
from fundax.inference.examine import UNUSUAL, distance, read_examiner
from fundax.interop.checkpoint import Checkpoint
from fundax.interop.task_set import write_task_set
from fundax.objectives.classify import Classify
from fundax.objectives.dense import Landmark, Segment
from fundax.objectives.ensemble import ensemble, stacked

TOWER = ResNet(image_size=32, width_first=4, blocks=(1, 1, 1, 1), basic=True)
KINDS = {"fundus": {"modality": "CFP", "title": "photograph"}, "oct": {"modality": "OCT", "title": "scan"}}


def of(objective, shared, bias=()):
    """An ensemble of two equal members; bias: the logits of a classifier for any image."""
    params, extra = objective.init(jax.random.key(0), {})
    params["image"], extra["image"] = shared
    if bias:
        params["head"] = jax.tree.map(np.zeros_like, params["head"])
        last = params["head"]["fc0"] if "fc0" in params["head"] else next(iter(params["head"].values()))
        last["bias"] = np.array(bias, np.float32)
    params, extra = jax.tree.map(np.asarray, stacked([(params, extra)] * 2, True))
    facts = {"image_size": 32, "resize": "squash", "interpolation": "bilinear"}
    return Checkpoint(ensemble(objective, 2, True), params, facts, extra=extra)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    def probe(*classes):
        return Classify(
            Backbone(TOWER, feature="pooled"),
            MLPHead(len(classes), 1, standardized=True, epsilon=1e-12),
            classes=classes,
        )

    params, extra = probe("a", "b").init(jax.random.key(7), {})
    shared = params["image"], extra["image"]
    models = {
        "modality": of(probe("fundus", "oct"), shared, (3.0, 0.0)),
        "grade": of(probe("none", "mild"), shared, (0.0, 1.0)),
        "oct": of(probe("CNV", "DME"), shared, (0.0, 1.0)),
        "landmarks": of(Landmark(TOWER, FPN(1, width=4, stride=4), (), ("fovea",), frozen=True), shared),
        "vessels": of(Segment(TOWER, FPN(1, width=4), (), ("vessel",), frozen=True), shared),
    }
    usual = {"sure": 0.8, "usual": 1e9}
    about = {
        "modality": {"modality": "", "title": "kind of image", "kinds": KINDS, **usual},
        "grade": {"modality": "CFP", "title": "grade", **usual},
        "oct": {"modality": "OCT", "title": "finding", "sure": 0.5, "usual": 0.0},
        "landmarks": {"modality": "CFP", "title": "position", "sure": {"fovea": 0.0}},
        "vessels": {"modality": "CFP", "title": "vessels"},
    }
    out = tmp_path_factory.mktemp("sets") / "small"
    write_task_set(out, models, about, "# Card")
    return out


@pytest.fixture(scope="module")
def photograph(tmp_path_factory):
    path = tmp_path_factory.mktemp("photographs") / "eye.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3)).astype(np.uint8)).save(path)
    return path


def test_the_modality_decides_which_tasks_answer(folder, photograph):
    """Logits of 3 and 0 are 0.953 and sure; of 0 and 1 are 0.731, which is below 0.8."""
    kind, grade, fovea = read_examiner(folder).examine(load(photograph))
    assert (kind.question, kind.answer, kind.sure) == ("kind of image", "photograph", "yes")
    assert kind.score == pytest.approx(1 / (1 + np.exp(-3)), rel=1e-5)
    assert (grade.answer, grade.sure) == ("mild", "no") and grade.score == pytest.approx(0.7311, abs=1e-4)
    assert fovea.question == "position: fovea" and fovea.sure == "yes" and 0 <= fovea.x < 60 and 0 <= fovea.y < 40


def test_a_given_modality_is_not_recognised_and_unusual_images_are_named(folder, photograph):
    (finding,) = read_examiner(folder).examine(load(photograph), modality="OCT")
    assert (finding.answer, finding.sure) == ("DME", UNUSUAL)


def test_the_distance_of_the_training_is_one():
    """Features of -1 and 1 with their mean and variance have a mean square of 1; that of 3 is 9, and of 50 counts as 100."""
    norm = {"mean": np.zeros((2, 4)), "var": np.ones((2, 4))}
    feature = np.stack([np.ones(4), -np.ones(4), np.full(4, 3.0), np.full(4, 50.0)])
    np.testing.assert_allclose(distance(feature, {"members": {"head": {"norm": norm}}}), [1, 1, 9, 100], rtol=1e-6)


def test_from_the_shell(folder, photograph, tmp_path, capsys):
    assert launch.main(["predict", str(folder), str(photograph)]) == 0
    printed = capsys.readouterr().out
    assert "mild" in printed and "not a medical device" in printed
    assert launch.main(["predict", str(folder), "--image", str(photograph), "--out", str(tmp_path / "a.json")]) == 0
    assert [row["question"] for row in json.loads((tmp_path / "a.json").read_text())] == [
        "kind of image", "grade", "position: fovea"
    ]  # fmt: skip
    assert launch.main(["predict", str(folder), str(photograph), str(photograph), "--out", str(tmp_path / "out")]) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "answers.csv", "eye_0.png", "eye_0_vessels.png", "eye_1.png", "eye_1_vessels.png"
    ]  # fmt: skip
    with (tmp_path / "out" / "answers.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 6
    with Image.open(tmp_path / "out" / "eye_0_vessels.png") as mask:
        assert mask.size == (60, 40)
    capsys.readouterr()
    assert launch.main(["predict", str(folder)]) == 2 and "name photographs" in capsys.readouterr().err
    assert launch.main(["explain", str(folder / "grade"), str(photograph), "--out", str(tmp_path / "maps")]) == 0
