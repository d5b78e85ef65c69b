"""The state of training: parameters, extra state and optimizer state, as shapes and as arrays on the devices.

What of the parameters trains is the recipe's `tune` (fundax/tuning.py): optimizer state exists for that alone."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from fundax.params import check_same
from fundax.recipe import Recipe
from fundax.runtime import mesh as meshes
from fundax.tuning import check, split, with_adapters
from fundax.types import Extra, Params


class TrainState(NamedTuple):
    """Everything that a step updates; `extra` is carried but not differentiated."""

    step: jax.Array
    params: Params
    extra: Extra
    opt: Any


def check_tune(recipe: Recipe) -> None:
    """Raise UserError if the objective does not support the recipe's `tune`."""
    if recipe.tune.rows is not None:
        check(recipe.tune, *jax.eval_shape(_initialize(recipe), jax.random.key(recipe.seed)))


def abstract_state(recipe: Recipe, mesh: Mesh) -> TrainState:
    """The state as shapes with shardings. Nothing is allocated, so this works for any size of model.

    Raises UserError where the recipe's `tune` has no meaning for its objective.
    """
    params, extra = jax.eval_shape(_initialize(recipe), jax.random.key(recipe.seed))
    check(recipe.tune, params, extra)
    params, extra = with_adapters(recipe.tune, params, extra, recipe.seed, abstract=True)
    opt = jax.eval_shape(_optimizer_state(recipe), params)
    step: Any = jax.ShapeDtypeStruct((), jnp.int32)
    state = TrainState(step, params, extra, opt)
    placed = meshes.shardings(state, mesh, recipe.rules)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, placed)


def _initialize(recipe: Recipe) -> Callable[[jax.Array], tuple[Params, Extra]]:
    one = {k: jnp.zeros(s.shape, s.dtype) for k, s in recipe.objective.batch_spec(1).items()}
    return lambda rng: recipe.objective.init(rng, one)


def _optimizer_state(recipe: Recipe) -> Callable[[Params], Any]:
    return lambda params: recipe.optimizer.init(split(recipe.tune, params)[0])


def fresh(recipe: Recipe, mesh: Mesh, pretrained: bool = True) -> tuple[TrainState, None]:
    """The state of step 0 on its devices, with init_from applied if `pretrained`; and None, the start of the data."""
    abstract = abstract_state(recipe, mesh)
    placed = jax.tree.map(lambda x: x.sharding, abstract)
    before = jax.eval_shape(_initialize(recipe), jax.random.key(recipe.seed)) if recipe.tune.rank else ()
    first = meshes.shardings(before, mesh, recipe.rules, warn=False) if before else (placed.params, placed.extra)
    params, extra = jax.jit(_initialize(recipe), out_shardings=first)(jax.random.key(recipe.seed))
    params = _changed("params", recipe.init_from if pretrained else (), params, first[0])
    extra = _changed("extra", recipe.init_extra if pretrained else (), extra, first[1])
    if recipe.tune.rank:  # after init_from, which fills the model's own parameters
        add = functools.partial(with_adapters, recipe.tune, seed=recipe.seed)
        params, extra = jax.jit(add, out_shardings=(placed.params, placed.extra), donate_argnums=(0, 1))(params, extra)
    opt = jax.jit(_optimizer_state(recipe), out_shardings=placed.opt)(params)
    return TrainState(meshes.device_put(np.int32(0), placed.step), params, extra, opt), None


def _changed(what: str, changes: Sequence[Callable[[Any], Any]], fresh: Any, placed: Any) -> Any:
    """Apply init_from or init_extra to the initial tree, and check that shapes are unchanged."""
    if not changes:
        return fresh
    given = meshes.gather(fresh)
    for change in changes:
        changed = change(given)
        check_same("init_from", what, changed, given)
        given = changed
    return meshes.device_put(given, placed)
