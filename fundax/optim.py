"""Learning-rate schedules and optax chains keyed by parameter path: decay groups, freezing, bounds after the step.

FLAIR's optimizer and schedule, which KeepFIT keeps."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fundax.types import UserError

MAX_LOG_SCALE = 4.6052  # FLAIR clamps its log scale to [0, this]


Schedule = Callable[[Any], Any]  # optimizer step, from 0 -> learning rate


DecayRule = Callable[[str, Any], bool]  # (path such as 'image/block_0/norm1/scale', leaf) -> decay it?


# --- schedules -------------------------------------------------------------------------------------------------


def constant(peak: float, warmup: int = 0) -> Schedule:
    """Linear warm-up to `peak`, then flat. The form of open_clip (`const_lr`): step 0 gets peak / warmup."""
    return lambda step: _warm(step, peak, warmup, jnp.asarray(peak))


def cosine(peak: float, steps: int, warmup: int = 0) -> Schedule:
    """Linear warm-up, then half a cosine from `peak` to 0 at `steps`. The form of open_clip (`cosine_lr`)."""
    _check_length("cosine", steps, warmup)

    def schedule(step: Any) -> Any:
        left = jnp.clip((steps - step) / (steps - warmup), 0.0, 1.0)
        # (1 + cos(pi (1-left))) / 2 written as a square, which loses no digits where it nears zero
        return _warm(step, peak, warmup, peak * jnp.sin(jnp.pi / 2 * left) ** 2)

    return schedule


def cooldown(peak: float, steps: int, warmup: int = 0, *, cool: int, power: float = 1.0, end: float = 0.0) -> Schedule:
    """Warm-up, flat, then a polynomial descent to `end` over the last `cool` steps (open_clip `const_lr_cooldown`)."""
    _check_length("cooldown", steps, warmup + cool - 1)

    def schedule(step: Any) -> Any:
        left = jnp.clip((steps - step) / cool, 0.0, 1.0)
        return _warm(step, peak, warmup, left**power * (peak - end) + end)

    return schedule


def cosine_schedule(start: float, end: float, steps: int, warmup: int = 0) -> Schedule:
    """Half a cosine from `start` to `end`, which it would reach at `steps`, after a linear warm-up from 0.

    The form of DINO, iBOT and VisionFM (`cosine_scheduler`), by which they move rate, weight decay and momentum: the
    first step of the warm-up has 0 and its last has all of `start`.
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
        raise UserError(f"{name} schedule: {steps} steps leave no room after warm-up and cool-down ({before})")


# --- decay rules -----------------------------------------------------------------------------------------------

_NORM = re.compile(r"(^|/)(\w*norm\d?|layer_scale\d?)/(scale|gamma|bias)$")


_BIAS = re.compile(r"(^|/)(bias|logit_bias)$")


_SCALE = re.compile(r"(^|/)log_scale(/|$)")


def decay_matrices(path: str, leaf: Any) -> bool:
    """Decay kernels only: no embeddings, positions, tokens, norms, biases or scales."""
    return path.endswith("/kernel")


def peer_open_clip(path: str, leaf: Any) -> bool:
    """The groups of open_clip's training script: everything but vectors, norms, biases and the logit scale.

    So embeddings, position tables and projections decay too. Held to the peer's own lists by a golden test.
    """
    vector = leaf.ndim < (3 if "/blocks/" in f"/{path}" else 2)
    return not (vector or _NORM.search(path) or _BIAS.search(path) or _SCALE.search(path))


def peer_ret_clip(path: str, leaf: Any) -> bool:
    """The groups of RET-CLIP's training script: names with bn, ln, bias or logit_scale are exempt, all else decays.

    BERT calls its norms `LayerNorm`, which holds no "ln": the text tower's norm scales decay, and so does the
    class token.
    """
    norm = _NORM.search(path) and not path.startswith("text/")
    return not (norm or _BIAS.search(path) or _SCALE.search(path))


def peer_visionfm(path: str, leaf: Any) -> bool:
    """The groups of DINO, iBOT and VisionFM: everything but biases and vectors.

    Positions, class token and mask token are no vectors there, nor is the scale of a weight-normalised last layer
    (where that is trained), so they decay.
    """
    if re.search(r"(^|/)(class_token|mask_token|position)$|last_layer2?/scale$", path):
        return True
    vector = leaf.ndim < (3 if "/blocks/" in f"/{path}" else 2)
    return not (vector or _BIAS.search(path))


