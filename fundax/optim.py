"""Optimizers: learning-rate schedules, AdamW, weight decay by parameter path, freezing, clipping and moving averages.

The transformations are optax's and compose with optax.chain. Parameters are selected by regular expressions on their
paths, such as 'image/block_0/norm1/scale'."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fundax.types import UserError

# ln 100, the upper bound of a learned log logit scale (arXiv:2103.00020, section 2.5). Rounded to four decimals, as in
# the original code of FLAIR and RET-CLIP, so that clamped steps agree with theirs.
MAX_LOG_SCALE = 4.6052
Schedule = Callable[[Any], Any]  # optimizer step, counted from 0, to the learning rate
DecayRule = Callable[[str, Any], bool]  # (path, leaf) -> whether weight decay applies to it


# --- schedules -------------------------------------------------------------------------------------------------


def constant(peak: float, warmup: int = 0) -> Schedule:
    """Linear warm-up to `peak`, then constant, as open_clip's `const_lr`: the rate of step 0 is peak / warmup."""
    return lambda step: _warm(step, peak, warmup, jnp.asarray(peak))


def cosine(peak: float, steps: int, warmup: int = 0) -> Schedule:
    """Linear warm-up, then cosine decay from `peak` to 0 at `steps`, as open_clip's `cosine_lr`."""
    _check_length("cosine", steps, warmup)

    def schedule(step: Any) -> Any:
        left = jnp.clip((steps - step) / (steps - warmup), 0.0, 1.0)
        # sin^2 equals (1 + cos(pi (1 - left))) / 2, but does not suffer from cancellation near zero
        return _warm(step, peak, warmup, peak * jnp.sin(jnp.pi / 2 * left) ** 2)

    return schedule


def cooldown(peak: float, steps: int, warmup: int = 0, *, cool: int, power: float = 1.0, end: float = 0.0) -> Schedule:
    """Warm-up, constant, then polynomial decay to `end` over the last `cool` steps (open_clip's `const_lr_cooldown`)."""
    _check_length("cooldown", steps, warmup + cool - 1)

    def schedule(step: Any) -> Any:
        left = jnp.clip((steps - step) / cool, 0.0, 1.0)
        return _warm(step, peak, warmup, left**power * (peak - end) + end)

    return schedule


def cosine_schedule(start: float, end: float, steps: int, warmup: int = 0) -> Schedule:
    """Linear warm-up from 0, then a cosine from `start` to `end`, which is reached at step `steps`.

    DINO, iBOT and VisionFM schedule the learning rate, weight decay and teacher momentum this way (their
    `cosine_scheduler`). The value is 0 at the first step of the warm-up and `start` at its last.
    """
    _check_length("cosine_schedule", steps, warmup)

    def schedule(step: Any) -> Any:
        done = jnp.clip((step - warmup) / (steps - warmup), 0.0, 1.0)
        after = end + (start - end) * jnp.cos(jnp.pi / 2 * done) ** 2
        return jnp.where(step < warmup, start * step / max(warmup - 1, 1), after)

    return schedule


def _warm(step: Any, peak: float, warmup: int, after: Any) -> Any:
    return jnp.where(step < warmup, peak * (step + 1) / max(warmup, 1), after)


def _check_length(name: str, steps: int, before: int) -> None:
    if steps <= before:
        raise UserError(f"{name}: expected more steps than the {before} of warm-up and cool-down, got {steps}")


# --- decay rules -----------------------------------------------------------------------------------------------

_NORM = re.compile(r"(^|/)(\w*norm\d?|layer_scale\d?)/(scale|gamma|bias)$")
_BIAS = re.compile(r"(^|/)(bias|logit_bias)$")
_SCALE = re.compile(r"(^|/)log_scale(/|$)")


def decay_matrices(path: str, leaf: Any) -> bool:
    """Decay only kernels: not embeddings, positions, tokens, norms, biases or scales."""
    return path.endswith("/kernel")


