"""The smallest objective and data there are: what the trainer is tested with, apart from any model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fundax.optim import adamw, constant
from fundax.recipe import Intervals, Recipe

WIDTH = 4


@dataclass(frozen=True)
class Linear:
    """Least squares with dropout, so that a wrong random stream shows; `extra` counts examples."""

    drop: float = 0.25

    def batch_spec(self, batch: int) -> dict[str, jax.ShapeDtypeStruct]:
        return {
            "image": jax.ShapeDtypeStruct((batch, WIDTH), jnp.float32),
            "value": jax.ShapeDtypeStruct((batch,), jnp.float32),
        }

    def init(self, rng: jax.Array, batch: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        kernel = jax.random.normal(rng, (WIDTH, 1))
        return {"head": {"kernel": kernel, "bias": jnp.zeros((1,))}}, {"seen": jnp.zeros(())}

    def forward(self, params: Any, extra: Any, batch: Any) -> dict[str, jax.Array]:
        return {"value": (batch["image"] @ params["head"]["kernel"] + params["head"]["bias"][None])[:, 0]}

    def loss(self, params: Any, extra: Any, batch: Any, rng: jax.Array, step: jax.Array) -> Any:
        keep = jax.random.bernoulli(rng, 1 - self.drop, batch["image"].shape)
        out = self.forward(params, extra, {"image": batch["image"] * keep})["value"]
        loss = jnp.mean((out - batch["value"]) ** 2)
        return loss, ({"seen": extra["seen"] + out.shape[0]}, {"error": jnp.sqrt(loss)})


@dataclass
class Rows:
    """Batch g is a function of g alone; with `poison` that batch holds a NaN, with `ends` the stream stops there."""

    batch: int
    shard: int
    shards: int
    poison: int | None = None
    ends: int | None = None
    step: int = 0

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        if self.step == self.ends:
            raise StopIteration
        rng = np.random.default_rng(self.step)
        image = rng.normal(size=(self.batch, WIDTH)).astype(np.float32)
        value = image @ np.arange(1, WIDTH + 1, dtype=np.float32)
        if self.step == self.poison:
            image[0, 0] = np.nan
        self.step += 1
        mine = slice(self.shard * self.batch // self.shards, (self.shard + 1) * self.batch // self.shards)
        return {"image": image[mine], "value": value[mine], "index": np.arange(self.batch)[mine]}

    def get_state(self) -> dict[str, Any]:
        return {"step": self.step}

    def set_state(self, state: dict[str, Any]) -> None:
        self.step = state["step"]


def mean_error(forward: Any, params: Any, extra: Any) -> dict[str, Any]:
    """An eval: mean absolute error and the outputs."""
    batch = next(Rows(6, 0, 1))
    out = forward(params, extra, batch)["value"]
    return {"error": float(np.abs(out - batch["value"]).mean()), "out": out}


def recipe(*, steps: int = 6, rate: float = 0.1, **fields: Any) -> Recipe:
    rows = {key: fields.pop(key) for key in ("poison", "ends") if key in fields}
    given: dict[str, Any] = {
        "objective": Linear(),
        "train": lambda shard, shards: Rows(8, shard, shards, **rows),
        "optimizer": optax.chain(optax.clip_by_global_norm(10.0), adamw(constant(rate))),
        "steps": steps,
        "batch": 8,
        "evals": {"held_out": mean_error},
        "intervals": Intervals(log=2, save=2, eval=3),
        "mesh": (1, 1),
    }
    return Recipe(**(given | fields))
