"""Export of models that transformers has no class for: standard encoders, heads.safetensors and a file of PyTorch code.

A model of one tower has it at the top of the folder, where AutoModel finds it; one of two has the folders image/ and
text/. modeling_fundax.py computes with them what fundax does. `load` reads the folder back bit for bit."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fundax.encoders.backbone import BackboneWithHead, Encoder, owner_of, with_encoder
from fundax.encoders.bert import BERT
from fundax.encoders.resnet import ResNet
from fundax.encoders.vit import ViT
from fundax.interop import bert, dinov2, folder, huggingface, keymap, processor, resnet_huggingface, vit
from fundax.interop.checkpoint import Checkpoint, Format
from fundax.interop.keymap import Row, Shapes
from fundax.interop.weights import State, digests, folder_of, read_state, write_safetensors
from fundax.objectives.dense import Landmark, Segment
from fundax.objectives.flair import FLAIR
from fundax.objectives.keepfit import KeepFIT
from fundax.objectives.report import Report
from fundax.objectives.ret_clip import RetCLIP
from fundax.params import flatten, unflatten, unstack_blocks
from fundax.runtime import serialize
from fundax.runtime.workdir import read_json, write_json
from fundax.types import Extra, Params, UserError

NAME = "Hugging Face towers with heads"
HEADS, WEIGHTS, CONFIG = "heads.safetensors", "model.safetensors", "config.json"
MODELING = Path(__file__).with_name("modeling")
PARTS: dict[type, tuple[str, ...]] = {
    RetCLIP: ("ret_clip",), FLAIR: ("flair",), KeepFIT: ("flair",), Report: ("report",),
    Segment: ("tokens", "dense"), Landmark: ("tokens", "dense"),
}  # fmt: skip
USAGE = """
import sys

sys.path.insert(0, "FOLDER")
from modeling_fundax import load  # needs torch, transformers and Pillow

