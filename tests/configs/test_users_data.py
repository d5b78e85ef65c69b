"""Configs on a user's data are evaluated, and their best step chosen, on held-out patients of that data."""

import logging

import numpy as np
import pytest
from PIL import Image

from data_pipelines.records import DataError
from fundax.config import load

TEXTS = ("early cataract of the lens", "a normal eye", "drusen at the macula of this eye", "mild retinopathy")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for k in range(40):
        Image.fromarray(rng.integers(0, 255, (40, 40, 3), np.uint8)).save(root / f"{k}.png")
    write = lambda name, header, row: (root / name).write_text("\n".join([header, *map(row, range(40))]) + "\n")  # noqa: E731
    write("numbers.csv", "image,text,label", lambda k: f"{k}.png,{TEXTS[k % 4]},{k % 3}")
    write("names.csv", "image,text,label", lambda k: f"{k}.png,{TEXTS[k % 4]},{('mild', 'no', 'severe')[k % 3]}")
    write("pairs.csv", "patient,left,right,text", lambda k: f"p{k},{k}.png,{k}.png,{TEXTS[k % 4]}")
    write("frame.csv", "image,atributes,categories", lambda k: f"{k}.png,[],\"['{('glaucoma', 'normal')[k % 2]}']\"")
    write("elite.csv", "image,caption", lambda k: f"{k}.png,{TEXTS[k % 4]}")
    for k in range(40):
        for name in ("a", "b"):
            folder = root / "folders" / name
            folder.mkdir(parents=True, exist_ok=True)
        Image.open(root / f"{k}.png").save(root / "folders" / "ab"[k % 2] / f"{k}.png")
        (root / "plain" / "Fundus").mkdir(parents=True, exist_ok=True)
        Image.open(root / f"{k}.png").save(root / "plain" / "Fundus" / f"{k}.png")
    return root


def recipe(config, *argv):
    return load(f"configs/{config}.py", ["--smoke", *map(str, argv)])[0]


def test_ret_clip(root):
    found = recipe("ret_clip", "--data", root / "pairs.csv")
    assert set(found.evals) == {"retrieval"} and found.best == "retrieval*/image_to_text_R@1"
    assert {part: rows["pairs"]["rows"] for part, rows in found.data["split"]["counts"].items()} == {
        "train": 36,
        "val": 4,
    }


def test_flair_and_keepfit(root):
    found = recipe("flair", "--data", root / "frame.csv", "--fractions", "0.7", "0.3")
    assert set(found.evals) == {"zero_shot"} and found.best == "zero_shot*/macro_auc"
    argv = ("--data", root / "frame.csv", "--elite", root / "elite.csv", "--fractions", "0.7", "0.3")
    found = recipe("keepfit", *argv)
    assert set(found.evals) == {"zero_shot_frame", "retrieval_elite"} and found.best == "zero_shot*/macro_auc"
    assert {one["name"] for one in found.data["sources"]} == {"frame", "elite"}
    assert set(recipe("keepfit").evals) == {"zero_shot_CFP", "zero_shot_FFA"}


def test_visionfm(root):
    argv = ("--modalities", "CFP", "--fractions", "0.7", "0.3")
    found = recipe("visionfm", "--data", root / "folders", *argv)
    assert set(found.evals) == {"probe_cfp"} and found.best == "probe_*/macro_auc"
    assert set(recipe("visionfm", "--data", root / "plain", *argv).evals) == {"held_out"}


def test_several_sources_choose_by_their_mean(root):
    for config in ("quickstart", "mm_fundus_clip"):
        found = recipe(
            config, "--data", root / "names.csv", f"{root}/names.csv,name=other", "--fractions", "0.5", "0.5"
        )
        assert {"zero_shot_names", "zero_shot_other"} <= set(found.evals) and found.best == "zero_shot*/macro_auc"


