"""Tables that map the keys of other programs' checkpoints to our parameter paths, and array layouts to ours.

Each format has a function `rows(objective) -> list[Row]`: one table, used for reading and for writing."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import jax
import numpy as np

from fundax.interop.weights import State
from fundax.params import flatten, unflatten, unstack_blocks
from fundax.types import Objective, Params, UserError

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Layout:
    """How an array is stored: `read` turns the stored tensors of a row into our array; `write` is its inverse."""

    read: Callable[[Sequence[np.ndarray]], np.ndarray]
    write: Callable[[np.ndarray], Sequence[np.ndarray]]


@dataclass(frozen=True)
class Row:
    """One parameter: our path, the stored keys (several where one array of ours is stored in parts), the layout."""

    path: str
    keys: tuple[str, ...]
    layout: Layout


SAME = Layout(lambda t: t[0], lambda x: [x])
LINEAR = Layout(lambda t: t[0].T, lambda x: [x.T])  # stored as [out in]
CONV = Layout(lambda t: t[0].transpose(2, 3, 1, 0), lambda x: [x.transpose(3, 2, 0, 1)])  # stored as OIHW
PACKED_KERNEL = Layout(  # stored as [3D D], rows of q, k, v in this order
    lambda t: t[0].T.reshape(t[0].shape[1], 3, -1), lambda x: [x.reshape(x.shape[0], -1).T]
)
PACKED_BIAS = Layout(lambda t: t[0].reshape(3, -1), lambda x: [x.reshape(-1)])
SPLIT_KERNEL = Layout(lambda t: np.stack([w.T for w in t], axis=1), lambda x: [x[:, i].T for i in range(3)])
SPLIT_BIAS = Layout(lambda t: np.stack(t), lambda x: [x[i] for i in range(3)])


def linear(path: str, key: str, bias: bool = True) -> list[Row]:
    """Rows of a dense layer stored as `key.weight` [out in] and `key.bias`."""
    rows = [Row(f"{path}/kernel", (f"{key}.weight",), LINEAR)]
    return [*rows, Row(f"{path}/bias", (f"{key}.bias",), SAME)] if bias else rows


def norm(path: str, key: str) -> list[Row]:
    """Rows of a layer norm stored as `key.weight` and `key.bias`."""
    return [Row(f"{path}/scale", (f"{key}.weight",), SAME), Row(f"{path}/bias", (f"{key}.bias",), SAME)]


def packed_attention(path: str, key: str, name: str = "in_proj_") -> list[Row]:
    """Rows of the q, k, v projection stored as one `key.{name}weight` [3D D] and `key.{name}bias` [3D]."""
    return [
        Row(f"{path}/qkv/kernel", (f"{key}.{name}weight",), PACKED_KERNEL),
        Row(f"{path}/qkv/bias", (f"{key}.{name}bias",), PACKED_BIAS),
    ]


def split_attention(path: str, keys: Sequence[str]) -> list[Row]:
    """Rows of the q, k, v projection stored as three dense layers under `keys`."""
    return [
        Row(f"{path}/qkv/kernel", tuple(f"{key}.weight" for key in keys), SPLIT_KERNEL),
        Row(f"{path}/qkv/bias", tuple(f"{key}.bias" for key in keys), SPLIT_BIAS),
    ]


def clip_block(path: str, key: str) -> list[Row]:
    """Rows of one transformer block under the names of OpenAI's CLIP, which open_clip and RET-CLIP share."""
    return [
        *norm(f"{path}/norm1", f"{key}.ln_1"),
        *packed_attention(f"{path}/attention", f"{key}.attn"),
        *linear(f"{path}/attention/out", f"{key}.attn.out_proj"),
        *norm(f"{path}/norm2", f"{key}.ln_2"),
        *linear(f"{path}/mlp/fc1", f"{key}.mlp.c_fc"),
        *linear(f"{path}/mlp/fc2", f"{key}.mlp.c_proj"),
    ]


def layer_scale(path: str, key: str) -> list[Row]:
    """Rows of both layer scales of a block; `key` holds {n} in the place of their number."""
    return [Row(f"{path}/layer_scale{n}/gamma", (key.format(n=n),), SAME) for n in (1, 2)]


def count_modules(state: Mapping[str, np.ndarray], pattern: str) -> int:
    """Number of numbered modules in a state dict: 1 + the largest number that `pattern` matches, or 0."""
    found = [int(match[1]) for key in state if (match := re.match(pattern, key))]
    return 1 + max(found, default=-1)


