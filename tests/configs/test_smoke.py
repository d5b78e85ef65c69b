"""Every config runs end to end: two or three steps of a tiny model on a few images."""

import json
from pathlib import Path

import pytest

from fundax.config import load
from fundax.results.read import read_result, result_files
from fundax.runtime.best import measured
from fundax.train.loop import fit

MAX_LINES, MEAN_LINES = 80, 60
CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.py"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_smoke(path, tmp_path):
    recipe, args = load(path, ["--smoke"])
    assert args["smoke"] and recipe.steps <= 3
    state = fit(recipe, tmp_path)
    assert int(state.step) == recipe.steps
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    evaluated = {name.split("/")[0] for row in rows for name in row} - {"step", "time", "train"}
    assert evaluated == set(recipe.evals)
    if recipe.best:
        assert any(measured(recipe.best, row) is not None for row in rows), f"{recipe.best} is never logged"
    for name in ("config.json", "preprocessing.json", "checkpoints"):
        assert (tmp_path / name).exists()
    results = [read_result(file) for file in result_files(tmp_path)]  # what the end of a run and its page read
    assert len(results) == len(recipe.evals)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_opens_with_its_command(path):
    text = path.read_text()
    assert text.startswith(f'"""python launch.py train configs/{path.name}') and len(text.splitlines()) <= MAX_LINES


def test_configs_are_short():
    assert sum(len(path.read_text().splitlines()) for path in CONFIGS) / len(CONFIGS) <= MEAN_LINES
