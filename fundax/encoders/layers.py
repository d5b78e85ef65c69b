"""Layers of the transformers: activations, norms, attention, blocks and stacks of blocks.

Parameters are fp32. `dtype` is the dtype of matrix products: "float32", or "bfloat16" on accelerators. Norms, attention
logits and softmax are always fp32."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from fundax.encoders.attention import Path, attend
from fundax.encoders.derivatives import layer_norm, product, sigmoid_gelu
from fundax.encoders.positions import Rotary
from fundax.runtime.mesh import constrain_rows, gather_parameter
from fundax.tuning import LORA_A, LORA_B, scale
from fundax.types import UserError

Initializer = Callable[..., jax.Array]
Activation = Callable[[jax.Array], jax.Array]
Rows = int | jax.Array | None  # the row of tokens [B N D] to compute: one for all examples, i32 [B], or None for all


def quick_gelu(x: jax.Array) -> jax.Array:
    """x * sigmoid(1.702 x): the activation of OpenAI's CLIP, DFN, Chinese-CLIP and RET-CLIP."""
    return sigmoid_gelu(x)


def gelu_exact(x: jax.Array) -> jax.Array:
    """Exact GELU, x * Phi(x) (arXiv:1606.08415, section 2): PyTorch's default."""
    return jax.nn.gelu(x, approximate=False)


def gelu_tanh(x: jax.Array) -> jax.Array:
    """Tanh approximation of GELU (arXiv:1606.08415, section 2): SigLIP's activation."""
    return jax.nn.gelu(x, approximate=True)


def apply(
    module: nn.Module, params: Any, *inputs: Any, rngs: Mapping[str, jax.Array] | None = None, **options: Any
) -> Any:
    """The outputs of a module that has parameters only: module.apply with params, without its union of result types."""
    return module.apply({"params": params}, *inputs, rngs=dict(rngs or {}), **options)


def l2_normalize(x: jax.Array) -> jax.Array:
    """L2-normalise the last axis in fp32; norms below 1e-12 count as 1e-12, as in PyTorch's normalize.

    Unlike PyTorch's, the gradient of such a row is passed on as it is, not multiplied by 1e12. A row whose squared norm
    overflows becomes NaN instead of zero, so that training stops.
    """
    x = x.astype(jnp.float32)
    square = (x * x).sum(-1, keepdims=True)
    unit = x * jax.lax.rsqrt(jnp.maximum(square, 1e-24))
    tiny = x + jax.lax.stop_gradient(unit - x)
    return jnp.where(jnp.isinf(square), jnp.nan, jnp.where(square < 1e-24, tiny, unit))


def take_rows(x: jax.Array, rows: Rows, axis: int = 1) -> jax.Array:
    """Row `rows` of each example, [B N ...] to [B 1 ...]: an int for all examples, or i32 [B]. None returns x."""
    if rows is None:
        return x
    if isinstance(rows, int):
        return jax.lax.slice_in_dim(x, rows, rows + 1, axis=axis)
    shape = [1] * x.ndim
    shape[0] = rows.shape[0]
    x = jnp.broadcast_to(x, (rows.shape[0], *x.shape[1:]))
    return jnp.take_along_axis(x, rows.reshape(shape), axis=axis)


@dataclass(frozen=True)
class BlockInit:
    """Initialisers of the matrices and MLP biases of a block. Norms start as the identity, attention biases at zero."""

    qkv: Initializer
    out: Initializer
    fc1: Initializer
    fc2: Initializer
    fc1_bias: Initializer = nn.initializers.zeros
    fc2_bias: Initializer = nn.initializers.zeros


