"""Masks and landmarks of files, by runs that were written to disk: on the photographs' own grid, in their pixels."""

import argparse
import csv

import jax
import numpy as np
import pytest
from PIL import Image

from data_pipelines.images.masks import load_mask
from fundax.encoders.unetr import Linear
from fundax.inference import landmarks, segmentation
from fundax.interop.backbones import backbone
from fundax.interop.checkpoint import Checkpoint
from fundax.objectives.dense import Landmark, Segment
from fundax.types import UserError

FACTS = {"image_size": 32, "resize": "longest"}


@pytest.fixture(scope="module")
def tower():
    return backbone("smoke", image_size=16).image


def model(objective, monkeypatch, module):
    """The objective with parameters of zeros, but for what the first pixel says; read in place of a run."""
    shapes = jax.eval_shape(lambda: objective.init(jax.random.key(0), {}))[0]
    params = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    params["decoder"]["out"]["bias"][:] = [3.0, -3.0][: objective.decoder.outputs]
    monkeypatch.setattr(module, "load", lambda path, checkpoint: Checkpoint(objective, params, FACTS, extra={}))


@pytest.fixture
def photographs(tmp_path):
    for name, size in (("a", (40, 30)), ("b", (17, 23))):
        Image.fromarray(np.zeros((*size, 3), np.uint8)).save(tmp_path / f"{name}.png")
    return [str(tmp_path / f"{name}.png") for name in "ab"]


def test_masks_have_the_size_of_their_photographs(tower, photographs, tmp_path, monkeypatch):
    """A window of 16 slides over images of 32; the first class is everywhere, the second nowhere."""
    objective = Segment(tower, Linear(2, 8), (0, 1, 2, 3), ("x", "y"), overlapping=True)
    model(objective, monkeypatch, segmentation)
    given = argparse.Namespace(image=photographs, out=str(tmp_path / "out"), threshold=0.5, checkpoint="latest")
    assert segmentation.run("run", given).row_count == 2
    assert load_mask(tmp_path / "out/a_x.png").shape == (40, 30) and load_mask(tmp_path / "out/b_x.png").shape == (
        17,
        23,
    )
    assert load_mask(tmp_path / "out/a_x.png").min() == 255 and load_mask(tmp_path / "out/a_y.png").max() == 0
    with pytest.raises(UserError, match=r"a_x\.png already exists"):
        segmentation.run("run", given)


def test_a_mask_of_exclusive_classes_is_read_back():
    mask = np.zeros((3, 4, 2), bool)
    mask[0, 0, 0], mask[2, 3, 1] = True, True
    image = segmentation.picture(mask)
    assert image.mode == "P" and np.asarray(image)[[0, 2, 1], [0, 3, 1]].tolist() == [1, 2, 0]


def test_landmarks_are_in_pixels_of_the_photograph(tower, photographs, tmp_path, monkeypatch):
    """All pixels alike: the mean place is the middle of the padded image, which is the middle of the photograph."""
    model(Landmark(tower.clone(image_size=32), Linear(1, 8), (0, 1, 2, 3), ("fovea",)), monkeypatch, landmarks)
    given = argparse.Namespace(
        image=photographs, out=str(tmp_path / "p.csv"), read="points_expected", checkpoint="latest"
    )
    landmarks.run("run", given)
    rows = list(csv.DictReader((tmp_path / "p.csv").read_text().splitlines()))
    assert [row["image"] for row in rows] == photographs
    found = np.array([[float(row["fovea_x"]), float(row["fovea_y"])] for row in rows])
    np.testing.assert_allclose(found, [[14.5, 19.5], [11, 8]], atol=0.6)  # a pad of half a pixel falls to one side
    assert float(rows[0]["fovea_confidence"]) == pytest.approx(1 / 32**2, abs=1e-3)
    with pytest.raises(UserError, match=r"p\.csv already exists"):
        landmarks.run("run", given)
