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
from fundax.runtime.workdir import check_local, read_optional_json
from fundax.stored import SPLIT, digest_of_data, names_of
from fundax.types import UserError

PARTS = ("val", "test", "all")
_DATA = ("data", "val")
_OF_ITS_DATA = (*_DATA, "split", "image_dir", "part")  # arguments of a run that say nothing of other data
_log = logging.getLogger("fundax")


def defaults_to_resume(workdir: str, argv: Sequence[str]) -> dict[str, Any]:
    """Values of arguments that a command leaves open in a run's folder: the split that the run made of the same data."""
    check_local(workdir)
    if not workdir or not has_checkpoints(workdir):
        return {}
    return _own_split(workdir, read_optional_json(Path(workdir) / "config.json").get("argv", []), argv)


def repeated(run: str, stored: Sequence[str], argv: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """The command line that evaluates a run, and values of the arguments that it leaves open.

    stored: the run's own arguments. argv: those given now. Other data are scored whole, with the run's classes.
    """
    asked = words.given(argv)
    objective = read_optional_json(Path(run) / "config.json").get("objective")
    defaults: dict[str, Any] = {"classes": names} if (names := names_of(objective, Path(run))) else {}
    if "data" in asked and not _same(stored, argv, ("data",)):
        return [*words.without(stored, _OF_ITS_DATA), *argv], defaults | {"part": "all"}
    return [*stored, *argv], defaults | _own_split(run, stored, [*stored, *argv])


def _own_split(run: str, stored: Sequence[str], argv: Sequence[str]) -> dict[str, Any]:
    path = (Path(run) / SPLIT).absolute()
    if not path.is_file() or "split" in words.given(argv) or not _same(stored, argv, _DATA):
        return {}
    return {"split": str(path)}


def _same(stored: Sequence[str], argv: Sequence[str], names: Sequence[str]) -> bool:
    before, now = words.given(words.absolute(stored)), words.given(words.absolute(argv))
    return all(before.get(name, []) == now.get(name, []) for name in names)


def named(recipe: Recipe, run: str, argv: Sequence[str], name: str, step: int) -> Recipe:
    """The recipe with names of its results under which nothing of the run's own results is replaced.

    Results on other data are named `name`, by default by their source; those of another step than the default one end in
    its number. Raises UserError where a name is needed, or is one of the run's own.
    """
    stored = read_optional_json(Path(run) / "config.json")
    before, now = stored.get("data", {}), recipe.data
    digests = {source["digest"] for source in before.get("sources", [])}
    foreign = [source for source in now.get("sources", []) if source["digest"] not in digests]
    known = bool(digests) and bool(now.get("sources"))
    other_split = known and not foreign and _split_differs(before, now)
    other = bool(foreign) or other_split if known else bool(words.given(argv).keys() & {*_DATA, "elite"})
    if known and not foreign and now.get("part") == "all":
        _log.info("these are the run's own data, and part all includes the images it was trained on")
    if not other and not name:
        default = resolve(run)
        ending = "" if step == default else f"_step{step}"
        return replace(recipe, evals={f"{key}{ending}": one for key, one in recipe.evals.items()})
    name = name or "+".join(dict.fromkeys(str(source["name"]) for source in foreign or now.get("sources", [])))
    if not name or other_split or "/" in name or name.startswith(".") or name in {*recipe.evals, *PARTS}:
        why = f"{name!r} cannot be used" if name and not other_split else "these are other parts than the run's own"
        raise UserError(
            f"{why}: give --name NAME, a word that names the results and is none of {', '.join(recipe.evals)}"
        )
    parts = [key for key in recipe.evals if key in PARTS]
    keys = {key: name if parts == [key] else f"{name}_{key}" for key in recipe.evals}
    return replace(recipe, evals={keys[key]: one for key, one in recipe.evals.items()})


def _split_differs(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    return bool(before.get("split") and now.get("split")) and digest_of_data(before) != digest_of_data(now)


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
