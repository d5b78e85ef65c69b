"""Partial fine-tuning: train a whole model, its head, its last blocks, all but the image encoder, or low-rank adapters.

A Tuning says for each parameter, by its path, whether it trains. `split` divides a tree into the part that trains and the
rest; gradients and the optimizer's state exist only for the first, so that a fixed parameter costs its own memory alone.

Low-rank adapters (LoRA, arXiv:2106.09685) are the leaves `lora_a` and `lora_b` next to a kernel of an encoder's attention or
MLP. Layers add their product to that of the kernel (fundax/encoders/layers.py), and `merged` adds it to the kernel itself."""

from __future__ import annotations

import functools
import re
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from optax import MaskedNode

from fundax.params import flatten, path_string, unflatten
from fundax.types import Extra, Params, UserError

LORA_A, LORA_B = "lora_a", "lora_b"
ALPHA = 16.0  # the product of two adapters of rank r is multiplied by ALPHA / r, so that one rate suits every rank
ALL = -1  # rows of a leaf that train
COPIES = ("average", "teacher")  # trees in an objective's extra state that follow its parameters
_FIXED = re.compile(r"^(image|text|model|heads)/")  # model and heads: an image-text model behind an adapter
_ADAPTED = re.compile(r"^(image|text)/(.*/)?(attention/(qkv|out)|mlp/(fc1|fc2)|block_\d+/(fc1|fc2))/kernel$")
_BLOCK = re.compile(r"^((?:image|text)(?:/m\d+)?)/(?:block_(\d+)|stage(\d+)_unit(\d+))/")
_STACKED = re.compile(r"^((?:image|text)(?:/m\d+)?)/blocks/")
_AFTER = re.compile(r"^(image|text)(/m\d+)?/(norm|pool)")  # of an encoder, what follows its blocks

Flat = Mapping[str, Any]  # path -> leaf
Rows = dict[str, int]  # path -> how many of the last rows of the leaf train; 0 none, ALL all


@dataclass(frozen=True)
class Tuning:
    """The trained part of a model; created from --tune by `tuning`.

    word: the value of --tune.
    rows: for each leaf, the rows that are trained; None: all.
    rank: rank of the adapters; 0: no adapters.
    """

    word: str = "full"
    rows: Callable[[Flat], Rows] | None = None
    rank: int = 0


BY_DEFAULT = Tuning("")  # of a recipe that says nothing


def tuning(word: str) -> Tuning:
    """Parse --tune: full, head, text, layers:K or lora:RANK. Raises UserError for anything else."""
    name, colon, number = word.partition(":")
    if not colon and name in _PLAIN:
        return Tuning(word, _PLAIN[name])
    if name in ("layers", "lora") and number.isdigit() and int(number):
        count = int(number)
        return Tuning(word, functools.partial(_last_blocks, count)) if name == "layers" else Tuning(word, _lora, count)
    raise UserError(f"--tune {word!r}: expected full, head, text, layers:K or lora:RANK with a number, such as lora:8")


def check(chosen: Tuning, params: Params, extra: Extra) -> None:
    """Raise UserError, with the reason, if a model does not support a choice. The trees may be abstract."""
    if chosen.rows is None:
        return
    flat = flatten(params)
    if not any(_FIXED.match(path) for path in flat):
        raise _refused(chosen, f"the model has no image or text encoder, only {', '.join(sorted(params))}")
    if chosen.word == "head" and "teacher" in extra:
        raise _refused(chosen, "a self-distilled encoder makes its own targets, so its head alone learns nothing")
    if chosen.rank:
        flat = flatten(with_adapters(chosen, params, {}, abstract=True)[0])
    if not any(rows_of(chosen, flat).values()):
        raise _refused(chosen, "nothing would be trained")


def _refused(chosen: Tuning, reason: str) -> UserError:
    return UserError(f"--tune {chosen.word}: {reason}; leave it out, or give --tune full")


# ------------------------------------------------------------------------------------------- what trains


def _head(flat: Flat) -> Rows:
    return {path: 0 if _FIXED.match(path) else ALL for path in flat}


def _text(flat: Flat) -> Rows:
    if not {"image", "text"} <= {path.partition("/")[0] for path in flat}:
        raise UserError(
            "--tune text trains the text encoder with a fixed image encoder, and this model does not have both"
        )
    return {path: 0 if path.startswith("image/") else ALL for path in flat}


def _lora(flat: Flat) -> Rows:
    return {path: ALL if path.endswith((LORA_A, LORA_B)) or not _FIXED.match(path) else 0 for path in flat}


def _last_blocks(count: int, flat: Flat) -> Rows:
    """The last `count` blocks of each encoder, what follows them, and the head. Stacked blocks are rows of a leaf."""
    order: dict[str, list[tuple[int, ...]]] = {}
    for path, leaf in flat.items():
        if found := _BLOCK.match(path):
            order.setdefault(found[1], []).append(_number(found))
        elif found := _STACKED.match(path):
            order.setdefault(found[1], []).extend((k,) for k in range(leaf.shape[0]))
    last = {owner: sorted(set(numbers))[-count:] for owner, numbers in order.items()}
    depths = {owner: len(set(numbers)) for owner, numbers in order.items()}
    if not depths or count > max(depths.values()):
        known = ", ".join(f"{owner} has {depth}" for owner, depth in depths.items()) or "no encoder has any"
        raise UserError(f"--tune layers:{count}: expected at most the number of blocks; {known}")

    def rows(path: str) -> int:
        if found := _BLOCK.match(path):
            return ALL if _number(found) in last[found[1]] else 0
        if found := _STACKED.match(path):
            return ALL if count >= depths[found[1]] else count
        return ALL if not _FIXED.match(path) or _AFTER.match(path) else 0

    return {path: rows(path) for path in flat}


