"""Cross-validation by patient: disjoint folds, pooled predictions, an ensemble that predicts, and what is refused."""

import csv
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import launch
from data_pipelines.open import Data
from data_pipelines.records import DataError
from data_pipelines.sources.splits import patients_of
from data_pipelines.tasks import labelled
from fundax.interop import load


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """24 drawn photographs of 12 patients: a bright disc in a black frame, reddish or greenish by class."""
    folder, random = tmp_path_factory.mktemp("photographs"), np.random.default_rng(0)
    rows = [("image", "label", "patient")]
    y, x = np.mgrid[:40, :60]
    disc = (y - 20) ** 2 + (x - 30) ** 2 < 18**2
    for number in range(24):
        patient, kind = number // 2, number // 2 % 2
        colour = np.array([(200, 90, 60), (90, 180, 60)][kind]) + random.integers(-9, 10, 3)
        pixels = np.where(disc[..., None], colour, 0) + random.integers(0, 9, (40, 60, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{number}.png")
        rows.append((f"{number}.png", ("red", "green")[kind], f"p{patient}"))
    with (folder / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return folder / "labels.csv"


def test_folds_share_no_patient_and_cover_all(table):
    seen = []
    for number in (1, 2, 3):
        data = Data(data=(str(table),), fold=f"{number}/3", fractions=(0.7, 0.3))
        found = data.parts({}, 0, labelled.strata)
        parts = {name: set(patients_of(one[0].source)) for name, one in found.items()}
        assert set(parts) == {"train", "val", "test"} and not parts["train"] & parts["test"]
        assert not parts["val"] & (parts["train"] | parts["test"])
        seen += parts["test"]
    assert sorted(seen) == sorted({f"p{k}" for k in range(12)})
    for fold, words in (("0/3", "expected K/N"), ("4/3", "expected K/N"), ("1/50", "50 folds of 12 patients")):
        with pytest.raises(DataError, match=words):
            Data(data=(str(table),), fold=fold).parts({}, 0, labelled.strata)


def test_a_single_fold_is_evaluated_on_its_test_part_and_goes_on(table, tmp_path):
    run = str(tmp_path / "fold")
    command = ["train", "configs/linear_probe.py", "--size", "resnet-smoke", "--data", str(table), "--fold", "1/3"]
    assert launch.main([*command, "--workdir", run]) == 0
    assert launch.main(["eval", run, "--part", "test"]) == 0
    with np.load(tmp_path / "fold" / "evals" / "test.npz") as stored:
        assert len(stored["labels"]) == 8  # 4 of 12 patients, 2 photographs each
    assert launch.main([*command, "--workdir", run]) == 0


def test_a_probe_is_cross_validated_and_predicts(table, tmp_path, capsys):
    command = ["train", "configs/linear_probe.py", "--size", "resnet-smoke", "--data", str(table), "--folds", "2"]
    assert launch.main([*command, "--workdir", str(tmp_path / "run")]) == 0
    with np.load(tmp_path / "run" / "evals" / "test.npz") as stored:
        found = dict(zip(stored["metric_name"], stored["metric_value"], strict=True))
        assert len(stored["labels"]) == 24 and len(set(stored["patient"].tolist())) == 12
    assert found["macro_auc"] > 0.9, "colours separate the classes"
    model = load(tmp_path / "run")
    assert type(model.objective).__name__ == "Ensemble" and model.preprocessing["crop_field"] is True
    assert set(model.params) == {"image", "members"}, "one encoder for both folds"
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000
    capsys.readouterr()
    image = str(table.parent / "0.png")
    assert launch.main(["predict", str(tmp_path / "run"), "--image", image, "--out", str(tmp_path / "p.csv")]) == 0
    with (tmp_path / "p.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert float(row["red"]) > 0.5 > float(row["green"])
    stored = json.loads((tmp_path / "run" / "config.json").read_text())
    assert stored["folds"] == 2 and stored["origin"] == {}


@pytest.fixture(scope="module")
def dense_table(table):
    """The photographs with a mask of their disc and the point in its middle."""
    folder = table.parent
    y, x = np.mgrid[:40, :60]
    Image.fromarray(((y - 20) ** 2 + (x - 30) ** 2 < 18**2).astype(np.uint8) * 255).save(folder / "disc_mask.png")
    rows = [("image", "mask", "middle_x", "middle_y", "patient")]
    rows += [(f"{number}.png", "disc_mask.png", 30, 20, f"p{number // 2}") for number in range(0, 24, 4)]
    with (folder / "dense.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return folder / "dense.csv"


@pytest.mark.parametrize(("tune", "trees"), [("head", {"image", "members"}), ("full", {"members"})])
def test_masks_are_cross_validated_and_predicted_by_all_models(dense_table, tmp_path, capsys, tune, trees):
    run, image = str(tmp_path / "run"), str(dense_table.parent / "0.png")
    command = ["train", "configs/segmentation.py", "--smoke", "--size", "resnet-smoke", "--image-size", "32"]
    command += ["--data", str(dense_table), "--classes", "disc", "--tune", tune, "--folds", "2", "--workdir", run]
    assert launch.main(command) == 0
    with np.load(tmp_path / "run" / "evals" / "test.npz") as stored:
        assert stored["dice"].shape == (6, 1) and len(set(stored["patient"].tolist())) == 6
    model, parts = load(run), [load(f"{run}/fold_{k}") for k in (1, 2)]
    assert type(model.objective).__name__ == "SegmentEnsemble" and set(model.params) == trees
    batch = {"image": np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3)).astype(np.uint8)}
    out = model.objective.forward(model.params, model.extra, batch)
    each = [one.objective.forward(one.params, one.extra, batch)["probability"] for one in parts]
    np.testing.assert_allclose(out["probability"], (each[0] + each[1]) / 2, rtol=1e-5)
    np.testing.assert_allclose(jax.nn.sigmoid(out["logits"]), out["probability"], rtol=1e-4)
    capsys.readouterr()
    assert launch.main(["predict", run, "--image", image, "--out", str(tmp_path / "masks")]) == 0
    assert launch.main(["explain", run, image, "--out", str(tmp_path / "maps")]) == 0
    assert ("features and maps are the first one's" in capsys.readouterr().err) == (tune == "full")


def test_landmarks_are_cross_validated(dense_table, tmp_path):
    run = str(tmp_path / "run")
    command = [
        "train",
        "configs/landmark.py",
        "--smoke",
        "--size",
        "resnet-smoke",
        "--image-size",
        "32",
        "--tune",
        "head",
    ]
    command += ["--decoder-stride", "4", "--data", str(dense_table), "--classes", "middle", "--folds", "2"]
    assert launch.main([*command, "--workdir", run]) == 0
    model, parts = load(run), [load(f"{run}/fold_{k}") for k in (1, 2)]
    batch = {"image": np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3)).astype(np.uint8)}
    out = model.objective.forward(model.params, model.extra, batch)
    each = [jax.nn.softmax(one.objective.forward(one.params, one.extra, batch)["logits"], (1, 2)) for one in parts]
    np.testing.assert_allclose(jnp.exp(out["logits"]), (each[0] + each[1]) / 2, rtol=1e-4)
    assert out["points_refined"].shape == (1, 1, 2) and float(out["confidence"][0, 0]) == pytest.approx(
        float(jnp.exp(out["logits"]).max()), rel=1e-4
    )


def test_what_cannot_be_cross_validated(table, tmp_path, capsys):
    command = ["train", "configs/linear_probe.py", "--size", "resnet-smoke", "--data", str(table)]
    for more, words in (
        (["--folds", "1"], "expected"),
        (["--folds", "3", "--split", str(tmp_path / "split.json")], "leave out --split"),
    ):
        assert launch.main([*command, *more, "--workdir", str(tmp_path / "none")]) == 2
        assert words in capsys.readouterr().err
        assert not (tmp_path / "none").exists()