def uniform(bound: float) -> Initializer:
    """Initialiser U(-bound, bound). PyTorch's default for linear layers and convolutions is bound = fan_in ** -0.5."""

    def init(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def init_clip_vision(width: int, hidden: int, depth: int) -> BlockInit:
    """Initialisers of open_clip's vision blocks, PyTorch's defaults: Xavier-uniform packed qkv, else U(+-fan_in^-.5)."""
    narrow, wide = uniform(width**-0.5), uniform(hidden**-0.5)
    return BlockInit(uniform((6 / (4 * width)) ** 0.5), narrow, narrow, wide, narrow, wide)


def init_clip_text(width: int, hidden: int, depth: int) -> BlockInit:
    """Initialisers of CLIP's text blocks: N(0, std) with std width^-.5 (qkv), (2 width)^-.5 (fc1), else (2 width depth)^-.5."""
    normal = nn.initializers.normal
    residual = normal((2 * width * depth) ** -0.5)
    biases = uniform(width**-0.5), uniform(hidden**-0.5)  # PyTorch's default, which CLIP does not reset
    return BlockInit(normal(width**-0.5), residual, normal((2 * width) ** -0.5), residual, *biases)


# ------------------------------------------------------------------------------------------- modules


class LayerNorm(nn.Module):
    """Layer norm (arXiv:1607.06450) of the last axis in fp32, with a two-pass variance; returns the input's dtype."""

    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],), jnp.float32)
        return layer_norm(x, scale, bias, self.epsilon)


class Dense(nn.Module):
    """Linear layer [... D] to [... width] in `dtype`; kernel [D width], bias [width]."""

    width: int
    kernel_initial: Initializer
    bias_initial: Initializer = nn.initializers.zeros
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", self.kernel_initial, (x.shape[-1], self.width), jnp.float32)
        bias = self.param("bias", self.bias_initial, (self.width,), jnp.float32).astype(self.dtype)
        x = x.astype(self.dtype)
        y = adapted(self, x, product(x, gather_parameter(kernel, (*self.path, "kernel"))))
        return y + bias.reshape((1,) * (y.ndim - 1) + (-1,))


def adapted(module: nn.Module, x: jax.Array, y: jax.Array, columns: slice | None = None) -> jax.Array:
    """The product y of x [... D] with a module's kernel, plus that with its low-rank adapters if it has any.

    columns: those of the kernel's axis 1 that y has. Source: LoRA (arXiv:2106.09685), equation 3.
    """
    if not module.has_variable("params", LORA_A):
        return y
    a, b = module.get_variable("params", LORA_A), module.get_variable("params", LORA_B)
    return y + scale(a) * product(product(x, a), b if columns is None else b[:, columns])


class PackedProjection(nn.Module):
    """Query, key and value projections with one kernel [D 3 D]: a single product, whose last axis can be sharded by head."""

    width: int
    bias: bool
    initial: Initializer
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array, first: int = 0, last: int = 3) -> jax.Array:
        """Projections first..last-1 of (queries, keys, values) of x [B N D]; [B N last-first D]."""
        width = self.width
        kernel = self.param("kernel", self.initial, (width, 3, width), jnp.float32)
        kernel = gather_parameter(kernel, (*self.path, "kernel"))
        x = x.astype(self.dtype)
        y = adapted(self, x, product(x, kernel[:, first:last]), slice(first, last))
        if not self.bias:
            return y
        bias = self.param("bias", nn.initializers.zeros, (3, width), jnp.float32)
        return y + bias[first:last].astype(self.dtype)[None, None]


