from dataclasses import dataclass
from pathlib import Path

import pytest
from tiny_objective import Linear

from fundax.config import load, take_options
from fundax.encoders import ResNet, UNet, ViT
from fundax.recipe import Recipe, Run
from fundax.types import UserError

CONFIG = '''
"""A config."""
from __future__ import annotations
from typing import Literal
from tiny_objective import recipe as made
from fundax.recipe import Recipe, Run

def recipe(*, steps: int = 3, lr: float = 0.1, size: Literal["S/16", "B/16"] = "S/16", data: tuple[str, ...] = (),
           batch_size: int = 8, smoke: bool = False) -> Recipe:
    """Args:
        steps: how many updates.
    """
    return made(steps=steps, rate=lr, batch=batch_size)
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
    assert load(config, ["--steps", "9", "--smoke", "--steps", "8"])[0].steps == 8


def test_an_argument_that_a_config_does_not_honour_is_refused_by_name(config):
    config.write_text(CONFIG.replace("steps=steps", "steps=2 if smoke else steps"))
    assert load(config, ["--smoke"])[0].steps == 2
    with pytest.raises(UserError, match=r"--steps 3000: .*small.py takes 2 instead; leave it out"):
        load(config, ["--smoke", "--steps", "3000"])
    config.write_text(CONFIG.replace("steps=steps", "steps=0"))
    with pytest.raises(UserError, match=r"--lr: .*small.py trains nothing; leave it out"):
        load(config, ["--lr", "1"])


def test_an_argument_that_smoke_leaves_without_effect_is_refused_by_name():
    path = Path(__file__).parents[2] / "configs" / "segmentation.py"
    with pytest.raises(
        UserError, match=r"--width: the linear head does not use it; leave it out, or give --head unetr"
    ):
        load(path, ["--smoke", "--steps", "3000", "--width", "48"])
    recipe, _ = load(path, ["--smoke", "--steps", "3000", "--width", "48", "--head", "unetr"])
    assert recipe.steps == 3000 and recipe.objective.decoder.width == 48


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--decoder-stride", "4"], "--decoder-stride: the decoder of a ViT does not use it"),
        (
            ["--size", "resnet-smoke", "--head", "unetr"],
            "--head: the decoder of a convolutional encoder with its feature",
        ),
    ],
)
def test_an_argument_of_another_decoder_is_refused_by_name(argv, message):
    path = Path(__file__).parents[2] / "configs" / "landmark.py"
    with pytest.raises(UserError, match=message):
        load(path, ["--smoke", "--image-size", "32", *argv])
    assert load(path, ["--smoke", "--image-size", "32", "--size", "resnet-smoke", "--width", "8"])[0].steps == 2


def test_a_stored_command_holds_in_any_folder(config, tmp_path, monkeypatch):
    (tmp_path / "images").mkdir()
    (tmp_path / "a.csv").write_text("image")
    monkeypatch.chdir(tmp_path)
    source = load(config, ["--data=a.csv,images=images", "gone.csv", "--size", "S/16"])[0].source
    here = f"{tmp_path}/a.csv,images={tmp_path}/images"
    assert source["argv"] == [f"--data={here}", "gone.csv", "--size", "S/16"]
    assert source["args"]["data"] == [here, "gone.csv"]


def test_defaults_of_a_run_hold_where_an_argument_is_not_given(config):
    defaults = {"lr": 0.5, "unknown": 1, "data": ("x.csv",)}
    assert (
        load(config, [], defaults=defaults)[1] | {"lr": 0.5, "data": ("x.csv",)}
        == load(config, [], defaults=defaults)[1]
    )
    assert load(config, ["--lr", "0.2"], defaults=defaults)[1]["lr"] == 0.2


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
    printed = capsys.readouterr().out
    assert stopped.value.code == 0 and "--batch-size" in printed and "how many updates" in printed


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


SHARED = '''
"""A config of shared settings."""
from __future__ import annotations
from typing import Literal
from tiny_objective import recipe as made
from fundax.recipe import Recipe, Run