def decay_open_clip(path: str, leaf: Any) -> bool:
    """Decay everything except vectors, norms, biases and the logit scale: the groups of open_clip's training script.

    Embeddings, position tables and projections therefore decay too. A golden test compares with open_clip's own lists.
    """
    vector = leaf.ndim < (3 if "/blocks/" in f"/{path}" else 2)
    return not (vector or _NORM.search(path) or _BIAS.search(path) or _SCALE.search(path))


def decay_ret_clip(path: str, leaf: Any) -> bool:
    """Decay the parameters that RET-CLIP's training script decays: names without bn, ln, bias and logit_scale.

    BERT's norms are named `LayerNorm`, without "ln", so the norm scales of the text encoder decay, as does the class
    token.
    """
    norm = _NORM.search(path) and not path.startswith("text/")
    return not (norm or _BIAS.search(path) or _SCALE.search(path))


def decay_visionfm(path: str, leaf: Any) -> bool:
    """Decay everything except biases and vectors: the groups of DINO, iBOT and VisionFM.

    In their code the positions, class token, mask token and the (trained) scale of a weight-normalised last layer have
    more than one axis, so they decay.
    """
    if re.search(r"(^|/)(class_token|mask_token|position)$|last_layer2?/scale$", path):
        return True
    vector = leaf.ndim < (3 if "/blocks/" in f"/{path}" else 2)
    return not (vector or _BIAS.search(path))


def decay_mask(rule: DecayRule) -> Callable[[Any], Any]:
    """Convert a rule to the `mask` argument of optax."""
    return lambda params: jax.tree_util.tree_map_with_path(lambda p, x: rule(_path(p), x), params)


# --- chains ----------------------------------------------------------------------------------------------------


def adamw(
    schedule: Schedule,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float | Schedule = 0.0,
    decay: DecayRule = decay_matrices,
    late: tuple[str, int] | None = None,
    clip: float = 0.0,
) -> optax.GradientTransformation:
    """AdamW (arXiv:1711.05101) with a decay rule. As in PyTorch, the decay is multiplied by the learning rate.

    Args:
        schedule: learning rate.
        betas, eps: as in Adam.
        weight_decay: a constant or a schedule.
        decay: rule that selects the parameters that decay.
        late: (regex, steps): matching parameters are not updated in the first `steps` steps. Their Adam moments and step
            count start afterwards.
        clip: maximum global norm of the gradients; 0 disables clipping.
    """
    if clip:
        rule = adamw(schedule, betas, eps, weight_decay, decay, late)
        return optax.chain(optax.clip_by_global_norm(clip), rule)
    mask = decay_mask(decay)
    adam = optax.scale_by_adam(b1=betas[0], b2=betas[1], eps=eps)
    fixed = not callable(weight_decay)
    decayed = optax.add_decayed_weights(weight_decay, mask=mask) if fixed else _decay(weight_decay, mask)
    if late is None:
        return optax.chain(adam, decayed, scale_by_rate(schedule))
    return optax.chain(_late(adam, *late), decayed, scale_by_rate(schedule), _late(optax.identity(), *late))


class CountState(NamedTuple):
    """Number of steps taken."""

    steps: jax.Array


def _decay(schedule: Schedule, mask: Callable[[Any], Any]) -> optax.GradientTransformation:
    """Add the scheduled fraction of each parameter selected by the mask."""

    def init(params: Any) -> CountState:
        return CountState(jnp.zeros((), jnp.int32))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, CountState]:
        now = jnp.asarray(schedule(state.steps), jnp.float32)
        updates = jax.tree.map(lambda u, p, yes: u + now * p if yes else u, updates, params, mask(params))
        return updates, CountState(state.steps + 1)

    return optax.GradientTransformation(init, update)


class LateState(NamedTuple):
    """Number of steps taken, and the state of the delayed transformation."""

    steps: jax.Array
    inner: Any


def _late(tx: optax.GradientTransformation, pattern: str, steps: int) -> optax.GradientTransformation:
    """Delay `tx` by `steps` steps for parameters whose path matches; until then their update is 0."""

    def init(params: Any) -> LateState:
        return LateState(jnp.zeros((), jnp.int32), tx.init(params))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, LateState]:
        new, inner = tx.update(updates, state.inner, params)
        on = state.steps >= steps
        new = jax.tree.map(lambda u: jnp.where(on, u, 0), new)
        inner = jax.tree.map(lambda a, b: jnp.where(on, a, b), inner, state.inner)
        return new, LateState(state.steps + 1, inner)

    def labels(params: Any) -> Any:
        _require(pattern, params, "late")
        return jax.tree_util.tree_map_with_path(lambda p, _: "late" if re.search(pattern, _path(p)) else "now", params)

    return optax.partition({"late": optax.GradientTransformation(init, update), "now": tx}, labels)


