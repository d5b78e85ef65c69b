"""Gradient accumulation over micro-batches that gives the gradient of the full batch, also for contrastive losses.

A contrastive loss compares all examples with each other, so averaging over micro-batches would lose negatives. Instead
the features of all micro-batches are computed first, the loss is computed from all of them, and each micro-batch is
encoded again to backpropagate its part of the gradient (GradCache, arXiv:2101.06983)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fundax.types import Batch, Contrastive, ContrastiveWithState, Extra, Metrics, Objective, Params, UserError

# (params, extra, batch, rng, step, whole) -> ((loss, (extra, metrics)), gradients)
ValueAndGrad = Callable[..., tuple[tuple[jax.Array, Any], Params]]
Whole = Callable[[Params], Params]  # from the parameters that train to all of them


def _all(params: Params) -> Params:
    return params


def value_and_grad(objective: Objective, micro_batches: int = 1) -> ValueAndGrad:
    """A function for the loss and its gradient in `micro_batches` passes, equal to those of the full batch.

    The gradient is that of the function's first argument, from which its last, `whole`, makes the objective's parameters.

    Contrastive objectives keep all negatives. Any other loss must be a mean over examples, so that the mean over
    micro-batches of equal size is exact. A network with batch statistics normalises each micro-batch by its own, so the
    gradient is then that of a batch which is normalised in parts. Raises UserError if the batch does not divide.
    """
    if micro_batches == 1:
        return _at_once(objective)
    if isinstance(objective, Contrastive):
        return _cached(objective, micro_batches)
    return _mean(objective, micro_batches)


def split(batch: Batch, n: int) -> dict[str, jax.Array]:
    """Reshape [B ...] to [n B/n ...]. Row r goes to micro-batch r mod n, so that rows need not move between devices.

    Arrays may differ in their number of rows.
    """
    if odd := [len(v) for v in batch.values() if len(v) % n]:
        raise UserError(f"a batch of {odd[0]} does not divide into {n} micro-batches; change --batch or accumulate")
    return {k: jnp.swapaxes(v.reshape(len(v) // n, n, *v.shape[1:]), 0, 1) for k, v in batch.items()}


def join(parts: Any) -> Any:
    """The inverse of `split` for a tree of features: [n B/n ...] to [B ...]."""
    return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:]), parts)


def _at_once(objective: Objective) -> ValueAndGrad:
    def run(params: Params, extra: Extra, batch: Batch, rng: jax.Array, step: jax.Array, whole: Whole = _all) -> Any:
        return jax.value_and_grad(lambda p: objective.loss(whole(p), extra, batch, rng, step), has_aux=True)(params)

    return run


def _cached(objective: Contrastive, n: int) -> ValueAndGrad:
    def run(params: Params, extra: Extra, batch: Batch, rng: jax.Array, step: jax.Array, whole: Whole = _all) -> Any:
        if jax.tree.leaves(extra) and not isinstance(objective, ContrastiveWithState):
            raise UserError(
                f"--accumulate: {type(objective).__name__} has extra state, and no encode_next that gives the next one"
            )
        parts, rngs = split(batch, n), jax.random.split(rng, n)

        def encode(params: Params, part: Batch, rng: jax.Array) -> dict[str, jax.Array]:
            return objective.encode(whole(params), extra, part, rng, step)

        def encode_next(extra: Extra, xs: Any) -> tuple[Extra, dict[str, jax.Array]]:
            if not isinstance(objective, ContrastiveWithState):
                return extra, encode(params, *xs)
            features, extra = objective.encode_next(whole(params), extra, *xs)
            return extra, features

        after, features = jax.lax.scan(encode_next, extra, (parts, rngs))
        cached = join(features)
        compare = jax.value_and_grad(lambda p, f: objective.compare(whole(p), f, batch), argnums=(0, 1), has_aux=True)
        (loss, metrics), (direct, by_feature) = compare(params, cached)

        def back(grads: Params, xs: Any) -> tuple[Params, None]:
            part, rng, cotangent = xs
            _, pull = jax.vjp(lambda p: encode(p, part, rng), params)
            return jax.tree.map(jnp.add, grads, pull(cotangent)[0]), None

        grads, _ = jax.lax.scan(back, direct, (parts, rngs, split(by_feature, n)))
        return (loss, (after, metrics)), grads

    return run


def _mean(objective: Objective, n: int) -> ValueAndGrad:
    grad = _at_once(objective)

    def run(params: Params, extra: Extra, batch: Batch, rng: jax.Array, step: jax.Array, whole: Whole = _all) -> Any:
        def add(carry: Any, xs: Any) -> tuple[Any, tuple[jax.Array, Metrics]]:
            extra, grads = carry
            part, rng = xs
            (loss, (extra, metrics)), g = grad(params, extra, part, rng, step, whole)
            return (extra, jax.tree.map(jnp.add, grads, g)), (loss, metrics)

        zeros = jax.tree.map(jnp.zeros_like, params)
        (extra, grads), rows = jax.lax.scan(add, (extra, zeros), (split(batch, n), jax.random.split(rng, n)))
        loss, metrics = jax.tree.map(lambda x: jnp.mean(x, axis=0), rows)
        return (loss, (extra, metrics)), jax.tree.map(lambda g: g / n, grads)

    return run