PRESETS = {"laptop": {"batch": 4, "lr": 1e-2}, "smoke": {"copies": 2}}

def recipe(*, preset: Literal["published", "laptop"] = "published", run: Run = Run(batch=16, steps=9, lr=0.1),
           size: str = "B/16", copies: int = 5) -> Recipe:
    return made(rate=run.lr, **run.recipe(run.total(3)))
'''


@pytest.fixture
def shared(tmp_path):
    path = tmp_path / "shared.py"
    path.write_text(SHARED)
    return path


def test_presets_and_smoke_are_defaults_which_an_argument_overrides(shared):
    assert load(shared)[0].batch == 16
    recipe, args = load(shared, ["--preset=laptop", "--mesh", "-1,2,1", "--accumulate", "2", "--seed", "3"])
    assert (recipe.batch, recipe.mesh, recipe.accumulate, recipe.seed) == (4, (-1, 2, 1), 2, 3)
    assert (args["batch"], args["lr"], args["copies"]) == (4, 1e-2, 5)
    recipe, args = load(shared, ["--preset", "laptop", "--smoke", "--steps", "7"])
    assert (recipe.batch, recipe.steps, args["size"], args["copies"], args["lr"]) == (8, 7, "smoke", 2, 1e-2)
    assert load(shared, ["--smoke", "--no-smoke"])[0].batch == 16
    with pytest.raises(UserError, match=r"--mesh '4x2': expected numbers such as 4,2"):
        load(shared, ["--mesh", "4x2"])
    shared.with_name("twice.py").write_text(SHARED.replace("copies: int", "lr: float = 1.0, copies: int"))
    with pytest.raises(UserError, match="argument --lr is defined twice"):
        load(shared.with_name("twice.py"))
    with pytest.raises(UserError, match="invalid choice 'labtop' for argument '--preset'"):
        load(shared, ["--preset", "labtop"])


@pytest.mark.parametrize(
    ("argv", "default", "selects"),
    [
        ([], ("val/error", "min"), ("val/error", "min")),
        (["--best", "mine/error"], ("val/error", "min"), ("mine/error", "min")),
        (["--best", "mine/auc"], ("val/error", "min"), "mine/auc"),
        (["--best", "mine/loss:min"], None, ("mine/loss", "min")),
    ],
)
def test_best_keeps_the_direction_of_the_same_metric(shared, argv, default, selects):
    shared.write_text(SHARED.replace("made(rate", f"made(best={default!r}, rate"))
    assert load(shared, argv)[0].best == selects
    with pytest.raises(UserError, match=r"expected a metric"):
        load(shared, ["--best", "val/auc:most"])


def test_options_of_a_program_are_taken_out_and_shown_by_help(shared, capsys):
    (found,), rest = take_options(["--lr", "1", "--workdir", "x", "--mesh", "-1,1", "-h"], Where)
    assert found == Where("x") and rest == ["--lr", "1", "--mesh", "-1,1", "--help"]
    with pytest.raises(SystemExit):
        load(shared, rest, others=(Where,))
    text = capsys.readouterr().out
    assert all(part in text for part in ("--workdir", "Peak learning rate.", "run options", "where options"))


@dataclass(frozen=True)
class Where:
    """Where it is.

    Args:
        workdir: Folder.
    """

    workdir: str = ""


def test_settings_for_modules_that_lack_them():
    assert Run(dtype="bfloat16").compute(ResNet, ViT) == (
        {"dtype": "bfloat16"},
        {"dtype": "bfloat16", "remat": "none", "attention": "plain"},
    )
    assert Run().compute(UNet) == ({"dtype": "float32"},)
    with pytest.raises(UserError, match="--attention cudnn: ResNet has no such choice"):
        Run(attention="cudnn").compute(ResNet)
    assert Run(epochs=3).total(5) == 15 and Run(steps=4, epochs=3).total(5) == 4
