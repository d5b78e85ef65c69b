"""Synthetic images as files: every one is marked, the same seed is the same image, and mixes keep 1:k exactly."""

import csv
import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from data_pipelines.images.decode import load as load_image
from data_pipelines.language.conditions import FINDINGS
from data_pipelines.pipeline import mix
from data_pipelines.sources.csv import csv_source
from data_pipelines.synthetic.sources import Eyes
from data_pipelines.transforms.steps import Select
from data_pipelines.transforms.views import SingleView
from fundax.config import load
from fundax.inference.synthesize import How, _conditions, read_generator, summary, synthesize
from fundax.interop import keymap
from fundax.params import unflatten
from fundax.runtime.checkpoint import Checkpoints
from fundax.train.stored import describe
from fundax.types import UserError

CONFIG = "configs/diffusion.py"
QUICK = How(steps=2, batch=2)


def a_run(folder, *argv):
    recipe, _ = load(CONFIG, ["--smoke", *argv])
    describe(recipe, folder)
    rng = np.random.default_rng(0)
    shapes = keymap.shapes_of(recipe.objective)
    params = unflatten({path: 0.1 * rng.standard_normal(shape, np.float32) for path, shape in shapes.items()})
    with Checkpoints(folder) as kept:
        kept.save(2, {"params": params, "extra": {"average": params}, "opt": {}}, {}, {})
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return a_run(tmp_path_factory.mktemp("synth") / "base")


@pytest.fixture(scope="module")
def drawn(run, tmp_path_factory):
    out = tmp_path_factory.mktemp("drawn") / "images"
    return out, synthesize(run, out, 3, QUICK)


def rows(out):
    with (out / "manifest.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_every_file_says_that_it_is_synthetic(drawn):
    out, report = drawn
    listed = rows(out)
    assert {row["image"] for row in listed} == {str(p.relative_to(out)) for p in out.rglob("images/*.png")}
    assert [(r["synthetic"], r["seed"], r["model"], r["checkpoint"], r["modality"]) for r in listed] == [
        ("yes", str(seed), "base", "2", "CFP") for seed in range(3)
    ]
    for row in listed:
        with Image.open(out / row["image"]) as image:
            assert image.size == (8, 8) and image.text["Synthetic"].startswith("yes")
            assert image.text["Seed"] == row["seed"]
    assert report["images"] == 3 and json.loads((out / "report.json").read_text())["synthetic"] is True


def test_neighbours_are_looked_for(drawn):
    out, report = drawn
    assert (out / "neighbours.png").exists() and report["median_samples"] > report["copies"] == 0
    assert all(0 <= int(row["neighbour"]) < 16 and float(row["neighbour_distance"]) > 0 for row in rows(out))
    assert "held out" in summary(out, report)


def test_an_image_is_a_function_of_its_seed(run, drawn, tmp_path):
    synthesize(run, tmp_path / "again", 1, dataclasses.replace(QUICK, seed=2), check=False)
    again = load_image(tmp_path / "again" / rows(tmp_path / "again")[0]["image"])
    np.testing.assert_array_equal(again, load_image(drawn[0] / rows(drawn[0])[2]["image"]))
    assert "neighbour" not in rows(tmp_path / "again")[0]


def test_the_manifest_is_a_source_and_mixes_keep_their_proportion(drawn):
    synthetic = csv_source(drawn[0] / "manifest.csv", columns={"modality": "modality"})
    steps = (SingleView(text=None), Select(("image",)))
    real = Eyes(5, size=16)
    for k, weights in ((1, (1, 1)), (5, (1, 5)), (5, (1 / 6, 5 / 6)), (3, (0.1, 0.3))):
        stream = mix([(real, steps, weights[0]), (synthetic, steps, weights[1])], batch=1, seed=0).examples
        parts = [stream.row(position)[0] for position in range(8 * (k + 1))]
        for at in range(len(parts) - k):  # any window of k + 1, from whatever position
            assert sum(parts[at : at + k + 1]) == k
    assert synthetic[0].views[0].modality == "CFP"


def test_conditions_are_asked_for_or_those_of_the_training_rows(tmp_path):
    folder = a_run(tmp_path / "conditional", "--conditional")
    model, recipe = read_generator(folder), load(CONFIG, ["--smoke", "--conditional"])[0]
    asked = _conditions([model], 3, How(findings=("drusen",), modality="oct"), recipe)
    assert asked["modality"].tolist() == [2] * 3 and FINDINGS[int(asked["findings"][0].argmax())] == "drusen"
    as_trained = _conditions([model], 20, How(), recipe)  # 16 rows, then the first again
    np.testing.assert_array_equal(as_trained["findings"][16:], as_trained["findings"][:4])
    with pytest.raises(UserError, match="findings drusens are unknown"):
        _conditions([model], 1, How(findings=("drusens",)), recipe)


def test_mistakes_leave_nothing_behind(run, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(UserError, match="expected n and batch"):
        synthesize(run, out, 0)
    with pytest.raises(UserError, match="is not a run"):
        synthesize(tmp_path, out, 1)
    with pytest.raises(UserError, match="takes no base"):
        synthesize(run, out, 1, base=run)
    large = a_run(tmp_path / "large", "--stage", "super_resolution")
    with pytest.raises(UserError, match="give the run that draws them"):
        synthesize(large, out, 1)
    with pytest.raises(UserError, match="enlarges images of 8 pixels, the base draws 16"):
        synthesize(large, out, 1, base=large)
    assert not out.exists()