def stored_positions(rows: Iterable[Row], state: State, shapes: Shapes) -> Shapes:
    """`shapes` with position tables as long as they are stored, so that a file of another size can be read."""
    stored = dict(shapes)
    for row in rows:
        if row.path.endswith(("position", "position/embedding")) and row.path in shapes and row.keys[0] in state:
            count = row.layout.read([state[row.keys[0]]]).shape[0]
            stored[row.path] = (count, *shapes[row.path][1:])
    return stored


def shapes_of(objective: Objective) -> Shapes:
    """Path -> shape of every parameter of an objective, layers unstacked; nothing is computed."""

    def init() -> Params:
        batch = {key: jax.numpy.zeros(spec.shape, spec.dtype) for key, spec in objective.batch_spec(1).items()}
        return unstack_blocks(objective.init(jax.random.key(0), batch)[0])

    return {path: tuple(leaf.shape) for path, leaf in flatten(jax.eval_shape(init)).items()}


def read(rows: Iterable[Row], state: State, shapes: Shapes, source: str, ignore: Sequence[str] = ()) -> Params:
    """Parameters (fp32, layers unstacked) from the state dict of another program.

    Args:
        rows: the format's table.
        shapes: path -> shape of every parameter, see `shapes_of`.
        source: the name of the checkpoint, for messages.
        ignore: endings of keys that hold no parameter.
    Raises:
        UserError: keys that are missing or unknown, or a tensor of another shape; by name.
    """
    rows = list(rows)
    state = {key: value for key, value in state.items() if not key.endswith(tuple(ignore))}
    check_names(rows, state, shapes, source)
    flat = {}
    for row in rows:
        tensors = [_checked(row, i, state[key], shapes, source) for i, key in enumerate(row.keys)]
        flat[row.path] = np.ascontiguousarray(row.layout.read(tensors)).reshape(shapes[row.path])
    return unflatten(flat)


def write(rows: Iterable[Row], params: Params, source: str) -> State:
    """The other program's state dict (fp32) of parameters, stacked or not: the inverse of `read`.

    Raises:
        UserError: a parameter that the format has no place for, or one that it needs and that is absent; by path.
    """
    flat = flatten(unstack_blocks(params))
    rows = list(rows)
    _refuse(f"{source} has no place for the parameters", set(flat) - {row.path for row in rows})
    _refuse(f"{source} needs parameters that are absent:", {row.path for row in rows} - set(flat))
    state: State = {}
    for row in rows:
        tensors = row.layout.write(np.asarray(flat[row.path], np.float32))
        state |= {key: np.asarray(tensor, order="C") for key, tensor in zip(row.keys, tensors, strict=True)}
    return state


def check_names(rows: Sequence[Row], state: State, shapes: Shapes, source: str) -> None:
    """Raise UserError naming every key that is missing or unknown, and every parameter that the table does not set."""
    expected = {key for row in rows for key in row.keys}
    missing, unknown = expected - set(state), set(state) - expected
    if missing or unknown:
        parts = [f"missing {_some(missing)}"] * bool(missing) + [f"unknown {_some(unknown)}"] * bool(unknown)
        raise UserError(f"{source}: the keys do not fit the model: {'; '.join(parts)}")
    _refuse(f"{source}: the format leaves parameters unset:", set(shapes) - {row.path for row in rows})


def _checked(row: Row, index: int, tensor: np.ndarray, shapes: Shapes, source: str) -> np.ndarray:
    """The tensor in fp32. Raises UserError unless it has the shape that our parameter would be written with."""
    ours = np.broadcast_to(np.float32(0), shapes[row.path])
    expected = row.layout.write(ours)[index].shape
    if tensor.shape != expected and not (expected == () and tensor.size == 1):  # scalars are also stored as [1]
        raise UserError(f"{source}: '{row.keys[index]}' has the shape {tensor.shape}, expected {expected}")
    return tensor.astype(np.float32)


def _refuse(message: str, names: set[str]) -> None:
    if names:
        raise UserError(f"{message} {_some(names)}")


def _some(names: set[str], limit: int = 20) -> str:
    """Sorted names; a long list is cut and ends in the number of the others."""
    listed = ", ".join(sorted(names)[:limit])
    return f"{listed}, and {len(names) - limit} more" if len(names) > limit else listed
