import json

import jax
import numpy as np
import pytest
from tiny_objective import recipe

from data_pipelines.records import text_hash
from fundax.encoders.clip_text import TextTransformer
from fundax.encoders.vit import ViT
from fundax.objectives.clip import CLIP
from fundax.runtime import serialize
from fundax.runtime.workdir import check_output, read_config, write_arrays
from fundax.train.stored import describe
from fundax.types import UserError


class Words:
    def save(self, folder):
        folder.mkdir()
        (folder / "words").write_text("eye")


def test_a_run_describes_itself(tmp_path):
    config = tmp_path / "mine.py"
    config.write_text("x = 1")
    objective = CLIP(ViT(16, 8, 32, 1, 2), TextTransformer(16, 6, 32, 1, 2), embed=8)
    source = {"config": str(config), "argv": ["--lr", "1"], "args": {"lr": 1.0}}
    run = recipe(objective=objective, tokenizer=Words(), preprocessing={"image_size": 16}, source=source)
    describe(run, tmp_path / "run")
    found = read_config(tmp_path / "run")
    assert serialize.from_json(found["objective"]) == objective
    assert found["argv"] == ["--lr", "1"] and found["steps"] == 6 and found["versions"]["jax"] == jax.__version__
    assert json.loads((tmp_path / "run" / "preprocessing.json").read_text()) == {
        "image_size": 16,
        "resize": "squash",
        "interpolation": "bicubic",
        "mean": list(objective.mean),
        "std": list(objective.std),
    }
    assert (tmp_path / "run" / "config.py").read_text() == "x = 1"
    assert (tmp_path / "run" / "tokenizer" / "words").exists()


def test_arrays_are_replaced_whole(tmp_path):
    write_arrays(tmp_path, "e", {"logits": np.zeros(2)})
    write_arrays(tmp_path, "e", {"labels": np.ones(3)})
    with np.load(tmp_path / "evals" / "e.npz") as stored:
        assert list(stored) == ["labels"]
    assert [p.name for p in (tmp_path / "evals").iterdir()] == ["e.npz"]


def test_what_is_no_run_or_cannot_be_one(tmp_path):
    with pytest.raises(UserError, match=r"is not a run: it has no config.json"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config.json: not JSON"):
        read_config(tmp_path)
    with pytest.raises(UserError, match=r"workdir .*config.json"):
        describe(recipe(), tmp_path / "config.json")


def test_record_numbers_cannot_be_found_again_in_evaluations(tmp_path):
    numbers = [str(10_000 + 7 * k) for k in range(1000)]
    groups = np.array([text_hash(number.encode()) >> 33 for number in numbers], np.int32)  # as evaluations group rows
    rows = np.random.default_rng(0).integers(0, 1000, 3000)
    write_arrays(tmp_path, "val", {"patient": groups[rows], "score": np.zeros(3000)})
    with np.load(tmp_path / "evals" / "val.npz") as stored:
        written = stored["patient"]
    guesses = {text_hash(str(k).encode()) >> 33 for k in range(10_000, 20_000)}
    assert not guesses & set(written.tolist()) and written[0] == 0 and written.max() == len(set(rows.tolist())) - 1
    same = rows[:, None] == rows[None]
    np.testing.assert_array_equal(written[:, None] == written[None], same)  # the same rows of the same patients


def test_outputs_are_checked_before_the_work(tmp_path):
    check_output(tmp_path / "new" / "folder" / "out.csv")
    assert (tmp_path / "new" / "folder").is_dir() and not list((tmp_path / "new" / "folder").iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"out.csv: cannot be written \((File exists|Not a directory)"):
        check_output(tmp_path / "file" / "out.csv")
    with pytest.raises(UserError, match=r"/proc/out.csv: cannot be written \("):
        check_output("/proc/out.csv")
