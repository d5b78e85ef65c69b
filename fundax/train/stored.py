"""Metadata that a run stores (config.json, preprocessing.json, split.json, tokenizer/), and a check whether a command continues it.

A run is continued by the settings that it was started with. What may change is in MAY_CHANGE; everything else changes the
meaning of the outputs or the training, so it needs a new folder. Nothing is written before this check."""

from __future__ import annotations

import datetime
import fnmatch
import importlib.metadata
import json
import logging
import platform
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from fundax.recipe import Recipe
from fundax.runtime import argv as words
from fundax.runtime import serialize
from fundax.runtime.best import ranking
from fundax.runtime.checkpoint import has_checkpoints
from fundax.runtime.remote import shown
from fundax.runtime.shapes import Config, Preprocessing
from fundax.runtime.workdir import digest_of_json, make, read_about, read_optional_json, write_json
from fundax.types import Contrastive, UserError

SPLIT = "split.json"
MODALITIES = "modalities.json"
MAY_CHANGE = frozenset(
    {"steps", "epochs", "eval_every", "save_every", "keep", "workers", "on_bad_image", "mesh", "cache"}
    | {"remat", "attention"}
)
_OF_RUN = ("lr", "weight_decay", "dtype")  # compared also where neither command names them
_MOVED = frozenset(("data", "val", "image_dir", "data_dir", "modality_file"))  # where the same data are
_PACKAGES = ("fundax", "jax", "flax", "optax", "orbax-checkpoint", "numpy")
_log = logging.getLogger("fundax")

Difference = tuple[str, Any, Any]  # name, the run's value, this command's


def changes(recipe: Recipe, workdir: str | Path) -> list[Difference]:
    """The allowed changes that a recipe makes to the run in `workdir`; [] for a new run. Nothing is written.

    Raises UserError, with both values, for a change of the meaning of the outputs or of the training.
    """
    folder, trained = Path(workdir), has_checkpoints(workdir)
    stored = read_optional_json(folder / "config.json", Config)
    if not stored or (recipe.steps and not trained):  # a run that ended before its first checkpoint starts anew
        return []
    if trained and not recipe.steps:
        raise UserError(f"{shown(folder)} holds a trained run, and this config trains nothing; give another --workdir")
    if "data" not in stored:
        _log.info("%s is of a version that stored no record of its data, so data are not compared", folder)
    exact = MAY_CHANGE | ({"accumulate"} if isinstance(recipe.objective, Contrastive) else set())
    known = _sources(recipe.data)
    exact |= _MOVED if known and known == _sources(stored.get("data", {})) else set()
    found: dict[str, Difference] = {}
    for one in _differences(recipe, folder, stored):
        found.setdefault(_bare(one[0]), one)
    if refused := [one for name, one in found.items() if name not in exact]:
        more = f"; and {len(refused) - 4} more" if len(refused) > 4 else ""
        raise UserError(
            f"{shown(folder)} is a run of other settings: {in_words(refused[:4])}{more} (the run's -> this command's). Nothing was "
            "changed. Continue it with its own settings, or start anew with another --workdir"
        )
    return list(found.values())


def in_words(differences: Sequence[Difference]) -> str:
    """Differences as text: "--steps 100 -> 200"."""
    return "; ".join(
        f"{name.removesuffix('.@')} {_short(theirs)} -> {_short(ours)}" for name, theirs, ours in differences
    )


def check_evaluation(recipe: Recipe, workdir: str | Path) -> list[Difference]:
    """Check that a recipe can evaluate the run in `workdir`: nothing is compared by position. Returns [].

    Raises UserError for other classes than the run's, and for results of other data that would be replaced.
    """
    stored = read_optional_json(Path(workdir) / "config.json", Config)
    theirs = names_of(stored.get("objective"), Path(workdir))
    ours = names_of(_objective(recipe), None, recipe.preprocessing) if theirs else ()
    if ours and theirs != ours:
        raise UserError(
            f"{workdir} has the classes {', '.join(theirs)}; these data have {', '.join(ours)}. Labels are matched by name: "
            "give --classes with the run's names in their order"
        )
    digest = digest_of_data(recipe.data)
    for name in recipe.evals:
        about = read_about(workdir, name)
        if digest and about.get("digest") and about["digest"] != digest:
            before = " and ".join(about.get("data", [])) or "other data"
            raise UserError(
                f"evals/{name}.npz of {workdir} holds results of {before}; give --name NAME for those of these data"
            )
    return []