def _number(found: re.Match[str]) -> tuple[int, ...]:
    return tuple(int(part) for part in found.groups()[1:] if part is not None)


_PLAIN: dict[str, Callable[[Flat], Rows] | None] = {"full": None, "head": _head, "text": _text}


def rows_of(chosen: Tuning, flat: Flat) -> Rows:
    """How many of the last rows of each leaf train."""
    return dict.fromkeys(flat, ALL) if chosen.rows is None else chosen.rows(flat)


def split(chosen: Tuning, params: Params) -> tuple[Params, Params]:
    """Split a tree into the trained part and the rest. Each has optax's MaskedNode where the other one has the whole leaf."""
    if chosen.rows is None:
        return params, {}
    rows = rows_of(chosen, flatten(params))

    def trained(path: Any, leaf: Any) -> Any:
        count = rows[path_string(path)]
        return MaskedNode() if count == 0 else leaf if count == ALL else leaf[-count:]

    def fixed(path: Any, leaf: Any) -> Any:
        count = rows[path_string(path)]
        return leaf if count == 0 else MaskedNode() if count == ALL else leaf[:-count]

    return jax.tree_util.tree_map_with_path(trained, params), jax.tree_util.tree_map_with_path(fixed, params)


def join(trained: Params, fixed: Params) -> Params:
    """The inverse of `split`."""
    if not fixed:
        return trained

    def whole(one: Any, other: Any) -> Any:
        if isinstance(one, MaskedNode) or isinstance(other, MaskedNode):
            return other if isinstance(one, MaskedNode) else one
        return jnp.concatenate([other, one])

    return jax.tree.map(whole, trained, fixed, is_leaf=lambda node: isinstance(node, MaskedNode))


def count_trained(chosen: Tuning, params: Params) -> int:
    """Number of trained parameters of a tree, which may be abstract."""
    flat = flatten(params)
    rows = rows_of(chosen, flat)
    return sum(
        leaf.size if rows[path] == ALL else leaf.size // leaf.shape[0] * rows[path]
        for path, leaf in flat.items()
        if rows[path]
    )


# ---------------------------------------------------------------------------------------- low-rank adapters


def with_adapters(
    chosen: Tuning, params: Params, extra: Extra, seed: int = 0, *, abstract: bool = False
) -> tuple[Params, Extra]:
    """Add new adapters to the kernels of the encoders' attention and MLPs; unchanged without a rank.

    The first matrix [D r] is drawn from N(0, 1/D), the second [r ...] is 0, so that the model computes what it did. Raises
    UserError where no encoder has such a kernel, or a kernel is not larger than the rank.
    """
    if not chosen.rank:
        return params, extra
    if abstract:
        make = functools.partial(with_adapters, chosen, seed=seed)
        return jax.eval_shape(make, params, extra)
    added = {name: _adapted(chosen, extra[name], seed) if name in COPIES else tree for name, tree in extra.items()}
    return _adapted(chosen, params, seed), added


def _adapted(chosen: Tuning, params: Params, seed: int) -> Params:
    flat, new = flatten(params), {}
    for path, kernel in flat.items():
        if not _ADAPTED.match(path):
            continue
        stack = kernel.shape[:1] if _STACKED.match(path) else ()
        rows, columns = kernel.shape[len(stack)], kernel.shape[len(stack) + 1 :]
        if chosen.rank >= min(rows, int(np.prod(columns))):
            raise _refused(chosen, f"{path} is {kernel.shape}, which has no larger rank")
        key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(path.encode()) % 2**31)
        owner = path.removesuffix("kernel")
        new[owner + LORA_A] = jax.random.normal(key, (*stack, rows, chosen.rank)) * rows**-0.5
        new[owner + LORA_B] = jnp.zeros((*stack, chosen.rank, *columns))
    if not new:
        raise _refused(chosen, "no encoder has the kernels of attention or of an MLP that adapters are for")
    return unflatten({**flat, **new})


def scale(lora_a: Any) -> float:
    """The factor of the product of adapters [... D r] and [... r C]."""
    return ALPHA / lora_a.shape[-1]


def merged(tree: Any) -> Any:
    """A tree of parameters without adapters: each kernel W [D ...] is W + scale * A B. Others are returned as they are."""
    if not isinstance(tree, Mapping):
        return tree
    found = {name: merged(node) for name, node in tree.items() if name not in (LORA_A, LORA_B)}
    if LORA_A in tree:
        a, b = np.asarray(tree[LORA_A]), np.asarray(tree[LORA_B])
        product = np.matmul(a, b.reshape(*b.shape[: a.ndim - 1], -1)).reshape(np.shape(tree["kernel"]))
        found["kernel"] = np.asarray(tree["kernel"]) + np.float32(scale(a)) * product
    return found


def adapters_of(params: Params) -> dict[str, Any]:
    """The adapters of a tree by path; {} without."""
    return {path: leaf for path, leaf in flatten(params).items() if path.endswith((LORA_A, LORA_B))}
