"""An argument means the same in every config: one help text for each name, in one table."""

import dataclasses
import inspect
import re
from pathlib import Path

import pytest

from data_pipelines.open import Data, Sources
from data_pipelines.tasks.labelled import Look
from data_pipelines.tasks.visits import VisitOptions
from fundax.config import SMOKE, VOCABULARY, arguments_of
from fundax.interop import Encoder
from fundax.objectives import Decoder, Supervision
from fundax.objectives.ibot import Distillation
from fundax.objectives.visit import Terms
from fundax.recipe import Run

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.py"))
SHARED = {field.name for one in (Run, Data, Sources) for field in dataclasses.fields(one)}
GROUPS = {
    field.name
    for one in (Encoder, Supervision, Decoder, Distillation, Terms, VisitOptions, Look)
    for field in dataclasses.fields(one)
}  # some configs have them plainly


@pytest.fixture(scope="module")
def arguments():
    return {path.stem: arguments_of(path) for path in CONFIGS}


def test_every_argument_is_in_the_table_or_shared(arguments):
    names = {name for found in arguments.values() for name in found}
    assert names <= SHARED | GROUPS | set(VOCABULARY)
    assert not SHARED & set(VOCABULARY), "a name of Run or Data has its help there"
    assert set(VOCABULARY) <= names, "an entry of the table that no config has"


def test_one_help_text_for_each_name(arguments):
    texts: dict[str, set[str]] = {}
    for found in arguments.values():
        for name, text in found.items():
            texts.setdefault(name, set()).add(text)
    assert {name: text for name, text in texts.items() if len(text) != 1} == {}
    for name, (text,) in texts.items():
        assert re.fullmatch(r"[A-Z].*[.\"]", text) and len(text) < 140, f"{name}: {text!r} is not a short sentence"
        assert not re.match(r"(Of|Whose|Those|What|That) ", text), f"{name}: {text!r} needs the name to be understood"


def test_every_config_has_the_settings_of_every_run(arguments):
    for name, found in arguments.items():
        assert {field.name for field in dataclasses.fields(Run)} <= set(found), name


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_presets_and_smoke_set_arguments_that_exist(path, arguments):
    from fundax.config import module_of

    module = module_of(path)
    presets = getattr(module, "PRESETS", {})
    for name, values in presets.items():
        assert set(values) <= set(arguments[path.stem]), name
    parameter = inspect.signature(module.recipe, eval_str=True).parameters.get("preset")
    if parameter is not None:
        assert set(presets) - {"smoke"} <= set(parameter.annotation.__args__)
        assert parameter.default in parameter.annotation.__args__
    assert {"steps", "batch", "seed"} <= set(arguments[path.stem]) and {"steps", "batch", "size"} <= set(SMOKE)