class Attention(nn.Module):
    """Multi-head self-attention. With `rows` only that row's output is computed; the others give keys and values."""

    width: int
    heads: int
    qkv_bias: bool
    initial: BlockInit
    dtype: str = "float32"
    dropout: float = 0.0  # of the attention weights; active if the caller passes a "dropout" rng
    kind: Path = "plain"
    rotary: Rotary | None = None  # positions of queries and keys

    def setup(self) -> None:
        self.qkv = PackedProjection(self.width, self.qkv_bias, self.initial.qkv, self.dtype)
        self.out = Dense(self.width, self.initial.out, dtype=self.dtype)
        self.drop = nn.Dropout(self.dropout)

    def __call__(self, x: jax.Array, mask: jax.Array | None = None, rows: Rows = None) -> jax.Array:
        """x [B N D], mask bool broadcastable to [B H N N]; returns [B N D], or [B 1 D] with `rows`."""
        if self.rotary and rows is not None:
            return take_rows(self(x, mask), rows)
        if rows is None:
            q, k, v = jnp.moveaxis(self.qkv(x), 2, 0)  # each [B N D]
        else:
            q = self.qkv(take_rows(x, rows), 0, 1)[:, :, 0]  # [B 1 D]
            k, v = jnp.moveaxis(self.qkv(x, 1, 3), 2, 0)
            mask = None if mask is None else take_rows(mask, rows, axis=2)
        q, k, v = (y.reshape(*y.shape[:2], self.heads, -1) for y in (q, k, v))
        if self.rotary:
            q, k = self.rotary(q), self.rotary(k)
        active = self.dropout > 0 and self.has_rng("dropout")
        y = attend(q, k, v, mask, partial(self.drop, deterministic=False) if active else None, self.kind)
        return self.out(y.reshape(*y.shape[:2], self.width))


class MLP(nn.Module):
    """Two linear layers with an activation in between; [... D] to [... D]."""

    width: int
    hidden: int
    activation: Activation
    initial: BlockInit
    dtype: str = "float32"

    def setup(self) -> None:
        init = self.initial
        self.fc1 = Dense(self.hidden, init.fc1, init.fc1_bias, self.dtype)
        self.fc2 = Dense(self.width, init.fc2, init.fc2_bias, self.dtype)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.fc2(self.activation(self.fc1(x)))


class LayerScale(nn.Module):
    """Multiply each channel by a learned gamma (arXiv:2103.17239, equation 4)."""

    width: int
    start: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        gamma = self.param("gamma", nn.initializers.constant(self.start), (self.width,), jnp.float32)
        return x * gamma.astype(x.dtype).reshape((1,) * (x.ndim - 1) + (-1,))


class Block(nn.Module):
    """Pre-norm transformer block (arXiv:2010.11929, equations 2 and 3)."""

    width: int
    heads: int
    hidden: int
    activation: Activation
    initial: BlockInit
    qkv_bias: bool = True
    epsilon: float = 1e-5
    layer_scale: float | None = None
    dtype: str = "float32"
    kind: Path = "plain"  # implementation of attention
    rotary: Rotary | None = None

    def setup(self) -> None:
        self.norm1 = LayerNorm(self.epsilon)
        fields = (self.width, self.heads, self.qkv_bias, self.initial, self.dtype)
        self.attention = Attention(*fields, kind=self.kind, rotary=self.rotary)
        self.norm2 = LayerNorm(self.epsilon)
        self.mlp = MLP(self.width, self.hidden, self.activation, self.initial, self.dtype)
        if self.layer_scale is not None:
            self.layer_scale1 = LayerScale(self.width, self.layer_scale)
            self.layer_scale2 = LayerScale(self.width, self.layer_scale)

    def __call__(
        self, x: jax.Array, mask: jax.Array | None = None, rows: Rows = None, drop: jax.Array | None = None
    ) -> jax.Array:
        """x [B N D], mask bool broadcastable to [B H N N]; returns [B N D], or [B 1 D] with `rows`.

        drop (): rate of stochastic depth; active if the caller passes a "drop_path" rng.
        """
        scale1 = self.layer_scale1 if self.layer_scale is not None else _same
        scale2 = self.layer_scale2 if self.layer_scale is not None else _same
        x = constrain_rows(x)
        x = take_rows(x, rows) + self._dropped(scale1(self.attention(self.norm1(x), mask, rows)), drop)
        return constrain_rows(x + self._dropped(scale2(self.mlp(self.norm2(x))), drop))

    def _dropped(self, x: jax.Array, rate: jax.Array | None) -> jax.Array:
        return drop_branch(self, x, rate)


