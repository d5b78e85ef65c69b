"""BERT as Hugging Face lays it out: rows for every checkpoint family that holds a BertModel under some prefix."""

from __future__ import annotations

from fundax import layout
from fundax.layout import Row

IGNORED = ("pooler.dense.weight", "pooler.dense.bias", "embeddings.position_ids")  # used by none of our models


def bert_rows(ours: str, theirs: str, depth: int) -> list[Row]:
    """Embeddings and blocks; `ours` and `theirs` are prefixes such as "text" and "text_model.model"."""
    rows = layout.norm(f"{ours}/embed_norm", f"{theirs}.embeddings.LayerNorm")
    for name in ("word", "position", "token_type"):
        keys = (f"{theirs}.embeddings.{name}_embeddings.weight",)
        rows.append(Row(f"{ours}/{name}/embedding", keys, layout.SAME))
    for i in range(depth):
        rows += _block(f"{ours}/block_{i}", f"{theirs}.encoder.layer.{i}")
    return rows


def _block(ours: str, theirs: str) -> list[Row]:
    qkv = [f"{theirs}.attention.self.{name}" for name in ("query", "key", "value")]
    return [
        Row(f"{ours}/attention/qkv/kernel", tuple(f"{key}.weight" for key in qkv), layout.SPLIT_KERNEL),
        Row(f"{ours}/attention/qkv/bias", tuple(f"{key}.bias" for key in qkv), layout.SPLIT_BIAS),
        *layout.linear(f"{ours}/attention/out", f"{theirs}.attention.output.dense"),
        *layout.norm(f"{ours}/norm1", f"{theirs}.attention.output.LayerNorm"),
        *layout.linear(f"{ours}/mlp/fc1", f"{theirs}.intermediate.dense"),
        *layout.linear(f"{ours}/mlp/fc2", f"{theirs}.output.dense"),
        *layout.norm(f"{ours}/norm2", f"{theirs}.output.LayerNorm"),
    ]
