"""Models out to other programs and in from them: the verbs export and import of the command line."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import jax

from data_pipelines.language import tokenizers
from fundax.encoders.vit import SIZES
from fundax.interop import bert, exchange_vit, huggingface, open_clip, ret_clip
from fundax.interop.bundle import Bundle, fresh_folder, preprocessing_of, read_json, write_json
from fundax.interop.load import family_of, is_run, own_state, read_objective
from fundax.interop.weights import digests, read_state
from fundax.objectives.clip import clip
from fundax.runtime import serialize
from fundax.runtime.checkpoint import Checkpoints, load_params, resolve
from fundax.types import Params, UserError

LAYOUTS = {"huggingface": huggingface, "open_clip": open_clip, "ret_clip": ret_clip, "bert": bert}


LARGEST = 1e-4  # of unit features between two programs in fp32, before an export is called wrong


def export_run(
    run: str | Path, to: str, out: str | Path, *, checkpoint: int | str = "latest", overwrite: bool = False
) -> str:
    """Write a run (or an import) as a folder for another program; a line that says what was written and checked.

    Args:
        to: a name of LAYOUTS.
        which: the checkpoint: "latest", "best" or a step.
        overwrite: replace a folder that is not empty.
    Raises:
        UserError: an unknown layout, no such run, a model the layout cannot hold, `out` in use, or features that
            differ from the other program's by more than LARGEST where that program is installed.
    """
    if to not in LAYOUTS | exchange_vit.LAYOUTS:
        raise UserError(f"cannot export to '{to}'; expected {', '.join(LAYOUTS | exchange_vit.LAYOUTS)}")
    bundle = read_run(run, checkpoint)
    found = exchange_vit.family_of(to, bundle)
    if found is None and to not in LAYOUTS:
        raise UserError(f"{run} is no image encoder: cannot export to '{to}'; expected {', '.join(LAYOUTS)}")
    family, bundle = found or (LAYOUTS[to], bundle)
    family.write_folder(bundle, out, overwrite)
    return f"{out}: {to} folder of {run}, step {bundle.source['step']}; {compare(family, out, bundle)}"


def compare(family: ModuleType, path: str | Path, bundle: Bundle) -> str:
    """Read a written folder again: the tensors must be the same bits, the other program's features the same numbers.

    Raises UserError where they are not.
    """
    again = family.read_folder(path)
    if digest_of(again.params) != digest_of(bundle.params) or digest_of(dict(again.extra)) != digest_of(
        dict(bundle.extra)
    ):
        raise UserError(f"{path}: the parameters read back are not those that were written")
    difference = family.difference(path, bundle)
    if difference is None:
        return (
            f"parameters read back bit for bit; {family.NAME} is not installed here, so its features were not compared"
        )
    if not difference < LARGEST:
        raise UserError(
            f"{path}: features differ by {difference:.2g} from those of {family.NAME}; expected < {LARGEST}"
        )
    return f"parameters read back bit for bit, largest difference of features from {family.NAME} {difference:.2g}"


def read_run(run: str | Path, checkpoint: int | str = "latest") -> Bundle:
    """A run of fundax, or an imported model in the same form. Raises UserError where a part is missing or damaged."""
    run = Path(run)
    if not is_run(run):
        raise UserError(f"{run} is no run of fundax: it has no checkpoints")
    objective, step = read_objective(run), resolve(run, checkpoint)
    params, extra = load_params(run, step)
    stored = run / "preprocessing.json"
    tokenizer = tokenizers.load(run / "tokenizer") if (run / "tokenizer").is_dir() else None
    config = (run / "config.json").read_bytes()
    source = {"name": run.resolve().name, "step": step, "config_sha256": hashlib.sha256(config).hexdigest()}
    return Bundle(objective, params, read_json(stored) if stored.is_file() else {}, tokenizer, source, extra)


def import_run(path: str | Path, workdir: str | Path, like: str | None = None, modality: str = "") -> str:
    """Turn a checkpoint of another program into a folder in the form of a run: for predict, export, and to start from.

    Args:
        path: an open_clip or Hugging Face CLIP folder, or a file of weights.
        workdir: the folder to write; it must not exist, or be empty.
        like: the size ("H/14-378", a name of encoders.vit.SIZES) of a file without configuration beside it.
        modality: whose mean and deviation normalise the images of an image encoder; "" is ImageNet's.
    Raises:
        UserError: what `path` holds is not known, not whole, or does not fit; `workdir` is in use.
    """
    bundle = import_folder(path, like, modality)
    with fresh_folder(workdir) as folder:
        config = {"objective": serialize.to_json(bundle.objective), "imported_from": dict(bundle.source)}
        write_json(folder / "config.json", config)
        write_json(folder / "preprocessing.json", preprocessing_of(bundle))
        if bundle.tokenizer is not None:
            bundle.tokenizer.save(folder / "tokenizer")
        with Checkpoints(folder) as checkpoints:
            checkpoints.save(0, {"params": bundle.params, "extra": dict(bundle.extra), "opt": {}}, {}, {})
    count = sum(leaf.size for leaf in jax.tree.leaves(bundle.params))
    silent = bundle.tokenizer or not hasattr(bundle.objective, "text")
    note = "" if silent else f"; no tokenizer there: texts need its files in {Path(workdir) / 'tokenizer'}"
    return f"{workdir}: {count:,} parameters from {path}{note}"


def import_folder(path: str | Path, like: str | None = None, modality: str = "") -> Bundle:
    """The model of a folder or file of another program, with its tokenizer where there is one.

    Parameters are bit-identical to those that were exported. Raises UserError as import_run.
    """
    path = Path(path)
    if like is None and (encoder := exchange_vit.bundle_of(path, modality)) is not None:
        return dataclasses.replace(encoder, source={"name": path.resolve().name, "layout": "image encoder"})
    state, folder = read_state(path), path if path.is_dir() else path.parent
    family = family_of(state, str(path))
    if like is not None:
        bundle = _of_size(family, state, like)
    elif not (folder / family.CONFIG).is_file() and not getattr(family, "CONFIG_OPTIONAL", False):
        sizes = ", ".join(SIZES)
        raise UserError(f"{path}: no {family.CONFIG} beside the weights; expected it there, or a size: {sizes}")
    else:
        bundle = family.bundle_of(state, folder)
    tokenizer, context = None, getattr(bundle.objective, "context", bundle.objective.text.context)
    if (folder / "tokenizer_config.json").is_file():
        tokenizer = tokenizers.load(folder, context)
    elif (folder / "vocab.txt").is_file():  # BERT's, beside a RET-CLIP file
        tokenizer = tokenizers.wordpiece(folder, context)
    source = {"name": path.resolve().name, "layout": family.NAME}
    return dataclasses.replace(bundle, tokenizer=tokenizer, source=source)


def _of_size(family: ModuleType, state: Mapping[str, Any], like: str) -> Bundle:
    """The weights of a known size; QuickGELU, as OpenAI's, DFN's and MM-Fundus-CLIP's have it."""
    objective = clip(like)
    return Bundle(objective, family.read(objective, state, like), {})


def digest_of(params: Params) -> dict[str, str]:
    """SHA-256 of every parameter, layers unstacked, by path."""
    return digests(own_state(params))