def decay_mask(rule: DecayRule) -> Callable[[Any], Any]:
    """optax's mask argument out of a rule."""
    return lambda params: jax.tree_util.tree_map_with_path(lambda p, x: rule(_path(p), x), params)


# --- chains ----------------------------------------------------------------------------------------------------


def adamw(
    schedule: Schedule,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float | Schedule = 0.0,
    decay: DecayRule = decay_matrices,
    late: tuple[str, int] | None = None,
) -> optax.GradientTransformation:
    """AdamW (arXiv 1711.05101) with decay by rule; equal to torch's, which also multiplies the decay by the rate.

    late: (regex, steps): the parameters it matches are left alone for that many steps: no update, no decay, and no
        count or moment of Adam's, which begin when they do.
    """
    mask = decay_mask(decay)
    adam = optax.scale_by_adam(b1=betas[0], b2=betas[1], eps=eps)
    fixed = not callable(weight_decay)
    decayed = optax.add_decayed_weights(weight_decay, mask=mask) if fixed else _decay(weight_decay, mask)
    if late is None:
        return optax.chain(adam, decayed, scale_by_rate(schedule))
    return optax.chain(_late(adam, *late), decayed, scale_by_rate(schedule), _late(optax.identity(), *late))


class CountState(NamedTuple):
    """Steps taken."""

    steps: jax.Array


def _decay(schedule: Schedule, mask: Callable[[Any], Any]) -> optax.GradientTransformation:
    """Adds the scheduled part of each parameter that the mask names."""

    def init(params: Any) -> CountState:
        return CountState(jnp.zeros((), jnp.int32))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, CountState]:
        now = jnp.asarray(schedule(state.steps), jnp.float32)
        updates = jax.tree.map(lambda u, p, yes: u + now * p if yes else u, updates, params, mask(params))
        return updates, CountState(state.steps + 1)

    return optax.GradientTransformation(init, update)


class LateState(NamedTuple):
    """Steps taken, and the state of what waits."""

    steps: jax.Array
    inner: Any


def _late(tx: optax.GradientTransformation, pattern: str, steps: int) -> optax.GradientTransformation:
    """`tx`, which for the parameters whose path matches begins after `steps` steps; until then their update is 0."""

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
    """Each parameter's gradient scaled to a norm of at most `limit`, by itself: g min(1, limit / (|g| + 1e-6)).

    The form of DINO, iBOT and VisionFM (`clip_gradients`), which is not clipping by the global norm. Stacked layers
    are clipped one by one, as they are where they are not stacked.
    """

    def clip(path: Any, g: Any) -> Any:
        axes = tuple(range(int("/blocks/" in f"/{_path(path)}"), g.ndim))
        norm = jnp.sqrt((g.astype(jnp.float32) ** 2).sum(axes, keepdims=True))
        return g * jnp.minimum(1.0, limit / (norm + 1e-6)).astype(g.dtype)

    return optax.stateless(lambda updates, params: jax.tree_util.tree_map_with_path(clip, updates))


class RateState(NamedTuple):
    """Steps taken, and the rate of the last one (read by the log)."""

    steps: jax.Array
    learning_rate: jax.Array


def scale_by_rate(schedule: Schedule) -> optax.GradientTransformation:
    """Multiply updates by minus the scheduled rate, and remember the rate."""

    def init(params: Any) -> RateState:
        return RateState(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.float32))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, RateState]:
        rate = jnp.asarray(schedule(state.steps), jnp.float32)
        updates = jax.tree.map(lambda u: -rate * u, updates)
        return updates, RateState(state.steps + 1, rate)

    return optax.GradientTransformation(init, update)


