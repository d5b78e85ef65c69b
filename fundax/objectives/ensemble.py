"""Several trained models of one kind, such as those of cross-validation, that answer together by their mean."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fundax.encoders import unetr
from fundax.encoders.backbone import MEMBERS, first_member
from fundax.losses.dense import probabilities, spatial_log_softmax
from fundax.objectives.dense import Landmark, Segment, located
from fundax.params import flatten
from fundax.types import Batch, Extra, Metrics, Params, UserError

NOT_TRAINED = "an ensemble is not trained; train its members"


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
        shared, state = _once(params), _once(extra)
        if self.shared and "feature" not in batch:
            out = self.model.forward(*first_member(params, extra), batch)
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
        raise UserError(NOT_TRAINED)


@dataclass(frozen=True)
class _Members:
    """What ensembles of models of pixels have beside the fields of a member."""

    count: int = 1
    shared: bool = False

    def init(self, rng: jax.Array, batch: Batch) -> tuple[Params, Extra]:
        """Initial parameters and extra state of all members."""
        one = _alone(self)
        return stacked([one.init(key, batch) for key in jax.random.split(rng, self.count)], self.shared)

    def loss(
        self, params: Params, extra: Extra, batch: Batch, rng: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, tuple[Extra, Metrics]]:
        """Raises UserError, because its members are trained by themselves."""
        raise UserError(NOT_TRAINED)


@dataclass(frozen=True)
class SegmentEnsemble(_Members, Segment):
    """The mean of the probabilities of `count` segmentation models of one kind; see Ensemble."""

    def forward(self, params: Params, extra: Extra, batch: Batch) -> dict[str, jax.Array]:
        """probability f32 [B h w K], the mean of those of the members, and logits that give it."""
        turn = functools.partial(probabilities, exclusive=self.exclusive)
        p = _mean_over_members(self, params, extra, batch["image"], turn)
        return {"probability": p, "logits": jnp.log(p + 1e-12) - (0 if self.exclusive else jnp.log1p(1e-12 - p))}


@dataclass(frozen=True)
class LandmarkEnsemble(_Members, Landmark):
    """The mean of the heat maps of `count` landmark detectors of one kind; see Ensemble."""

    def forward(self, params: Params, extra: Extra, batch: Batch) -> dict[str, jax.Array]:
        """What Landmark gives, of the mean of the members' heat maps."""
        maps = _mean_over_members(self, params, extra, batch["image"], _heat)
        return located(jnp.log(maps + 1e-12))


def _heat(logits: jax.Array) -> jax.Array:
    return jnp.exp(spatial_log_softmax(logits))


def _alone(model: Any) -> Any:
    """The objective of one member."""
    if isinstance(model, Ensemble):
        return model.model
    kind = Segment if isinstance(model, Segment) else Landmark
    return kind(**{field.name: getattr(model, field.name) for field in fields(kind)})


def has_own_encoders(model: Any) -> bool:
    """Whether a model is an ensemble whose members have encoders of their own."""
    return isinstance(model, Ensemble | _Members) and not model.shared


def member(model: Any, params: Params, extra: Extra) -> tuple[Any, Params, Extra]:
    """The first model of an ensemble whose members have encoders of their own; any other model is returned as it is."""
    if not has_own_encoders(model):
        return model, params, extra
    return _alone(model), *first_member(params, extra)


def ensemble(model: Any, count: int, shared: bool) -> Any:
    """The ensemble of `count` models of one objective."""
    for kind, several in ((Segment, SegmentEnsemble), (Landmark, LandmarkEnsemble)):
        if isinstance(model, kind):
            own = {field.name: getattr(model, field.name) for field in fields(model)}
            return several(**own, count=count, shared=shared)
    return Ensemble(model, count, shared)


def _mean_over_members(
    model: Any, params: Params, extra: Extra, image: Any,
    turn: Callable[[jax.Array], jax.Array],
) -> jax.Array:  # fmt: skip
    """The mean of turn(logits) over the members, f32 [B h w K]. A shared encoder is run once."""
    once, state = _once(params), _once(extra)
    read = unetr.encoded(model, once, state, image) if model.shared else None

    def member(trees: tuple[Params, Extra]) -> jax.Array:
        own, stats = {**once, **trees[0]}, {**state, **trees[1]}
        return turn(unetr.decoded(model, own, stats, *(read or unetr.encoded(model, own, stats, image))))

    trees = (params[MEMBERS], extra.get(MEMBERS, {}))
    shape = jax.eval_shape(member, jax.tree.map(lambda leaf: leaf[0], trees))
    start = jnp.zeros(shape.shape, shape.dtype)
    return jax.lax.scan(lambda total, one: (total + member(one), None), start, trees)[0] / model.count


def _once(tree: Any) -> dict[str, Any]:
    """What all members have in common."""
    return {name: part for name, part in tree.items() if name != MEMBERS}


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