def _bare(name: str) -> str:
    return name.rpartition(".")[2].removeprefix("--").replace("-", "_")


def _differences(recipe: Recipe, folder: Path, stored: Mapping[str, Any]) -> Iterator[Difference]:
    """All differences, the most informative first."""
    now, complete = _objective(recipe), "data" in stored  # a run of an earlier version is compared by what it has
    theirs, ours = names_of(stored.get("objective"), folder), names_of(now, None, recipe.preprocessing)
    if theirs and ours and theirs != ours:
        yield "classes", theirs, ours
    yield from _of_data(stored.get("data", {}), recipe.data)
    yield from _of_arguments(stored, recipe.source)
    for name in ("batch", "seed", "best"):
        mine = _plain(getattr(recipe, name))
        if name in stored and stored[name] != mine and not (name == "best" and _same_best(stored[name], recipe)):
            yield name, stored[name], mine
    before = _as_now(stored.get("objective")) if now else None
    images = read_optional_json(folder / "preprocessing.json", Preprocessing)
    pairs = [("objective", before, now)] if before else []
    pairs += [("preprocessing", images, _plain(recipe.preprocessing))] if images or complete else []
    for what, old, new in ((what, _leaves(old, what), _leaves(new, what)) for what, old, new in pairs):
        for name in sorted(old.keys() | new.keys() if complete else old.keys() & new.keys()):
            if old.get(name) != new.get(name) and name not in (f"{what}.classes", f"{what}.names"):
                yield name, old.get(name), new.get(name)
    if recipe.tokenizer is not None and (folder / "tokenizer").is_dir():
        with tempfile.TemporaryDirectory() as temporary:
            recipe.tokenizer.save(Path(temporary) / "tokenizer")
            known, mine = _vocabulary(folder / "tokenizer"), _vocabulary(Path(temporary) / "tokenizer")
        if known != mine:
            yield "tokenizer", known, mine


def _same_best(theirs: Any, recipe: Recipe) -> bool:
    """Whether two metrics select by the same results, such as zero_shot*/auc and zero_shot/auc of a single evaluation."""

    def selected(best: Any) -> tuple[Any, ...]:
        name, sign = ranking(best if isinstance(best, str) else tuple(best))
        pattern, _, metric = name.partition("/")
        return [one for one in recipe.evals if fnmatch.fnmatchcase(one, pattern)], metric, sign

    return bool(theirs and recipe.best) and selected(theirs) == selected(recipe.best)


