"""Every config runs end to end, two or three steps of almost nothing: a config that is not run rots."""

import json
from pathlib import Path

import pytest

from fundax.recipe import load
from fundax.runtime.checkpoint import ranking
from fundax.train import fit

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
        assert any(ranking(recipe.best)[0] in row for row in rows), f"{recipe.best} is never logged"
    for name in ("config.json", "preprocessing.json", "checkpoints"):
        assert (tmp_path / name).exists()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_opens_with_its_command(path):
    text = path.read_text()
    assert text.startswith(f'"""python launch.py train configs/{path.name}') and len(text.splitlines()) <= 200
