"""Parameter trees: paths, flattening, stacking of layers, subtrees and comparison of shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from fundax.types import Params, UserError


def stack_blocks(params: Params) -> Params:
    """Stack block_0 .. block_n, at any depth of the tree, into one `blocks` with a leading layer axis, for nn.scan."""
    if not isinstance(params, dict):
        return params
    names = [f"block_{i}" for i in range(sum(name.startswith("block_") for name in params))]
    rest = {name: stack_blocks(tree) for name, tree in params.items() if name not in names}
    if names:
        rest["blocks"] = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(params[n] for n in names))
    return rest


def unstack_blocks(params: Params) -> Params:
    """Split `blocks` into block_0 .. block_n: the inverse of stack_blocks, and the form that interop reads and writes."""
    if not isinstance(params, dict):
        return params
    rest = {name: unstack_blocks(tree) for name, tree in params.items() if name != "blocks"}
    if "blocks" in params:
        depth = jax.tree.leaves(params["blocks"])[0].shape[0]
        for i in range(depth):
            rest[f"block_{i}"] = jax.tree.map(lambda leaf, i=i: leaf[i], params["blocks"])
    return rest


def flatten(params: Params) -> dict[str, Any]:
    """Flatten nested parameters into {'image/block_0/norm1/scale': leaf, ...}."""
    return flatten_dict(params, sep="/")  # type: ignore[return-value]


def unflatten(flat: Mapping[str, Any]) -> Params:
    """The inverse of `flatten`."""
    return unflatten_dict(dict(flat), sep="/")  # type: ignore[return-value]


def like(params: Params, loaded: Params) -> Params:
    """Stack the layers of `loaded` where `params` has stacked layers."""
    if not isinstance(params, Mapping):
        return loaded
    if "blocks" in params and "blocks" not in loaded:
        return stack_blocks(loaded)
    return {name: like(params[name], loaded[name]) for name in loaded}


def path_string(path: Sequence[Any]) -> str:
    """Convert a JAX key path to 'image/block_0/norm1/scale'."""
    return jax.tree_util.keystr(tuple(path), simple=True, separator="/")


def _subtree(tree: Any, keys: Sequence[str], owner: str) -> Any:
    for key in keys:
        if not isinstance(tree, Mapping) or key not in tree:
            names = sorted(tree) if isinstance(tree, Mapping) else "an array"
            raise UserError(f"{owner} has no parameters {'/'.join(keys)!r}; instead of {key!r} it has {names}")
        tree = tree[key]
    return tree


def _with_subtree(tree: Params, keys: Sequence[str], value: Any) -> Any:
    if not keys:
        return value
    return {**tree, keys[0]: _with_subtree(tree[keys[0]], keys[1:], value)}


def check_same(where: str, item: str, saved: Any, wanted: Any) -> None:
    """Raise UserError if the trees differ in paths or shapes; the message names the first differences."""
    theirs, ours = _shapes(saved), _shapes(wanted)
    missing, unknown = sorted(ours.keys() - theirs.keys()), sorted(theirs.keys() - ours.keys())
    shaped = [
        f"{k} {theirs[k]} instead of {ours[k]}" for k in sorted(ours.keys() & theirs.keys()) if theirs[k] != ours[k]
    ]
    parts = [
        f"{text} {', '.join(names[:3])}{' ...' if len(names) > 3 else ''}"
        for text, names in (("lacks", missing), ("also has", unknown), ("differs in shape:", shaped))
        if names
    ]
    if parts:
        raise UserError(f"{where}: {item} belongs to a different model: it {'; it '.join(parts)}")


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    return {path_string(p): tuple(x.shape) for p, x in jax.tree_util.tree_leaves_with_path(tree)}