def clip_leaves(limit: float) -> optax.GradientTransformation:
    """Clip the gradient of each parameter by its own norm: g min(1, limit / (|g| + 1e-6)).

    DINO, iBOT and VisionFM use this (`clip_gradients`) instead of clipping by the global norm. Stacked layers are clipped
    separately, so the result does not depend on stacking.
    """

    def clip(path: Any, g: Any) -> Any:
        axes = tuple(range(int("/blocks/" in f"/{_path(path)}"), g.ndim))
        norm = jnp.sqrt((g.astype(jnp.float32) ** 2).sum(axes, keepdims=True))
        return g * jnp.minimum(1.0, limit / (norm + 1e-6)).astype(g.dtype)

    return optax.stateless(lambda updates, params: jax.tree_util.tree_map_with_path(clip, updates))


class RateState(NamedTuple):
    """Number of steps taken, and the learning rate of the last step, which is logged."""

    steps: jax.Array
    learning_rate: jax.Array


def scale_by_rate(schedule: Schedule) -> optax.GradientTransformation:
    """Multiply updates by minus the scheduled learning rate, and store the rate in the state."""

    def init(params: Any) -> RateState:
        return RateState(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.float32))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, RateState]:
        rate = jnp.asarray(schedule(state.steps), jnp.float32)
        updates = jax.tree.map(lambda u: -rate * u, updates)
        return updates, RateState(state.steps + 1, rate)

    return optax.GradientTransformation(init, update)


def clip_params(bounds: Mapping[str, tuple[float, float]]) -> optax.GradientTransformation:
    """Clip parameters whose path matches a regex to (low, high) after the step. Put it last in a chain.

    CLIP clamps its log scale to (0, ln 100) this way (arXiv:2103.00020, section 2.5). `init` raises UserError for a
    pattern that matches nothing.
    """

    def init(params: Any) -> optax.EmptyState:
        for pattern in bounds:
            _require(pattern, params, "clip_params")
        return optax.EmptyState()

    def bound(path: Any, update: Any, param: Any) -> Any:
        for pattern, (low, high) in bounds.items():
            if re.search(pattern, _path(path)):
                return jnp.clip(param + update, low, high) - param
        return update

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        return jax.tree_util.tree_map_with_path(bound, updates, params), state

    return optax.GradientTransformation(init, update)


def freeze(tx: optax.GradientTransformation, *patterns: str) -> optax.GradientTransformation:
    """Apply `tx` to all parameters except those whose path matches a regex. Frozen parameters have no moments.

    `init` raises UserError for a pattern that matches nothing.
    """

    def labels(params: Any) -> Any:
        for pattern in patterns:
            _require(pattern, params, "freeze")
        return jax.tree_util.tree_map_with_path(
            lambda p, _: "frozen" if any(re.search(x, _path(p)) for x in patterns) else "train", params
        )

    return optax.partition({"train": tx, "frozen": optax.set_to_zero()}, labels)


def grouped(groups: Mapping[str, optax.GradientTransformation]) -> optax.GradientTransformation:
    """Apply a different chain to each group of parameters: the chain of the first regex that matches the path.

    "" matches all remaining parameters.

    `init` raises UserError for a pattern that matches nothing and for a parameter that no pattern matches.
    """

    def label(path: Any, leaf: Any) -> str:
        group = next((pattern for pattern in groups if re.search(pattern, _path(path))), None)
        if group is None:
            raise UserError(f"grouped: no group for the parameter {_path(path)}; groups are {', '.join(groups)}")
        return group

    def labels(params: Any) -> Any:
        for pattern in groups:
            _require(pattern, params, "grouped")
        return jax.tree_util.tree_map_with_path(label, params)

    chains: dict[Any, optax.GradientTransformation] = dict(groups)
    return optax.partition(chains, labels)


