"""The Hugging Face BertForMaskedLM format, and the rows of any checkpoint with a BertModel under a prefix.

Key names are those of the files that transformers' public repository reads and writes. KeepFIT V2's successor
(github.com/lxirich/RetiXfer) starts its text encoder from such a file: `bert.` is taken, `cls.` dropped."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fundax.encoders import layers
from fundax.encoders.bert import BERT
from fundax.interop import folder, keymap
from fundax.interop.checkpoint import Checkpoint, Format
from fundax.interop.keymap import Row
from fundax.interop.weights import State, folder_of
from fundax.objectives.flair import FLAIR
from fundax.objectives.masked_text import MaskedText
from fundax.objectives.ret_clip import RetCLIP
from fundax.params import flatten, unstack_blocks
from fundax.runtime.workdir import read_json, write_json
from fundax.types import Extra, Params, UserError

UNUSED = ("pooler.dense.weight", "pooler.dense.bias", "embeddings.position_ids")  # used by none of our models


def bert_rows(ours: str, theirs: str, depth: int) -> list[Row]:
    """Embeddings and blocks; `ours` and `theirs` are prefixes such as "text" and "text_model.model"."""
    rows = keymap.norm(f"{ours}/embed_norm", f"{theirs}.embeddings.LayerNorm")
    for name in ("word", "position", "token_type"):
        keys = (f"{theirs}.embeddings.{name}_embeddings.weight",)
        rows.append(Row(f"{ours}/{name}/embedding", keys, keymap.SAME))
    for i in range(depth):
        rows += _block(f"{ours}/block_{i}", f"{theirs}.encoder.layer.{i}")
    return rows


def _block(ours: str, theirs: str) -> list[Row]:
    qkv = [f"{theirs}.attention.self.{name}" for name in ("query", "key", "value")]
    return [
        *keymap.split_attention(f"{ours}/attention", qkv),
        *keymap.linear(f"{ours}/attention/out", f"{theirs}.attention.output.dense"),
        *keymap.norm(f"{ours}/norm1", f"{theirs}.attention.output.LayerNorm"),
        *keymap.linear(f"{ours}/mlp/fc1", f"{theirs}.intermediate.dense"),
        *keymap.linear(f"{ours}/mlp/fc2", f"{theirs}.output.dense"),
        *keymap.norm(f"{ours}/norm2", f"{theirs}.output.LayerNorm"),
    ]


NAME = "Hugging Face BertForMaskedLM"
CONFIG, WEIGHTS = "config.json", "model.safetensors"
PREFIXES = ("bert", "text_model.model", "model", "")  # BertForMaskedLM, FLAIR, RetiXfer, a bare BertModel
HEAD = "cls.predictions"
TIED = {f"{HEAD}.decoder.weight": "bert.embeddings.word_embeddings.weight", f"{HEAD}.decoder.bias": f"{HEAD}.bias"}
IGNORED = (*UNUSED, *TIED, "cls.seq_relationship.weight", "cls.seq_relationship.bias")
ACTIVATIONS = {"gelu": layers.gelu_exact, "gelu_new": layers.gelu_tanh, "gelu_pytorch_tanh": layers.gelu_tanh}
USAGE = """
from transformers import pipeline

