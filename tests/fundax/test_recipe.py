import pytest
from tiny_objective import Linear

from fundax.config import load
from fundax.recipe import Recipe
from fundax.types import UserError

CONFIG = '''
"""A config."""
from __future__ import annotations
from typing import Literal
from tiny_objective import recipe as made
from fundax.recipe import Recipe

def recipe(*, steps: int = 3, lr: float = 0.1, size: Literal["S/16", "B/16"] = "S/16", data: tuple[str, ...] = (),
           batch_size: int = 8, smoke: bool = False) -> Recipe:
    """Args:
        steps: how many updates.
    """
    return made(steps=2 if smoke else steps, rate=lr)
'''


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "small.py"
    path.write_text(CONFIG)
    return path


def test_keyword_arguments_are_the_command_line(config):
    recipe, args = load(config, ["--steps", "7", "--lr", "1e-3", "--data", "a.csv", "b.csv", "--batch-size", "4"])
    assert isinstance(recipe, Recipe) and recipe.steps == 7 and recipe.objective == Linear()
    assert args == {"steps": 7, "lr": 1e-3, "size": "S/16", "data": ("a.csv", "b.csv"), "batch_size": 4, "smoke": False}
    assert recipe.source["argv"][:2] == ["--steps", "7"] and recipe.source["args"]["data"] == ["a.csv", "b.csv"]
    assert load(config, ["--steps", "9", "--smoke", "--steps", "8"])[1]["steps"] == 8


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--stpes", "7"], "unknown argument --stpes; did you mean --steps"),
        (["--batch_sise=7"], "unknown argument --batch_sise; did you mean --batch-size"),
        (["--steps", "many"], "Error parsing --steps: invalid literal .*'many'"),
        (["--size", "B/17"], r"invalid choice 'B/17' for argument '--size'. Expected one of \('S/16', 'B/16'\)"),
        (["stray"], "stray"),
    ],
)
def test_a_mistake_is_one_line(config, argv, message):
    with pytest.raises(UserError, match=message) as caught:
        load(config, argv)
    assert "\n" not in str(caught.value)


def test_help_names_every_argument(config, capsys):
    with pytest.raises(SystemExit) as stopped:
        load(config, ["--help"])
    said = capsys.readouterr().out
    assert stopped.value.code == 0 and "--batch-size" in said and "how many updates" in said


def test_a_missing_config_names_the_nearest(config):
    with pytest.raises(UserError, match=r"smal.py does not exist; did you mean .*small.py"):
        load(config.with_name("smal.py"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1", r"expected a function recipe"),
        ("def recipe(): return 3", "returned int; expected a fundax.recipe.Recipe"),
    ],
)
def test_a_config_must_give_a_recipe(tmp_path, text, message):
    (tmp_path / "c.py").write_text(text)
    with pytest.raises(UserError, match=message):
        load(tmp_path / "c.py")