@pytest.mark.parametrize("config", ["zero_shot", "few_shot", "clip_adapter", "mm_fundus_clip", "quickstart"])
def test_a_text_model_is_not_asked_for_numbers(root, config):
    with pytest.raises(
        DataError, match=r"its classes are 0, 1, 2, and '0' cannot be used in a prompt.*classes=0:NAME\+1:NAME"
    ):
        recipe(config, "--data", root / "numbers.csv")
    named = f"{root}/numbers.csv,classes=0:no retinopathy+1:mild+2:severe"
    found = recipe(config, "--data", named, "--fractions", "0.5", "0.3", *(["0.2"] if config == "clip_adapter" else []))
    assert found.evals


@pytest.mark.parametrize("config", ["finetune", "linear_probe"])
def test_grades_by_name_need_their_order(root, config):
    with pytest.raises(DataError, match=r"--ordered: .* alphabetical order is mild < no < severe"):
        recipe(config, "--ordered", "--data", root / "names.csv")
    found = recipe(config, "--ordered", "--data", root / "names.csv", "--classes", "no", "mild", "severe")
    assert found.objective.classes == ("no", "mild", "severe")
    recipe(config, "--ordered", "--data", root / "numbers.csv")


def test_texts_that_are_cut_are_counted(root, caplog):
    with caplog.at_level(logging.WARNING):
        recipe("quickstart", "--data", f"{root}/names.csv,name=eyes")
    assert not [line for line in caplog.messages if "are cut" in line]
    long = "image,text\n" + "".join(f"{k}.png,{'drusen ' * (60 if k < 7 else 1)}\n" for k in range(40))
    (root / "long.csv").write_text(long)
    with caplog.at_level(logging.WARNING):
        recipe("quickstart", "--data", root / "long.csv", "--fractions", "1")
    assert [line for line in caplog.messages if "long: 7 of 40 texts are longer than 48 tokens and are cut" in line]


def test_the_test_part_stays_unread_in_training(root):
    for config in ("segmentation", "landmark", "finetune", "forecasting", "regression"):
        assert set(recipe(config).evals) == {"val"}
        assert set(recipe(config, "--part", "test").evals) == {"test"}


def test_mm_fundus_clip_from_random_weights_is_logged(root, caplog):
    with caplog.at_level(logging.WARNING):
        load("configs/mm_fundus_clip.py", ["--data", f"{root}/names.csv"])
    assert "without --init the model starts from random weights" in caplog.text


def test_written_reports_are_compared_with_whole_texts(root):
    long = "image,text\n" + "".join(f"{k}.png,drusen {'and drusen ' * 60}at the macula {k}\n" for k in range(40))
    (root / "long.csv").write_text(long)
    found = recipe("keepfit_report", "--data", root / "long.csv")
    batch = next(iter(found.evals["reports"].data()))
    assert batch["text"].shape[1] == 33
    whole = found.tokenizer.decode(batch["reference"])[0]
    assert whole.count("drusen") == 61 and "at the macula" in whole


@pytest.mark.parametrize(
    ("config", "columns", "classes"),
    [("segmentation", "mask=m", ("disc",)), ("landmark", "points=fovea", ("fovea",)), ("finetune", "", ("a", "b"))],
)
def test_columns_about_patients_reach_the_evaluation(root, config, columns, classes):
    Image.fromarray(np.eye(40, dtype=np.uint8) * 255).save(root / "mask.png")
    row = "{0}.png,mask.png,8,8,{1},p{0},{2},{3}"
    rows = [row.format(k, "ab"[k % 2], ("f", "m")[k % 2], 40 + k) for k in range(40)]
    table = root / "patients.csv"
    table.write_text("\n".join(["image,m,fovea_x,fovea_y,label,patient,sex,age", *rows]) + "\n")
    word = f"{table},{columns}" if columns else table
    (one,) = recipe(config, "--data", word, "--classes", *classes).evals.values()
    batch = next(iter(one.data()))
    assert set(np.unique(batch["sex"])) <= {"f", "m"} and (np.asarray(batch["age"]) >= 40).all()