guess = pipeline("fill-mask", model="FOLDER")
print(guess("moderate diabetic [MASK]"))
"""


def detect(state: State) -> bool:
    """Whether these are the keys of a BertModel, with or without the masked-language-model head."""
    return _prefix(state) is not None


def _prefix(state: State) -> str | None:
    ends = "embeddings.word_embeddings.weight"
    return next((p for p in PREFIXES if ".".join(filter(None, (p, ends))) in state), None)


def to_fundax(state: State, config: Mapping[str, Any], **fields: Any) -> tuple[MaskedText, Params]:
    """The objective that config.json describes, and its parameters (fp32); `fields` are of MaskedText.

    Raises UserError for a config of another model, and for keys or shapes that do not fit it.
    """
    objective = objective_of(config, **fields)
    return objective, keymap.read(rows(objective), state, keymap.shapes_of(objective), NAME, IGNORED)


def from_fundax(objective: MaskedText, params: Params) -> State:
    """The state dict (fp32), for a strict load_state_dict: the tied matrix and bias are stored twice."""
    state = keymap.write(rows(objective), params, NAME)
    return state | {copy: state[original] for copy, original in TIED.items()}


def rows(objective: MaskedText) -> list[Row]:
    """The table of every parameter."""
    return [
        *bert_rows("text", "bert", objective.text.depth),
        *keymap.linear("masked/dense", f"{HEAD}.transform.dense"),
        *keymap.norm("masked/norm", f"{HEAD}.transform.LayerNorm"),
        Row("masked/bias", (f"{HEAD}.bias",), keymap.SAME),
    ]


def read_as(objective: Any, state: State, source: str) -> tuple[Params, Extra]:
    """The text encoder of `objective` from any file with a BertModel, and the masked head where both have one."""
    if isinstance(objective, MaskedText) and f"{HEAD}.bias" in state:
        shapes = keymap.stored_positions(rows(objective), state, keymap.shapes_of(objective))
        return keymap.read(rows(objective), state, shapes, source, IGNORED), {}
    return {"text": read_text(state, objective.text, source)}, {}


def read_text(state: State, tower: BERT, source: str) -> Params:
    """Parameters of a text encoder out of any state dict that holds a BertModel under one of PREFIXES.

    Positions beyond the encoder's are cut. Raises UserError if there is none, or naming keys that do not fit.
    """
    prefix = _prefix(state)
    if prefix is None:
        raise UserError(f"{source}: holds no BERT; it has {', '.join(sorted(state)[:5])}, ...")
    start = f"{prefix}." if prefix else ""
    parts = (f"{start}embeddings.", f"{start}encoder.")
    found = {f"bert.{k.removeprefix(start)}": v for k, v in state.items() if k.startswith(parts)}
    position = "bert.embeddings.position_embeddings.weight"
    if position in found:
        found[position] = found[position][: tower.context]
    ids = np.zeros((1, 2), np.int32)

    def init() -> Params:
        variables: Any = tower.init(jax.random.key(0), ids)
        return unstack_blocks(variables["params"])

    variables = jax.eval_shape(init)
    shapes = {f"text/{path}": tuple(leaf.shape) for path, leaf in flatten(variables).items()}
    return keymap.read(bert_rows("text", "bert", tower.depth), found, shapes, source, IGNORED)["text"]


def objective_of(config: Mapping[str, Any], **fields: Any) -> MaskedText:
    """The objective of a config.json of model_type "bert". Raises UserError for another model or activation."""
    if config.get("model_type") != "bert":
        raise UserError(f"config.json is of model_type {config.get('model_type')!r}; expected 'bert'")
    activation = config.get("hidden_act", "gelu")
    if activation not in ACTIVATIONS:
        raise UserError(f"hidden_act is {activation!r}; supported: {', '.join(ACTIVATIONS)}")
    positions = config.get("max_position_embeddings", 512)
    tower = BERT(
        vocab=config.get("vocab_size", 30522),
        context=positions,
        width=config.get("hidden_size", 768),
        depth=config.get("num_hidden_layers", 12),
        heads=config.get("num_attention_heads", 12),
        hidden=config.get("intermediate_size", 3072),
        token_types=config.get("type_vocab_size", 2),
        activation=ACTIVATIONS[activation],
        epsilon=config.get("layer_norm_eps", 1e-12),
        dropout=config.get("hidden_dropout_prob", 0.1),
        pad_id=config.get("pad_token_id", 0),
    )
    return MaskedText(tower, **{"context": min(256, positions)} | fields)


def config_of(objective: MaskedText) -> dict[str, Any]:
    """config.json of the BertForMaskedLM."""
    return model_config(objective.text) | {"architectures": ["BertForMaskedLM"], "tie_word_embeddings": True}


def model_config(text: BERT) -> dict[str, Any]:
    """config.json of the BertModel. Raises UserError for an activation that it does not have."""
    if text.activation not in ACTIVATIONS.values():
        raise UserError(f"BertModel has no activation {text.activation.__name__}")
    return {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "dtype": "float32",
        "vocab_size": text.vocab,
        "hidden_size": text.width,
        "num_hidden_layers": text.depth,
        "num_attention_heads": text.heads,
        "intermediate_size": text.hidden,
        "hidden_act": next(name for name, function in ACTIVATIONS.items() if function is text.activation),
        "max_position_embeddings": text.context,
        "type_vocab_size": text.token_types,
        "layer_norm_eps": text.epsilon,
        "hidden_dropout_prob": text.dropout,
        "attention_probs_dropout_prob": text.dropout,
        "pad_token_id": text.pad_id,
    }


def write_folder(model: Checkpoint, out: str | Path, overwrite: bool = False) -> None:
    """Write the folder that transformers' AutoModelForMaskedLM and AutoTokenizer open.

    Raises UserError for another objective, and for a folder that is there and not empty.
    """
    if not isinstance(model.objective, MaskedText):
        raise UserError(f"{NAME} holds a text encoder and its head, not {type(model.objective).__name__}")
    state = {k: v for k, v in from_fundax(model.objective, model.params).items() if k not in TIED}
    with folder.fresh_folder(out, overwrite) as temporary:
        folder.write_model(temporary, WEIGHTS, state, model, {})
        write_json(temporary / CONFIG, config_of(model.objective))
        folder.write_card(temporary, model, "transformers", USAGE, "fill-mask")


def read_model(path: Path, state: State, modality: str = "") -> Checkpoint:
    """The model of weights with config.json in their folder. Raises UserError for anything missing or damaged."""
    if f"{HEAD}.bias" not in state:
        raise UserError(
            f"{path}: a BERT without its masked-word head is not a complete model; it can start a text encoder"
        )
    objective, params = to_fundax(state, read_json(folder_of(path) / CONFIG))
    return Checkpoint(objective, params, {})


def difference(path: str | Path, model: Checkpoint) -> float | None:
    """Largest difference of the words' log-probabilities between the folder in transformers and here; None without torch."""
    try:
        import torch
        from transformers import AutoModelForMaskedLM
        from transformers.utils import logging
    except ImportError:
        return None
    logging.disable_progress_bar()
    objective = model.objective
    ids = np.random.default_rng(0).integers(1, objective.text.vocab, (2, min(16, objective.context)), np.int32)
    program, report = AutoModelForMaskedLM.from_pretrained(str(path), dtype=torch.float32, output_loading_info=True)
    if any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")):
        raise UserError(f"{path}: transformers does not find its keys: {report}")
    with torch.no_grad():
        logits = program.eval()(input_ids=torch.from_numpy(ids).long()).logits
    tokens = objective.text.apply({"params": model.params["text"]}, ids)["tokens"]
    table = model.params["text"]["word"]["embedding"]
    ours = objective.head.apply({"params": model.params["masked"]}, tokens, jax.numpy.asarray(table))
    both = (jax.nn.log_softmax(ours), torch.log_softmax(logits, -1).numpy())
    return float(np.abs(np.asarray(both[0]) - both[1]).max())


FORMAT = Format(
    "bert", NAME, (MaskedText,), (WEIGHTS, CONFIG), detect, read_model, write_folder, USAGE,
    configured=True, read_as=read_as, fills=(MaskedText, FLAIR, RetCLIP), difference=difference, narrow=True, shards=True, order=11,
)  # fmt: skip