def drop_branch(module: nn.Module, x: jax.Array, rate: jax.Array | float | None) -> jax.Array:
    """Stochastic depth: drop each example's branch x [B ...] with probability `rate`, else divide it by 1 - rate.

    Random numbers are those of the module's "drop_path"; without them, or with the rate None, x is returned.
    Source: arXiv:1603.09382, equation 5.
    """
    if rate is None or not module.has_rng("drop_path"):
        return x
    kept = jax.random.bernoulli(module.make_rng("drop_path"), 1 - rate, (len(x), *(1,) * (x.ndim - 1)))
    return jnp.where(kept, x / jnp.asarray(1 - rate, x.dtype), 0)


def _same(x: jax.Array) -> jax.Array:
    return x


# ------------------------------------------------------------------------------------ stacks of blocks

REMAT = ("none", "full", "dots")


def _remat(function: Callable[..., Any], policy: str) -> Callable[..., Any]:
    """Rematerialise a block: "full" stores only its input, "dots" also products with weights, "none" everything."""
    if policy not in REMAT:
        raise UserError(f"remat is {policy!r}; expected one of {', '.join(REMAT)}")
    if policy == "none":
        return function
    saved = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if policy == "dots" else None
    return nn.remat(function, policy=saved)


@dataclass(frozen=True)
class Stack:
    """A stack of blocks: unrolled, which runs faster, or one `scan` over stacked parameters, which compiles faster."""

    depth: int
    scan: bool = False
    remat: str = "none"
    drop_path: float = 0.0  # stochastic depth of the last block, rising linearly from 0 in the first

    def __call__(
        self, block: Callable[..., Any], x: jax.Array, mask: jax.Array | None, rows: Rows, keep: bool
    ) -> dict[str, Any]:
        """Run the blocks on x [B N D], as children block_0.. (or `blocks`) of the compact module that calls this.

        Returns tokens [B N D]; row [B D], one row of the tokens; and hidden, the outputs of all blocks if `keep`.
        Raises UserError for an unknown `remat`.
        """

        rates = jnp.linspace(0, self.drop_path, self.depth) if self.drop_path else None

        def step(block: Any, x: jax.Array, rate: jax.Array | None) -> tuple[jax.Array, Any]:
            y = block(x, mask) if rate is None else block(x, mask, None, rate)
            return y, y if keep else None

        step = _remat(step, self.remat)
        if self.scan:
            split = {"params": True, "dropout": True, "drop_path": True}
            axes: dict[str, Any] = {"variable_axes": {"params": 0}, "split_rngs": split}
            x, kept = nn.scan(step, length=self.depth, **axes)(block(name="blocks"), x, rates)
            row = take_rows(x, 0 if rows is None else rows)[:, 0]
            return {"tokens": x, "row": row, "hidden": tuple(kept) if keep else ()}
        blocks = [block(name=f"block_{i}") for i in range(self.depth)]
        before, kept = x, ()
        for i, each in enumerate(blocks):
            before = x
            x, _ = step(each, x, None if rates is None else rates[i])
            kept += (x,) if keep else ()
        if rates is not None:  # running the last block again would draw other examples to drop
            return {"tokens": x, "row": take_rows(x, 0 if rows is None else rows)[:, 0], "hidden": kept}
        # The row is computed by a second call of the last block, for this row only. Under jit, a loss that needs only the
        # row (as CLIP's) never computes the other rows of that block; one that needs all tokens pays for one more. At
        # depth 6 a CLIP step takes 13 % more processor time without this (benchmarks/train_step.py, Ti/16, batch 8).
        last = _remat(lambda block, x: block(x, mask, 0 if rows is None else rows)[:, 0], self.remat)
        return {"tokens": x, "row": last(blocks[-1], before), "hidden": kept}