def _of_data(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> Iterator[Difference]:
    before, after = (_sources(data) for data in (theirs, ours))
    if before and after and before != after:
        yield "data", _named_sources(theirs), _named_sources(ours)
    elif theirs.get("split") and ours.get("split") and _split(theirs) != _split(ours):
        yield "split", _split(theirs), _split(ours)


def _of_arguments(stored: Mapping[str, Any], source: Mapping[str, Any]) -> Iterator[Difference]:
    """Arguments that one of the two commands names, with different values."""
    theirs, ours = (_plain(words.absolute_values(one.get("args", {}))) for one in (stored, source))
    asked = words.given(stored.get("argv", [])).keys() | words.given(source.get("argv", [])).keys()
    for name in sorted((asked | {*_OF_RUN}) & theirs.keys() & ours.keys()):
        if name not in ("split", "best") and theirs[name] != ours[name]:  # which are compared by what they say
            yield f"--{name.replace('_', '-')}", theirs[name], ours[name]


def describe(recipe: Recipe, workdir: str | Path, step: int = 0, changed: Sequence[Difference] = ()) -> None:
    """Write config.json, config.py, preprocessing.json, split.json, its salt and tokenizer/ into a run's folder; process 0 only.

    step: the step that training starts from. changed: see `changes`; both are added to "history" in config.json.
    """
    if jax.process_index():
        return
    make(workdir)
    folder = Path(workdir)
    objective = _objective(recipe)
    if objective is None:
        _log.warning("config.json holds no objective, which has no JSON form; the run opens only with its config")
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    entry = {"time": now, "step": step, "argv": recipe.source.get("argv", [])}
    entry |= {"changed": {name: [theirs, ours] for name, theirs, ours in changed}} if changed else {}
    before = read_optional_json(folder / "config.json", Config).get("history", []) if step else []
    config = {
        **recipe.source,
        "objective": objective,
        "steps": recipe.steps,
        "batch": recipe.batch,
        "seed": recipe.seed,
        "best": recipe.best,
        "origin": dict(recipe.origin),
        "data": {**recipe.data, **({"split": _split(recipe.data)} if recipe.data.get("split") else {})},
        "versions": {"python": platform.python_version()} | {p: _version(p) for p in _PACKAGES},
        "history": [*before, entry],
    }
    if split := recipe.data.get("split"):  # as data_pipelines.sources.splits.write_split does
        (folder / SPLIT).with_suffix(".salt").write_text(split["salt"] + "\n", encoding="utf-8")
        write_json(folder / SPLIT, {key: value for key, value in split.items() if key != "salt"})
    if recipe.data.get("modalities"):
        write_json(folder / MODALITIES, recipe.data["modalities"])
    write_json(folder / "config.json", config)
    write_json(folder / "preprocessing.json", dict(recipe.preprocessing))
    original, copy = Path(str(recipe.source.get("config", ""))), folder / "config.py"
    if original.is_file() and original.resolve() != copy.resolve():
        shutil.copyfile(original, copy)
    if recipe.tokenizer is not None:
        recipe.tokenizer.save(folder / "tokenizer")


def names_of(objective: Any, folder: Path | None, preprocessing: Mapping[str, Any] | None = None) -> tuple[str, ...]:
    """The names of a model's classes, findings or values in order, from its objective as JSON or its preprocessing; or ()."""
    objective = objective if isinstance(objective, Mapping) else {}
    for name in ("classes", "names"):
        value = objective.get(name)
        if isinstance(value, Mapping) and isinstance(value.get("@tuple"), list) and value["@tuple"]:
            return tuple(map(str, value["@tuple"]))
    kept = read_optional_json(folder / "preprocessing.json", Preprocessing) if folder else preprocessing or {}
    return tuple(kept.get("classes", ()))


def digest_of_data(data: Mapping[str, Any]) -> str:
    """A digest of the sources of a record of data (Recipe.data) and of how they are split; "" where none is recorded."""
    if not data.get("sources"):
        return ""
    return digest_of_json([_sources(data), _split(data).get("digest", "")])


def _sources(data: Mapping[str, Any]) -> list[Any]:
    """Each source of a record: digest, rows, and its sampling weight."""
    weights = [[o for o in str(s.get("word", "")).split(",")[1:] if o.startswith("weight=")] for s in _named(data)]
    return [[s.get("digest"), s.get("rows"), w] for s, w in zip(_named(data), weights, strict=True)]


def _named(data: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return list(data.get("sources", []))


def _split(data: Mapping[str, Any]) -> dict[str, Any]:
    """A split as stored in config.json: sizes and a digest. split.json has the whole split."""
    split = data.get("split") or {}
    if not split or "parts" not in split:
        return dict(split)
    return {"digest": split["digest"], "counts": split["counts"]}


def _named_sources(data: Mapping[str, Any]) -> str:
    return " and ".join(
        f"{s.get('name')} ({s.get('rows')} rows, digest {str(s.get('digest'))[:8]})" for s in _named(data)
    )


def _vocabulary(folder: Path) -> str:
    """A line that differs where two tokenizers read a text differently."""
    model = read_optional_json(folder / "tokenizer.json").get("model", {})
    context = read_optional_json(folder / "tokenizer_config.json").get("model_max_length")
    return f"{len(model.get('vocab', ()))} tokens (digest {digest_of_json(model)[:8]}), {context} in a text"


def _leaves(value: Any, where: str) -> dict[str, Any]:
    """The values of nested objects by dotted path."""
    if not isinstance(value, Mapping) or any(key.startswith("@") and key != "@" for key in value):
        return {where: value}
    return {path: leaf for key, one in value.items() for path, leaf in _leaves(one, f"{where}.{key}").items()}


def _as_now(objective: Any) -> Any:
    """Convert a stored objective to the form of this version; earlier ones had other module names and fewer fields."""
    try:
        return None if objective is None else serialize.to_json(serialize.from_json(objective))
    except UserError as error:
        _log.info("the run's objective cannot be compared: %s", error)
        return None


def _objective(recipe: Recipe) -> Any:
    """The objective as JSON, or None where it has no such form."""
    try:
        return serialize.to_json(recipe.objective)
    except UserError as error:
        _log.debug("the objective is not stored: %s", error)
        return None


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value))


def _short(value: Any) -> str:
    if isinstance(value, Mapping) and len(value) == 1:
        (value,) = value.values()
    text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return (text if len(text) <= 100 else f"{text[:97]}...") or "nothing"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