def clip_params(bounds: Mapping[str, tuple[float, float]]) -> optax.GradientTransformation:
    """Keep the parameters whose path matches a regex within (low, high) after the step; goes last in a chain.

    CLIP clamps its log scale to (0, ln 100) this way (arXiv 2103.00020, section 2.5).
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
    """`tx` on all parameters but those whose path matches a regex; frozen ones keep no moments.

    `init` raises UserError for a pattern that matches nothing.
    """

    def labels(params: Any) -> Any:
        for pattern in patterns:
            _require(pattern, params, "frozen")
        return jax.tree_util.tree_map_with_path(
            lambda p, _: "frozen" if any(re.search(x, _path(p)) for x in patterns) else "train", params
        )

    return optax.partition({"train": tx, "frozen": optax.set_to_zero()}, labels)


def grouped(groups: Mapping[str, optax.GradientTransformation]) -> optax.GradientTransformation:
    """A chain for each regex of parameter paths, the first that matches; "" matches what is left.

    `init` raises UserError for a pattern that matches nothing, and for a parameter that none matches.
    """

    def label(path: Any, leaf: Any) -> str:
        found = next((pattern for pattern in groups if re.search(pattern, _path(path))), None)
        if found is None:
            raise UserError(f"grouped: no group for the parameter {_path(path)}; groups are {', '.join(groups)}")
        return found

    def labels(params: Any) -> Any:
        for pattern in groups:
            _require(pattern, params, "grouped")
        return jax.tree_util.tree_map_with_path(label, params)

    chains: dict[Any, optax.GradientTransformation] = dict(groups)
    return optax.partition(chains, labels)


def layer_decay(rate: float, depth: int) -> optax.GradientTransformation:
    """Updates of an encoder (`image/...`) times rate ** (layers above it); goes after the learning rate, last in a chain.

    What comes before the blocks has depth + 1 layers above it, block i depth - i, all else (final norm, head) none: the
    groups of BEiT and MAE, which RETFound is fine-tuned by. rate 1 changes nothing.
    """

    def scale(path: Any, update: Any) -> Any:
        name = _path(path)
        if not name.startswith("image/") or name.startswith(("image/norm", "image/pool")):
            return update
        if "/blocks/" in name:
            factors = jnp.asarray([rate ** (depth - i) for i in range(depth)], update.dtype)
            return update * factors.reshape(-1, *(1,) * (update.ndim - 1))
        block = re.search(r"/block_(\d+)/", name)
        return update * rate ** (depth - int(block[1]) if block else depth + 1)

    return optax.stateless(lambda updates, params: jax.tree_util.tree_map_with_path(scale, updates))


def rate_of(opt: Any) -> jax.Array | None:
    """The learning rate of the last step, where the chain remembers one."""
    found = optax.tree.get_all_with_path(opt, "learning_rate")
    return found[0][1] if found else None


def _require(pattern: str, params: Any, who: str) -> None:
    paths = [_path(p) for p, _ in jax.tree_util.tree_leaves_with_path(params)]
    if not any(re.search(pattern, path) for path in paths):
        raise UserError(f"{who}: no parameter path matches {pattern!r}; paths begin with {sorted(paths)[:3]}")


def _path(path: Any) -> str:
    return jax.tree_util.keystr(tuple(path), simple=True, separator="/")


HORIZON = 100  # epochs of FLAIR's cosine, however many are trained


def flair_schedule(lr: float, steps_per_epoch: int, horizon: int = HORIZON) -> Schedule:
    """One epoch of linear warm-up, then a cosine that would reach 0 after `horizon` epochs.

    The peers train 15 or 25 epochs of it, so the rate never falls below 0.9 of `lr`; pass the epochs you train as
    `horizon` to let it come down. Source: github.com/jusiro/FLAIR, its warm-up cosine scheduler.
    """
    return cosine(lr, horizon * steps_per_epoch, warmup=steps_per_epoch)


def decay_all(path: str, leaf: Any) -> bool:
    """Every parameter decays, norms, biases and the log scale too: one parameter group, as the peers have it."""
    return True


def flair_adamw(
    lr: float = 1e-4, *, steps_per_epoch: int, horizon: int = HORIZON, weight_decay: float = 1e-5, clip: float = 1.0
) -> optax.GradientTransformation:
    """AdamW on `flair_schedule`, gradients clipped to a global norm of `clip`, log_scale kept in [0, 4.6052]."""
    return optax.chain(
        optax.clip_by_global_norm(clip),
        adamw(flair_schedule(lr, steps_per_epoch, horizon), weight_decay=weight_decay, decay=decay_all),
        clip_params({"log_scale$": (0.0, MAX_LOG_SCALE)}),
    )
