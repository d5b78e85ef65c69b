"""Several trained models of one kind, such as those of cross-validation, that answer together by their mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fundax.params import flatten
from fundax.types import Batch, Extra, Metrics, Params, UserError

MEMBERS = "members"


@dataclass(frozen=True)
class Ensemble:
    """The mean of the probabilities of `count` models of the objective `model`. It predicts and is not trained.

    Parameters and extra state are {"members": trees with a leading axis of `count`}. If all members are `shared` heads of
    one encoder, it is stored once as `image` and is run once.
    """

    model: Any
    count: int
    shared: bool = False

    @property
    def tower(self) -> Any:
        """The backbone of every member."""
        return self.model.tower

    @property
    def head(self) -> Any:
        """The head of every member."""
        return self.model.head

    @property
    def image(self) -> Any:
        """The encoder of every member."""
        return self.model.image

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.model.classes

    def batch_spec(self, batch: int) -> dict[str, jax.ShapeDtypeStruct]:
        """That of a member."""
        return self.model.batch_spec(batch)

    def init(self, rng: jax.Array, batch: Batch) -> tuple[Params, Extra]:
        """Initial parameters and extra state of all members."""
        return stacked([self.model.init(key, batch) for key in jax.random.split(rng, self.count)], self.shared)

    def forward(self, params: Params, extra: Extra, batch: Batch) -> dict[str, jax.Array]:
        """probabilities f32 [B K], the mean of those of the members, and logits f32 [B K] that give them."""
        shared = {name: tree for name, tree in params.items() if name != MEMBERS}
        state = {name: tree for name, tree in extra.items() if name != MEMBERS}
        if self.shared and "feature" not in batch:
            first = [jax.tree.map(lambda leaf: leaf[0], tree) for tree in (params[MEMBERS], extra.get(MEMBERS, {}))]
            out = self.model.forward({**shared, **first[0]}, {**state, **first[1]}, batch)
            batch = {"feature": out["feature"]}

        def member(trees: tuple[Params, Extra]) -> jax.Array:
            return self.model.forward({**shared, **trees[0]}, {**state, **trees[1]}, batch)["probabilities"]

        p = jax.lax.map(member, (params[MEMBERS], extra.get(MEMBERS, {}))).mean(0)
        several = self.model.kind == "several" or p.shape[1] == 1
        return {"probabilities": p, "logits": jnp.log(p + 1e-12) - (jnp.log1p(1e-12 - p) if several else 0)}

    def loss(
        self, params: Params, extra: Extra, batch: Batch, rng: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, tuple[Extra, Metrics]]:
        """Raises UserError, because its members are trained by themselves."""
        raise UserError("an ensemble is not trained; train its members")


def shares_encoder(states: Sequence[tuple[Params, Extra]]) -> bool:
    """Whether all models, (params, extra) each, have the same encoder."""
    first = _predicting(*states[0])
    others = [_predicting(*state) for state in states[1:]]
    return all(_same(first[k].get("image"), other[k].get("image")) for other in others for k in (0, 1))


def stacked(states: Sequence[tuple[Params, Extra]], shared: bool) -> tuple[Params, Extra]:
    """The parameters and the extra state of an Ensemble from those of its members, with or without a shared encoder.

    Members predict with their moving averages if they have any.
    """
    out = []
    for trees in zip(*(_predicting(*state) for state in states), strict=True):
        once = {"image": trees[0]["image"]} if shared and "image" in trees[0] else {}
        rest = [{name: tree for name, tree in one.items() if name not in once} for one in trees]
        out.append({**once, MEMBERS: jax.tree.map(lambda *leaves: jnp.stack(leaves), *rest)})
    return out[0], out[1]


def _predicting(params: Params, extra: Extra) -> tuple[Params, Extra]:
    """The parameters that a member predicts with: its moving average if it has one."""
    left = {name: tree for name, tree in extra.items() if name not in ("average", "steps")}
    return extra.get("average", params), left


def _same(one: Any, other: Any) -> bool:
    a, b = (flatten(tree or {}) for tree in (one, other))
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)