model = load("FOLDER")
pixels = model.pixels([Image.open("eye.jpg")])
"""


def detect(state: State) -> bool:
    """Whether these are the keys of heads.safetensors."""
    return bool(state) and all(key.startswith(("params.", "extra.")) for key in state)


def write_folder(model: Checkpoint, out: str | Path, overwrite: bool = False) -> None:
    """Write the folder. Raises UserError for encoders without a class in transformers, and for a folder that is not empty."""
    objective, params = model.objective, unstack_blocks(model.params)
    towers = {name: _tower(objective, name) for name in ("image", "text") if name in params}
    state = {f"params.{path.replace('/', '.')}": leaf for path, leaf in flatten(_without(params, towers)).items()}
    extra = {f"extra.{path.replace('/', '.')}": leaf for path, leaf in flatten(_without(model.extra, towers)).items()}
    try:
        preprocessor = processor.config_of(_facts(model), "BitImageProcessor")
    except UserError:  # a canvas or padding, which image processors do not have: modeling_fundax.py does it
        preprocessor = None
    with folder.fresh_folder(out, overwrite) as temporary:
        towers_sha256 = {}
        for name, tower in towers.items():
            place = temporary / name if len(towers) > 1 else temporary
            place.mkdir(exist_ok=True)
            weights, config = _write_tower(tower, name, params, model.extra)
            write_safetensors(weights, place / WEIGHTS)
            towers_sha256[name] = digests(weights)
            write_json(place / CONFIG, config)
            if name == "image" and preprocessor:
                write_json(place / processor.FILE, preprocessor)
            if name == "text" and model.tokenizer is not None:
                model.tokenizer.save(place)
        heads = {name: np.asarray(value) for name, value in {**state, **extra}.items()}
        write_safetensors(heads, temporary / HEADS)
        (temporary / "modeling_fundax.py").write_text(modeling_of(objective), encoding="utf-8")
        folder.write_record(temporary, heads, model, {})
        write_json(temporary / folder.RECORD, read_json(temporary / folder.RECORD) | {"towers_sha256": towers_sha256})
        tag = "zero-shot-image-classification" if len(towers) > 1 else "image-feature-extraction"
        folder.write_card(temporary, model, "transformers", USAGE, tag)


def modeling_of(objective: Any) -> str:
    """The PyTorch code of a kind of model."""
    names = PARTS.get(type(objective), ("tokens", "classifier"))
    return "".join((MODELING / f"{name}.txt").read_text(encoding="utf-8") for name in ("base", *names))


def read_model(path: Path, state: State, modality: str = "") -> Checkpoint:
    """The model of a folder that `write_folder` wrote. Raises UserError for missing, damaged or misshapen tensors."""
    del modality
    where = folder_of(path)
    record = read_json(where / folder.RECORD)
    objective = _unrolled(serialize.from_json(record["objective"]))
    shapes = keymap.shapes_of(objective)
    split: dict[str, dict[str, np.ndarray]] = {"params": {}, "extra": {}}
    for key, value in state.items():
        kind, _, rest = key.partition(".")
        split[kind][rest.replace(".", "/")] = value.astype(np.float32) if value.dtype.kind in "fV" else value
    params, extra = unflatten(split["params"]), unflatten(split["extra"])
    several = (where / "image").is_dir()
    for name in ("image", "text") if several else ("image",):
        weights = read_state(where / name / WEIGHTS if several else where / WEIGHTS)
        if wrong := [
            key for key, digest in digests(weights).items() if record["towers_sha256"][name].get(key) != digest
        ]:
            raise UserError(f"{where}: the {name} encoder's {wrong[0]} is not what was written: its SHA-256 differs")
        tower, stats = _read_tower(_tower(objective, name), name, weights, shapes, str(where / name))
        params, extra = {**params, **tower}, {**extra, **stats}
    if wrong := sorted(set(shapes) ^ set(flatten(params))):
        raise UserError(f"{path}: missing or unknown parameters: {', '.join(wrong[:10])}")
    return Checkpoint(objective, params, record["preprocessing"], extra=extra)


def difference(path: str | Path, model: Checkpoint) -> float | None:
    """The largest difference between modeling_fundax.py and fundax, of unit features or relative to the largest output."""
    try:
        import torch
        import transformers
    except ImportError:
        return None
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    program = _modeling(Path(path)).load(path)
    objective, rng = model.objective, np.random.default_rng(0)
    side = objective.image.image_size
    image = rng.standard_normal((2, side, side, 3), np.float32)
    batch: dict[str, Any] = {"image": image}
    given = {"pixel_values": torch.from_numpy(image.transpose(0, 3, 1, 2).copy())}
    if (spec := objective.batch_spec(2)).get("text") is not None:
        vocab = objective.text.vocab if hasattr(objective, "text") else objective.decoder.vocab
        ids = rng.integers(1, vocab, spec["text"].shape, np.int32)
        if isinstance(objective, Report):  # a report that does not end, so that all of its words count
            marks = {objective.decoder.bos, objective.decoder.eos, objective.decoder.pad}
            ids[np.isin(ids, list(marks))] = min(set(range(len(marks) + 1)) - marks)
        given["input_ids"] = torch.from_numpy(ids[:, :-1] if isinstance(objective, Report) else ids).long()
        batch["text"] = ids
    if "days" in spec:
        batch["days"] = np.array([30, 365], np.float32)
        given["days"] = torch.from_numpy(batch["days"])
    with torch.no_grad():
        theirs = {name: value.numpy() for name, value in program(**given).items()}
    ours = jax.jit(objective.forward)(model.params, model.extra, batch)
    return max(
        _compared(name, theirs, ours, batch)
        for name in ("image_features", "text_features", "logits", "values", "log_p")
    )


def _compared(name: str, theirs: Any, ours: Any, batch: Any) -> float:
    if name not in theirs or (name == "logits" and name not in ours):
        return 0.0
    if name == "log_p":  # ours is the sum over the words of the report
        log_p, ids = theirs[name], batch["text"][:, 1:]
        each = np.take_along_axis(log_p, ids[..., None], 2)[..., 0].sum(1)
        return float(np.abs(each / np.asarray(ours[name]) - 1).max())
    wanted = np.asarray(ours["value" if name == "values" else name])
    found = np.moveaxis(theirs[name], 1, -1) if theirs[name].ndim == 4 else theirs[name]
    return float(np.abs(found - wanted).max() / max(1.0, float(np.abs(wanted).max())))


def _modeling(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location("modeling_fundax", path / "modeling_fundax.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        spec.loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = before
    return module


# ---------------------------------------------------------------------------------------------------------- towers


def _tower(objective: Any, name: str) -> Any:
    """The encoder of images or texts. Raises UserError for several encoders."""
    owner = owner_of(objective)
    if getattr(owner, "modalities", ()):
        raise UserError(f"{NAME} holds one image encoder; this {type(objective).__name__} has one for each modality")
    return objective.image if name == "image" else objective.text


def _kind(tower: Any) -> str:
    """The kind of model of transformers that holds an encoder. Raises UserError if none does."""
    if isinstance(tower, ResNet | BERT):
        return "resnet" if isinstance(tower, ResNet) else "bert"
    plain = isinstance(tower, ViT) and not tower.registers and tower.rotary is None
    if plain and tower.class_token and tower.pool in ("token", "mean") and tower.qkv_bias:
        known = list(huggingface.ACTIVATIONS.values())
        if tower.pre_norm and not tower.patch_bias and tower.layer_scale is None and tower.activation in known:
            return "clip"
        if not tower.pre_norm and tower.patch_bias and tower.activation.__name__ == "gelu_exact":
            return "dinov2"
    raise UserError(f"{NAME}: no class of transformers holds this {type(tower).__name__}")


def _plain(tower: ViT) -> ViT:
    """A ViT as a Dinov2Model has it; modeling_fundax.py pools and normalises as fundax does."""
    return vit.bare(tower).clone(pool="token", norm_after_pool=False, mask_ratio=0.0)


def _write_tower(tower: Any, name: str, params: Params, extra: Extra) -> tuple[State, dict[str, Any]]:
    kind, own = _kind(tower), {name: params[name]}
    if kind == "resnet":
        return resnet_huggingface.write(tower, own, extra), resnet_huggingface.config_of(tower)
    if kind == "dinov2":
        plain = Encoder(_plain(tower))
        return dinov2.from_fundax(plain, own), dinov2.config_of(plain)
    if kind == "clip":
        return keymap.write(huggingface.vision_rows(tower.depth), own, NAME), huggingface.vision_config(tower)
    pooler = {key: np.zeros((tower.width,) * (2 - key.endswith("bias")), np.float32) for key in bert.UNUSED[:2]}
    return keymap.write(_bert_rows(tower), own, NAME) | pooler, bert.model_config(tower)


def _read_tower(tower: Any, name: str, state: State, shapes: Shapes, source: str) -> tuple[Params, Extra]:
    kind = _kind(tower)
    ours = {path: shape for path, shape in shapes.items() if path.startswith(f"{name}/")}
    if kind == "resnet":
        return resnet_huggingface.read(tower, state, shapes, source)
    if kind == "bert":
        return keymap.read(_bert_rows(tower), state, ours, source, bert.UNUSED), {}
    if kind == "clip":
        return keymap.read(huggingface.vision_rows(tower.depth), state, ours, source, huggingface.IGNORED), {}
    state = {key: value for key, value in state.items() if key != "embeddings.mask_token"}
    if tower.layer_scale is None:
        state = {key: value for key, value in state.items() if not key.endswith(".lambda1")}
    plain = {path.removeprefix("image/"): shape for path, shape in ours.items()}
    return {"image": keymap.read(dinov2.rows(_plain(tower)), state, plain, source)}, {}


def _bert_rows(tower: BERT) -> list[Row]:
    rows = bert.bert_rows("text", "bert", tower.depth)
    return [replace(row, keys=tuple(key.removeprefix("bert.") for key in row.keys)) for row in rows]


def _without(tree: Any, towers: Any) -> dict[str, Any]:
    return {name: part for name, part in tree.items() if name not in towers}


def _unrolled(objective: Any) -> Any:
    """The objective without a scan over layers: stored layers are not stacked."""
    image = objective.image
    if isinstance(image, ViT):
        objective = with_encoder(objective, image.clone(scan=False, mask_token=False))
    text = getattr(objective, "text", None)
    if not isinstance(text, BERT):
        return objective
    plain = text.clone(scan=False)
    if hasattr(objective, "base"):
        return replace(objective, base=replace(objective.base, text=plain))
    return replace(objective, text=plain)


def _facts(model: Checkpoint) -> dict[str, Any]:
    """The preprocessing at the size that the encoder takes, with one row of mean and deviation."""
    facts = dict(model.preprocessing) | {"image_size": model.objective.image.image_size}
    row = lambda x: x[0] if isinstance(x[0], list | tuple) else x  # noqa: E731
    return facts | {name: list(row(facts[name])) for name in ("mean", "std")}


FORMAT = Format(
    "huggingface", NAME, (RetCLIP, FLAIR, KeepFIT, Report, Segment, Landmark, BackboneWithHead), (HEADS, folder.RECORD),
    detect, read_model, write_folder, USAGE, difference=difference, narrow=True, order=7,
)  # fmt: skip
