"""Export runs to other programs, and import their checkpoints: the commands export and import of launch.py."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from data_pipelines.language import tokenizers
from fundax.interop.checkpoint import Checkpoint, Format, never_compared, preprocessing_of
from fundax.interop.folder import fresh_folder, read_record
from fundax.interop.formats import check_name, writer
from fundax.interop.initial import own_state
from fundax.interop.read import load, read_run
from fundax.interop.weight_files import LARGEST_FILE, check_dtype, rounded, store_as
from fundax.interop.weights import digests, read_state
from fundax.objectives.clip import CLIP
from fundax.objectives.dense import Landmark, Segment
from fundax.runtime import serialize
from fundax.runtime.checkpoint import Checkpoints
from fundax.runtime.workdir import read_optional_json, write_json
from fundax.types import Params, UserError

CLIP_VOCAB, CLIP_MERGES = 49408, "bpe_simple_vocab_16e6.txt.gz"
LARGEST = 1e-4  # difference of unit features between two programs in fp32 from which on an export counts as wrong


def export(
    run: str | Path,
    to: str,
    out: str | Path,
    *,
    checkpoint: int | str = "",
    overwrite: bool = False,
    license: str = "",
    base_model: str = "",
    dtype: str = "float32",
    largest: int = LARGEST_FILE,
) -> str:
    """Write a run (or an import) as a folder for another program; returns a line on what was written and checked.

    Args:
        run: the run's folder.
        to: the format, one of `export_names()`.
        out: the folder to write.
        checkpoint: "best", "latest" or a step; "" is the best one if the run selected one, else the latest.
        overwrite: replace a folder that is not empty.
        license: licence in the model card, an identifier of model hubs such as "apache-2.0". The licence of the initial
            weights also applies to the weights trained from them.
        base_model: base model in the model card; "" takes the name of the run's --init.
        dtype: dtype of the weights: "float32", "float16" or "bfloat16"; features are compared after rounding.
        largest: size in bytes above which weights are written in shards, where the other program reads them.
    Raises:
        UserError: an unknown format, no such run, a model that the format cannot hold, `out` in use, or features that
            differ from the other program's by more than LARGEST where that program is installed.
    """
    check_name(to)
    whole = read_run(run, checkpoint)
    found = writer(to, whole)
    check_dtype(found, dtype)
    card = card_facts(run, int(whole.source["step"])) | ({"license": license} if license else {})
    card |= {"base_model": base_model} if base_model else {}
    whole = dataclasses.replace(whole, source={**whole.source, "card": card})
    if to == "huggingface" and isinstance(whole.objective, CLIP) and whole.tokenizer is None:
        whole = dataclasses.replace(whole, tokenizer=_byte_pairs(run, whole.objective))
    model = rounded(found.select(whole), dtype)
    assert found.write is not None
    with fresh_folder(out, overwrite) as temporary:
        found.write(model, temporary, False)
        store_as(temporary, found, dtype, largest)
        checked = compare(found, temporary, model, str(out))
    left = ", ".join(sorted(whole.params.keys() - model.params.keys())) if not whole.extra.get("teacher") else ""
    note = f"; the image encoder alone, without {left}" if left else ""
    return f"{out}: {to} folder of {run}, step {model.source['step']}; {checked}{note}"


def _byte_pairs(run: str | Path, objective: CLIP) -> tokenizers.Tokenizer:
    """CLIP's own tokenizer, from the open_clip package, for a model imported from a file without one.

    Raises UserError if it is not known: transformers makes up a tokenizer of two entries for such a folder, for which
    every text is the same.
    """
    spec = importlib.util.find_spec("open_clip")
    if objective.text.vocab == CLIP_VOCAB and spec is not None and spec.origin:
        return tokenizers.clip_bpe(Path(spec.origin).with_name(CLIP_MERGES), objective.text.context)
    raise UserError(
        f"{run} has no tokenizer, without which transformers reads every text as the same; put the files of its tokenizer "
        f"into {Path(run) / 'tokenizer'}, or install open_clip for CLIP's own"
    )


def card_facts(run: str | Path, step: int) -> dict[str, Any]:
    """Contents of a model card: config, data, batch, seed, base model, and scores of the last evaluation."""
    stored = read_optional_json(Path(run) / "config.json")
    args, found = stored.get("args", {}), {}
    if init := str(args.get("init") or ""):
        found["base_model"] = Path(init).name
    found |= {name: args[name] for name in ("data", "batch", "seed", "dtype") if args.get(name) not in (None, "", [])}
    found |= {"config": Path(str(stored["config"])).name} if stored.get("config") else {}
    scores: dict[str, Any] = {}
    for row in read_rows(Path(run) / "metrics.jsonl"):
        if int(row.get("step", 0)) <= step:
            named = {
                k: v for k, v in row.items() if "/" in k and not k.startswith("train/") and isinstance(v, float | int)
            }
            scores = named or scores
    return found | ({"scores": dict(list(scores.items())[:12])} if scores else {})


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file, without a line that a stop has cut; [] without a file."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return [row for row in rows if isinstance(row, dict)]


def compare(found: Format, path: str | Path, model: Checkpoint, name: str = "") -> str:
    """Read a written folder again: tensors must be bit-identical, and the other program's features the same numbers.

    Parameters that the format has no place for are named. `name`: of the folder, in messages. Raises UserError for any
    difference.
    """
    name = name or str(path)
    again = found.read(Path(path), read_state(path), "")
    record = read_record(path)
    left_out = sorted({key.split("/")[0] for key in record.get("left_out", {})} - set(again.params))
    params = {part: tree for part, tree in model.params.items() if part not in left_out}
    if digest_of(again.params) != digest_of(params) or digest_of(again.extra) != digest_of(model.extra):
        raise UserError(f"{name}: the parameters read back are not those that were written")
    note = f"; left out, as {found.title} has no place for it: {', '.join(left_out)}" if left_out else ""
    difference = found.difference(path, model)
    if difference is None:
        hint = "" if found.difference is never_compared else " (PyTorch: pip install -e '.[torch]')"
        return (
            "parameters read back bit for bit; "
            f"{found.title} is not installed here, so its features were not compared{hint}{note}"
        )
    if not difference < LARGEST:
        raise UserError(
            f"{name}: features differ by {difference:.2g} from those of {found.title}; expected < {LARGEST}"
        )
    return f"parameters read back bit for bit, largest difference of features from {found.title} {difference:.2g}{note}"


def import_checkpoint(path: str | Path, workdir: str | Path, **options: Any) -> str:
    """Write the checkpoint of another program in the form of a run: to predict with, to export, and to start from.

    Args:
        path: a folder or file that `load` opens.
        workdir: the folder to write; it must not exist, or be empty.
        options: like, modality, activation and shown, see `load`.
    Returns:
        A line on what was written.
    Raises:
        UserError: `path` is unknown, incomplete or does not fit; `workdir` is in use.
    """
    note = f"; {options['activation']} in its MLPs, as given" if options.get("activation") else ""
    return import_model(load(path, **options), path, workdir) + note


def import_model(model: Checkpoint, path: str | Path, workdir: str | Path) -> str:
    """Write a model that was read from `path` in the form of a run, see `import_checkpoint`."""
    with fresh_folder(workdir) as folder:
        config = {"objective": serialize.to_json(model.objective), "imported_from": dict(model.source)}
        write_json(folder / "config.json", config)
        write_json(folder / "preprocessing.json", _preprocessing(model))
        if model.tokenizer is not None:
            model.tokenizer.save(folder / "tokenizer")
        with Checkpoints(folder) as checkpoints:
            checkpoints.save(0, {"params": model.params, "extra": dict(model.extra), "opt": {}}, {}, {})
    count = sum(leaf.size for leaf in jax.tree.leaves(model.params))
    silent = model.tokenizer or not hasattr(model.objective, "text")
    note = "" if silent else f"; no tokenizer there: texts need its files in {Path(workdir) / 'tokenizer'}"
    return f"{workdir}: {count:,} parameters from {path}{note}"


def _preprocessing(model: Checkpoint) -> Mapping[str, Any]:
    """The preprocessing to store, complete and checked against the model; a text model has none."""
    objective = model.objective
    if not hasattr(objective, "image"):
        return model.preprocessing
    size = int(model.preprocessing.get("image_size", 0))
    if isinstance(objective, Segment | Landmark) and size > objective.image.image_size:
        return model.preprocessing  # images are resized to this size, and the model sees windows of them
    return preprocessing_of(model)


def digest_of(params: Params) -> dict[str, str]:
    """SHA-256 of every parameter, layers unstacked, by path."""
    return digests(own_state(params))