def layer_decay(rate: float, depth: int) -> optax.GradientTransformation:
    """Layer-wise learning-rate decay of an encoder (`image/...`): updates times rate ** (number of layers above).

    The parameters before the blocks have depth + 1 layers above them, block i has depth - i, and the final norm and the
    head have 0. BEiT, MAE and the fine-tuning of RETFound use these groups. Put it after the learning rate, last in a
    chain. A rate of 1 changes nothing.
    """

    def scale(path: Any, update: Any) -> Any:
        name = _path(path)
        if not name.startswith("image/") or name.startswith(("image/norm", "image/pool")):
            return update
        if "/blocks/" in name:
            factors = jnp.asarray([rate ** (depth - i) for i in range(depth)], update.dtype)
            factors = factors[-len(update) :]  # of the last blocks, where they alone train
            return update * factors.reshape(-1, *(1,) * (update.ndim - 1))
        block = re.search(r"/block_(\d+)/", name)
        return update * rate ** (depth - int(block[1]) if block else depth + 1)

    return optax.stateless(lambda updates, params: jax.tree_util.tree_map_with_path(scale, updates))


def rate_of(opt: Any) -> jax.Array | None:
    """The learning rate of the last step, or None if the chain does not store it."""
    rates = optax.tree.get_all_with_path(opt, "learning_rate")
    return rates[0][1] if rates else None


def ema_update(average: Any, new: Any, momentum: jax.Array | float) -> Any:
    """Exponential moving average of parameters, m a + (1 - m) p, without a gradient for `new`.

    It is computed as p + m (a - p), so that equal values stay exactly equal.
    """
    new = jax.tree.map(jax.lax.stop_gradient, new)
    return jax.tree.map(lambda a, p: p + momentum * (a - p), average, new)


def _require(pattern: str, params: Any, name: str) -> None:
    # Parameters that do not train (fundax/tuning.py) are nodes without leaves here, and count as found.
    leaves = jax.tree_util.tree_leaves_with_path(params, is_leaf=lambda node: isinstance(node, optax.MaskedNode))
    paths = [_path(p) for p, _ in leaves]
    if not any(re.search(pattern, path) for path in paths):
        raise UserError(f"{name}: no parameter path matches {pattern!r}; paths begin with {sorted(paths)[:3]}")


def _path(path: Any) -> str:
    return jax.tree_util.keystr(tuple(path), simple=True, separator="/")


# --- FLAIR and KeepFIT -----------------------------------------------------------------------------------------

HORIZON = 100  # length of FLAIR's cosine in epochs, regardless of the number of trained epochs


def flair_schedule(lr: float, steps_per_epoch: int, horizon: int = HORIZON, warmup: int = 1) -> Schedule:
    """`warmup` epochs of linear warm-up, then a cosine that reaches 0 after `horizon` epochs.

    FLAIR and KeepFIT train for 15 or 25 of the 100 epochs, so their learning rate stays above 0.9 `lr`. To let it decay
    to 0, set `horizon` to the number of training epochs. Source: github.com/jusiro/FLAIR, its warm-up cosine scheduler.
    """
    return cosine(lr, horizon * steps_per_epoch, warmup=warmup * steps_per_epoch)


def decay_all(path: str, leaf: Any) -> bool:
    """Decay every parameter, including norms, biases and the log scale, as FLAIR and KeepFIT do."""
    return True


def flair_adamw(
    lr: float = 1e-4, *, steps_per_epoch: int, horizon: int = HORIZON, weight_decay: float = 1e-5, clip: float = 1.0
) -> optax.GradientTransformation:
    """FLAIR's optimizer: global-norm clipping, AdamW with `flair_schedule`, log_scale kept in [0, MAX_LOG_SCALE]."""
    return optax.chain(
        optax.clip_by_global_norm(clip),
        adamw(flair_schedule(lr, steps_per_epoch, horizon), weight_decay=weight_decay, decay=decay_all),
        clip_params({"log_scale$": (0.0, MAX_LOG_SCALE)}),
    )
