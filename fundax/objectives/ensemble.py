"""Several trained models of one kind, such as those of cross-validation, that answer together by their mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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

    Parameters are {"members": trees with a leading axis of `count`}, and beside it `image` if all have the same encoder,
    which is then run once.
    """

    model: Any
    count: int

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
        members = [self.model.init(key, batch) for key in jax.random.split(rng, self.count)]
        params, extra = (
            jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees) for trees in zip(*members, strict=True)
        )
        return {MEMBERS: params}, {MEMBERS: extra}

    def forward(self, params: Params, extra: Extra, batch: Batch) -> dict[str, jax.Array]:
        """probabilities f32 [B K], the mean of those of the members, and logits f32 [B K] that give them."""
        shared = {name: tree for name, tree in params.items() if name != MEMBERS}
        state = {name: tree for name, tree in extra.items() if name != MEMBERS}
        if shared and "feature" not in batch:
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


def stacked(states: Sequence[tuple[Params, Extra]]) -> tuple[Params, Extra]:
    """The parameters and the extra state of an Ensemble, from those of its members; equal encoders are kept once."""
    states = [(_predicting(params, extra), {k: v for k, v in extra.items() if k not in ("average", "steps")})
              for params, extra in states]  # fmt: skip
    same = all(_same(states[0][0]["image"], params["image"]) and _same(states[0][1].get("image"), extra.get("image"))
               for params, extra in states[1:])  # fmt: skip
    out = []
    for which in (0, 1):
        trees: list[Mapping[str, Any]] = [state[which] for state in states]
        shared = {"image": trees[0]["image"]} if same and "image" in trees[0] else {}
        rest = [{name: tree for name, tree in one.items() if name not in shared} for one in trees]
        out.append({**shared, MEMBERS: jax.tree.map(lambda *leaves: np.stack([np.asarray(x) for x in leaves]), *rest)})
    return out[0], out[1]


def _predicting(params: Params, extra: Extra) -> Params:
    """The parameters that a member predicts with: its moving average if it has one."""
    return extra.get("average", params)


def _same(one: Any, other: Any) -> bool:
    a, b = (flatten(tree or {}) for tree in (one, other))
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)
