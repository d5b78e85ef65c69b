"""A run on AMD, DR and normal eyes, evaluated on tables of another place: scores by name equal scikit-learn's."""

import csv
import json

import numpy as np
import pytest
from PIL import Image, ImageDraw
from sklearn.metrics import recall_score, roc_auc_score

import launch

CONFIG = "configs/linear_probe.py"
COLOURS = {"AMD": (200, 60, 40), "DR": (60, 180, 60), "normal": (60, 60, 200), "glaucoma": (200, 200, 40)}
ENGLISH = {"AMD": "0", "DR": "1", "normal": "2"}


def discs(folder, names, spell=str, count=60):
    rng = np.random.default_rng(len(names[0]))
    folder.mkdir()
    rows = [("image", "label")]
    for k in range(count):
        name, picture = names[k % len(names)], Image.new("RGB", (32, 32))
        colour = tuple(int(np.clip(value + rng.normal(0, 60), 0, 255)) for value in COLOURS[name])
        x, y = rng.integers(2, 8, 2).tolist()
        ImageDraw.Draw(picture).ellipse((x, y, x + 20, y + 20), fill=colour)
        picture.save(folder / f"{k}.png")
        rows.append((f"{k}.png", spell(name)))
    with (folder / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return str(folder / "labels.csv")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = tmp_path_factory.mktemp("places")
    data = discs(root / "home", ("AMD", "DR", "normal"))
    argv = ["train", CONFIG, "--workdir", str(root / "run"), "--data", data, "--size", "smoke", "--epochs", "6"]
    assert launch.main([*argv, "--head", "linear", "--batch", "16"]) == 0
    return root


def scores(run, name):
    with np.load(run / "run" / "evals" / f"{name}.npz", allow_pickle=False) as file:
        found = {key: file[key] for key in file.files}
    rows = [json.loads(line) for line in (run / "run" / "metrics.jsonl").read_text().splitlines()]
    logged = {key: value for row in rows for key, value in row.items() if key.startswith(f"{name}/")}
    return found, logged


def same_as_scikit_learn(run, name, classes):
    """The classes of the run, its probabilities by name, and the labels of the table, in scikit-learn and in the log."""
    found, logged = scores(run, name)
    assert found["classes"].tolist() == ["AMD", "DR", "normal"]
    names = np.array(found["classes"])[found["labels"]]
    assert set(names) == set(classes)
    for place, one in enumerate(found["classes"].tolist()):
        if one in classes:
            auc = roc_auc_score(names == one, found["probabilities"][:, place])
            recall = recall_score(names == one, found["classes"][found["probabilities"].argmax(1)] == one)
            np.testing.assert_allclose(
                [logged[f"{name}/auc/{one}"], logged[f"{name}/recall/{one}"]], [auc, recall], 1e-9
            )
        else:
            assert f"{name}/auc/{one}" not in logged
    return found, logged


def test_a_table_without_one_class_and_with_another(run, capsys):
    before = (run / "run" / "evals" / "val.npz").read_bytes()
    word = discs(run / "messidor2", ("DR", "glaucoma", "normal"))
    assert launch.main(["eval", str(run / "run"), "--data", word]) == 0
    found, logged = same_as_scikit_learn(run, "messidor2", ("DR", "normal"))
    assert len(found["labels"]) == 40 and logged["messidor2/auc/DR"] > 0.7
    printed = " ".join(capsys.readouterr().err.split())
    assert "has no classes AMD" in printed and "left out: glaucoma (20 rows)" in printed
    assert (run / "run" / "evals" / "val.npz").read_bytes() == before


def test_a_table_with_fewer_classes(run):
    assert launch.main(["eval", str(run / "run"), "--data", discs(run / "two", ("normal", "DR"))]) == 0
    found, _ = same_as_scikit_learn(run, "two", ("DR", "normal"))
    assert len(found["labels"]) == 60


def test_codes_are_refused_until_they_are_named(run, capsys):
    word = discs(run / "coded", ("AMD", "DR", "normal"), ENGLISH.get)
    assert launch.main(["eval", str(run / "run"), "--data", word]) == 2
    assert "its classes are 0, 1, 2; none of them is one of AMD, DR, normal" in capsys.readouterr().err
    assert launch.main(["eval", str(run / "run"), "--data", f"{word},classes=2:normal+0:AMD+1:DR"]) == 0
    same_as_scikit_learn(run, "coded", ("AMD", "DR", "normal"))


def test_training_on_with_other_classes_is_refused(run, capsys):
    word = discs(run / "train_on", ("DR", "glaucoma", "normal"))
    argv = ["train", CONFIG, "--workdir", str(run / "run"), "--data", word, "--size", "smoke", "--epochs", "20"]
    assert launch.main(argv) == 2
    assert "AMD" in capsys.readouterr().err
