"""Decoders from the command line: probabilities, values and forecasts as a table and a CSV; mistakes are one line."""

import csv
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

import launch
from fundax.encoders.backbone import Backbone
from fundax.encoders.heads import ForecastHead, MLPHead
from fundax.encoders.vit import dino_vit
from fundax.inference.dispatch import predictor_of
from fundax.objectives.classify import Classify
from fundax.objectives.forecast import Forecast
from fundax.objectives.regress import Regress
from fundax.runtime import serialize
from fundax.runtime.checkpoint import Checkpoints
from fundax.runtime.workdir import write_json

TOWER = Backbone(dino_vit("S/16").clone(image_size=8, patch=8, width=8, depth=1, heads=1), feature="pooled")
HEAD = MLPHead(2, layers=1, norm=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Runs whose heads read nothing but their biases."""
    folder = tmp_path_factory.mktemp("decoders")
    bias = np.log(np.array([0.25, 0.75], np.float32))
    for name, objective in {
        "classify": Classify(TOWER, HEAD, classes=("no", "yes")),
        "regress": Regress(TOWER, HEAD, ("age", "hba1c")),
        "forecast": Forecast(TOWER, ForecastHead()),
    }.items():
        shapes = jax.eval_shape(lambda rng, one=objective: one.init(rng, {}), jax.random.key(0))[0]
        params = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), shapes)
        params["head"]["fc1"]["bias"] = bias[: len(params["head"]["fc1"]["bias"])]
        if name == "regress":
            params["target"] = {"mean": np.array([60, 7], np.float32), "std": np.array([10, 1], np.float32)}
        (folder / name).mkdir()
        write_json(folder / name / "config.json", {"objective": serialize.to_json(objective)})
        write_json(folder / name / "preprocessing.json", {"image_size": 8, "resize": "squash"})
        with Checkpoints(folder / name) as kept:
            kept.save(0, {"params": params, "extra": {}, "opt": {}}, {}, {})
    Image.fromarray(np.full((12, 10, 3), 99, np.uint8)).save(folder / "a.png")
    return folder


def predict(folder, name: str, *more: str) -> list[list[str]]:
    out = folder / f"{name}.csv"
    arguments = ["predict", str(folder / name), "--image", str(folder / "a.png"), "--out", str(out), *more]
    assert launch.main(arguments) == 0
    with out.open(newline="") as file:
        return [row[1:] for row in csv.reader(file)]


def test_probabilities_values_and_forecasts(folder):
    assert predict(folder, "classify") == [["no", "yes"], ["0.2500", "0.7500"]]
    ages = [["age", "hba1c"], [f"{60 + 10 * np.log(0.25):.4f}", f"{7 + np.log(0.75):.4f}"]]
    assert predict(folder, "regress") == ages
    rows = predict(folder, "forecast", "--days", "365", "730")
    assert rows[0] == ["days", "stable", "progression"] and [row[0] for row in rows[1:]] == ["365", "730"]
    assert rows[1][1:] == ["0.8000", "0.2000"]  # the logit log(1/4)


def test_names_of_files_and_classes_are_text_and_no_markup(folder, capsys, monkeypatch):
    shutil.copytree(folder / "classify", folder / "named")
    config = (folder / "named" / "config.json").read_text()
    (folder / "named" / "config.json").write_text(config.replace('"yes"', '"[/nope]"'))
    shutil.copy(folder / "a.png", folder / "eye[left].png")
    monkeypatch.chdir(folder)
    assert launch.main(["predict", "named", "--image", "eye[left].png"]) == 0
    printed = capsys.readouterr().out
    assert "eye[left].png" in printed and "[/nope]" in printed


def test_user_errors_are_one_line(folder, capsys):
    image = str(folder / "a.png")
    for name, more, message in (
        ("classify", ["--days", "3"], "--days is required for forecasting models"),
        ("forecast", [], "--days is required for forecasting models"),
        ("classify", ["--out", image], "already exists"),
        ("classify", ["--modality", "X-ray"], "modality 'X-ray' is not one of"),
    ):
        assert launch.main(["predict", str(folder / name), "--image", image, *more]) == 2
        assert message in capsys.readouterr().err
    assert predictor_of(folder / "regress").__name__ == "fundax.inference.labels"
