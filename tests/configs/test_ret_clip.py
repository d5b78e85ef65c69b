"""configs/ret_clip.py: what its arguments build; the batches it reads are those the objective wants."""

from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from fundax.config import load
from fundax.interop import keymap
from fundax.params import unflatten

CONFIG = Path(__file__).parents[2] / "configs" / "ret_clip.py"


@pytest.fixture
def table(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        Image.fromarray(rng.integers(0, 255, (40, 48, 3), np.uint8)).save(tmp_path / f"{name}.png")
    rows = ["patient,left,right,text", *(f"p{i},a.png,b.png,left eye: drusen" for i in range(9)), "p9,,b.png,normal"]
    (tmp_path / "patients.csv").write_text("\n".join(rows))
    return tmp_path / "patients.csv"


def check_batch(recipe):
    batch = next(iter(recipe.train(0, 1)))
    for key, wanted in recipe.objective.batch_spec(recipe.batch).items():
        assert (batch[key].shape, batch[key].dtype) == (wanted.shape, wanted.dtype), key
    return batch


def test_smoke_on_a_users_table(table):
    recipe = load(CONFIG, ["--smoke", "--data", str(table)])[0]
    batch = check_batch(recipe)
    assert batch["left_present"].dtype == bool
    assert recipe.steps == 2


def test_the_published_recipe(table):
    recipe = load(CONFIG, ["--data", str(table), "--batch", "2", "--workers", "0"])[0]
    objective = recipe.objective
    assert (objective.image.width, objective.text.hidden, objective.embed, objective.context) == (768, 3072, 512, 100)
    assert (objective.negatives, objective.total) == ("global", "sum")
    assert (objective.image.dtype, objective.image.remat) == ("bfloat16", "full")
    assert recipe.steps == 10 * 5
    check_batch(recipe)
    shapes = keymap.shapes_of(objective)
    params = unflatten({path: np.zeros(shape, np.float32) for path, shape in shapes.items() if "log" in path})
    state = jax.eval_shape(recipe.optimizer.init, params)
    assert jax.tree.leaves(state)


def test_parity_is_the_original_code(table):
    argv = ["--data", str(table), "--batch", "2", "--workers", "0"]
    recipe = load(CONFIG, [*argv, "--parity"])[0]
    assert recipe.objective.negatives == "local"
    assert not recipe.objective.presence
    assert set(recipe.objective.batch_spec(1)) == {"left", "right", "text"}


def test_arguments_win_over_the_preset():
    argv = ["--preset", "laptop", "--batch", "32", "--language", "zh", "--patients", "64"]
    recipe, given = load(CONFIG, [*argv, "--mesh", "-1,2,1", "--accumulate", "2", "--attention", "xla"])
    assert (recipe.batch, recipe.mesh, recipe.accumulate) == (32, (-1, 2, 1), 2)
    assert recipe.objective.image.attention == "xla"
    assert given["preset"] == "laptop"
    assert recipe.steps == 8 * 2
    assert set(recipe.evals) == {"zero_shot", "laterality", "probe"}
