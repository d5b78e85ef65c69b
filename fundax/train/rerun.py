"""Run a run's command again: to resume it, or to evaluate it on its own data or on others, which get a name of their own."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fundax.recipe import Recipe
from fundax.runtime import argv as words
from fundax.runtime.checkpoint import has_checkpoints, resolve
from fundax.runtime.shapes import Config
from fundax.runtime.workdir import read_optional_json
from fundax.train.stored import MODALITIES, SPLIT, digest_of_data, names_of
from fundax.types import UserError

PARTS = ("val", "test", "all")
_DATA = ("data", "val")
_IMAGES = (*_DATA, "elite", "image_dir", "data_dir", "patients", "modalities", "seed", "fractions")
_OF_ITS_DATA = (*_DATA, "split", "image_dir", "part")  # arguments of a run that say nothing of other data
_log = logging.getLogger("fundax")


def defaults_to_resume(workdir: str, argv: Sequence[str]) -> dict[str, Any]:
    """Values of arguments that a command leaves open in a run's folder: the split that the run made of the same data."""
    if not workdir or not has_checkpoints(workdir) or "fold" in words.given(argv):  # a fold makes the same split again
        return {}
    return _own_split(workdir, read_optional_json(Path(workdir) / "config.json", Config).get("argv", []), argv)


def trusted_config(run: str | Path, trust: bool = False) -> Path:
    """A run's copy of its config, which is a program: opening it runs it.

    Raises UserError if it differs from all configs of this version, unless `trust` confirms that the user has read it.
    """
    copy, ours = Path(run) / "config.py", Path(__file__).parents[2] / "configs"
    if trust or not copy.is_file() or any(copy.read_bytes() == one.read_bytes() for one in ours.glob("*.py")):
        return copy
    raise UserError(
        f"{copy} differs from all configs of this version of fundax, and this command would execute it. If you know "
        "who wrote it, add --trust"
    )


def repeated(run: str, stored: Sequence[str], argv: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """The command line that evaluates a run, and values of the arguments that it leaves open.

    stored: the run's own arguments. argv: those given now. Other data are scored whole, with the run's classes.
    """
    own = _own_modalities(run, argv)
    stored = words.without(stored, tuple(own)) if own else stored
    if "data" not in words.given(argv) or _same(stored, argv, ("data",)):
        split = _own_split(run, stored, [*stored, *argv])
        return [*(words.without(stored, ("fold",)) if split else stored), *argv], split | own
    objective = read_optional_json(Path(run) / "config.json", Config).get("objective")
    names = names_of(objective, Path(run))
    return [*words.without(stored, _OF_ITS_DATA), *argv], {"part": "all"} | ({"classes": names} if names else {}) | own


def _own_split(run: str, stored: Sequence[str], argv: Sequence[str]) -> dict[str, Any]:
    path = (Path(run) / SPLIT).absolute()
    if (
        not path.is_file()
        or "split" in words.given(argv)
        or not _same(stored, argv, (*_DATA, "fractions", "fold", "seed"))
    ):
        return {}
    return {"split": str(path)}


def _own_modalities(run: str, argv: Sequence[str]) -> dict[str, Any]:
    """The modalities that a run was trained with, which it keeps, unless the command gives others."""
    path = (Path(run) / MODALITIES).absolute()
    return {"modality_file": str(path)} if path.is_file() and "modality_file" not in words.given(argv) else {}


def _same(stored: Sequence[str], argv: Sequence[str], names: Sequence[str]) -> bool:
    before, now = words.given(words.absolute(stored)), words.given(words.absolute(argv))
    return all(before.get(name, []) == now.get(name, []) for name in names)


def named(recipe: Recipe, run: str, name: str, step: int) -> Recipe:
    """The recipe with names of its results under which nothing of the run's own results is replaced.

    Results on other data are named `name`, by default by their source; those of another step than the default one end in
    its number. Raises UserError if a name is needed, or is one of the run's own.
    """
    stored = read_optional_json(Path(run) / "config.json", Config)
    digests = {source["digest"] for source in stored.get("data", {}).get("sources", [])}
    foreign = [source for source in recipe.data.get("sources", []) if source["digest"] not in digests]
    if digests and not foreign and recipe.data.get("part") == "all":
        _log.info("these are the run's own data, and part all includes the images it was trained on")
    if not name and not _other(recipe, stored, bool(digests), bool(foreign)):
        ending = "" if step == resolve(run) else f"_step{step}"
        return replace(recipe, evals={f"{key}{ending}": one for key, one in recipe.evals.items()})
    name = name or "+".join(dict.fromkeys(str(source["name"]).replace("/", "_") for source in foreign))
    own = sorted({*recipe.evals, *PARTS})
    if not name or "/" in name or name.startswith(".") or name in own:
        given = f"--name {name}" if name else "these are other images than the run's own: give --name"
        raise UserError(f"{given}: expected a word for their results, none of {', '.join(own)}")
    parts = [key for key in recipe.evals if key in PARTS]
    keys = {key: name if parts == [key] else f"{name}_{key}" for key in recipe.evals}
    return replace(recipe, evals={keys[key]: one for key, one in recipe.evals.items()})


def _other(recipe: Recipe, stored: Mapping[str, Any], known: bool, foreign: bool) -> bool:
    """Whether a recipe evaluates other images than the run's; `known`: the run stored what it read."""
    before, now = stored.get("data", {}), recipe.data
    if known and now.get("sources"):
        split = before.get("split") and now.get("split")
        return foreign or (bool(split) and digest_of_data(before) != digest_of_data(now))
    if "data" not in stored:  # an earlier version's, whose values of arguments may have been others
        return not _same(stored.get("argv", []), recipe.source.get("argv", []), (*_DATA, "elite"))
    theirs, ours = (words.absolute_values(one.get("args", {})) for one in (stored, recipe.source))
    return any(theirs[name] != ours[name] for name in _IMAGES if name in theirs and name in ours)


def wrong(error: Exception, run: str, stored: Mapping[str, Any], argv: Sequence[str]) -> Exception:
    """The error of a run's config, with where the wrong argument comes from."""
    kept = words.without(stored.get("argv", []), words.given(argv))
    gone = [path for path in words.missing_paths(kept) if path in str(error)]
    if gone:
        path = Path(run) / "config.json"
        return UserError(f"{error}; {gone[0]} is what the run was trained with ({path}): --data gives its place now")
    if not isinstance(error, UserError):
        return error
    original = f"configs/{Path(stored.get('config', 'NAME.py')).name}"
    return UserError(f"{error}; if the run is of an older version: --config {original} and its arguments")
