"""CLIP-Adapter (arXiv:2110.04544) and Tip-Adapter(-F) (arXiv:2207.09519): few-shot adapters of an image-text model.

They are trained on features computed once. The defaults and the two quirks are those of github.com/jusiro/FLAIR
(Apache-2.0); golden tests compare with it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fundax import optim
from fundax.encoders.layers import l2_normalize, uniform
from fundax.types import Array, Batch, Extra, Metrics, Params

# Unit class features `text` f32 [K E] and `log_scale`: what an adapter takes from the pretrained model.
Heads = Mapping[str, Array]


def heads(text: Array, log_scale: float) -> Extra:
    """The `extra` state of an adapter, from unit class features [K E] and the log of the logit scale."""
    return {"text": jnp.asarray(text, jnp.float32), "log_scale": jnp.asarray(log_scale, jnp.float32)}


@dataclass(frozen=True)
class ClipAdapter:
    """Adapted features x' = normalise(ratio * relu(W2 relu(W1 x)) + (1 - ratio) * x), compared with class features.

    Batches have feature f32 [B E] of unit length and label i32 [B]. `extra` comes from `heads`; init fills it with zeros.
    """

    width: int
    classes: int
    ratio: float = 0.2
    reduction: int = 4

    def batch_spec(self, batch: int) -> dict[str, jax.ShapeDtypeStruct]:
        """feature f32 [B E], label i32 [B]."""
        feature = jax.ShapeDtypeStruct((batch, self.width), jnp.float32)
        return {"feature": feature, "label": jax.ShapeDtypeStruct((batch,), jnp.int32)}

    def init(self, rng: jax.Array, batch: Batch) -> tuple[Params, Extra]:
        """Two kernels without bias, with PyTorch's initial values."""
        first, second = jax.random.split(rng)
        narrow = self.width // self.reduction
        params = {
            "fc1": {"kernel": uniform(self.width**-0.5)(first, (self.width, narrow))},
            "fc2": {"kernel": uniform(narrow**-0.5)(second, (narrow, self.width))},
        }
        return params, heads(jnp.zeros((self.classes, self.width)), 0.0)

    def forward(self, params: Params, extra: Extra, batch: Batch) -> dict[str, jax.Array]:
        """image_features, adapted and of unit length, f32 [B E], and logits f32 [B K]."""
        x = jnp.asarray(batch["feature"])
        y = jax.nn.relu(jax.nn.relu(x @ params["fc1"]["kernel"]) @ params["fc2"]["kernel"])
        x = l2_normalize(self.ratio * y + (1 - self.ratio) * x)
        return {"image_features": x, "logits": jnp.exp(extra["log_scale"]) * x @ extra["text"].T}

    def loss(
        self, params: Params, extra: Extra, batch: Batch, rng: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, tuple[Extra, Metrics]]:
        """Mean cross-entropy of the logits."""
        return _cross_entropy(self.forward(params, extra, batch)["logits"], batch["label"], extra)


@dataclass(frozen=True)
class Adapted:
    """A ClipAdapter after a frozen image-text model: trained on features computed once, applied to images.

    Batches have feature f32 [B E] or image u8 [B h w 3], and label i32 [B]. Parameters are `model`, `adapter` and
    `heads`. The loss trains only the adapter; set the heads with `with_heads`.
    """

    model: Any
    adapter: ClipAdapter

    @property
    def image(self) -> Any:
        """The image encoder."""
        return self.model.image

    def batch_spec(self, batch: int) -> dict[str, jax.ShapeDtypeStruct]:
        """feature f32 [B E], label i32 [B]."""
        return self.adapter.batch_spec(batch)

    def init(self, rng: jax.Array, batch: Batch) -> tuple[Params, Extra]:
        """Initial parameters; `extra` is that of the model."""
        first, second = jax.random.split(rng)
        one = {key: jnp.zeros(s.shape, s.dtype) for key, s in self.model.batch_spec(1).items()}
        model, extra = self.model.init(first, one)
        adapter, empty = self.adapter.init(second, batch)
        return {"model": model, "adapter": adapter, "heads": empty}, {"model": extra}

    def forward(self, params: Params, extra: Extra, batch: Batch) -> dict[str, jax.Array]:
        """feature f32 [B E] of the model, image_features (adapted), logits and probabilities f32 [B K]."""
        if "feature" in batch:
            feature = jnp.asarray(batch["feature"])
        else:
            model = self.model.forward(params["model"], extra["model"], {"image": batch["image"]})
            feature = model["image_features"]
        out = self.adapter.forward(params["adapter"], params["heads"], {"feature": feature})
        return {"feature": feature, "probabilities": jax.nn.softmax(out["logits"]), **out}

    def loss(
        self, params: Params, extra: Extra, batch: Batch, rng: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, tuple[Extra, Metrics]]:
        """Mean cross-entropy of the logits."""
        fixed = jax.lax.stop_gradient(params["heads"])
        loss, (_, metrics) = self.adapter.loss(params["adapter"], fixed, batch, rng, step)
        return loss, (extra, metrics)

    def with_heads(self, params: Params, extra: Extra, class_features: Callable[..., Array]) -> Params:
        """Set the heads: params with those of the classes that class_features(encode) -> unit f32 [K E] describes."""
        outputs: dict[str, Any] = {}

        def encode(batch: Batch) -> dict[str, np.ndarray]:
            out = jax.device_get(_run(self.model, params["model"], extra["model"], dict(batch)))
            outputs.update(out)
            return out

        text = class_features(encode)
        return {**params, "heads": heads(text, float(np.log(outputs["logit_scale"])))}


@dataclass(frozen=True)
class TipAdapter:
    """Labelled images as a cache: logits = scale * x T' + alpha * exp(-beta (1 - x k')) one-hot(label).

    The parameters are the keys k f32 [N E], features of the labelled images. Tip-Adapter uses them unchanged and
    Tip-Adapter-F trains them. The values (one-hot labels) f32 [N K], text features T and log_scale are in `extra`.

    fixed_scale: logit scale of predictions. None: exp(log_scale). FLAIR's code predicts with 100.
    flair_training: train as FLAIR's code does, which differs from its prediction: with scale exp(log_scale), and weight
        exp(log_scale) / N of the cache instead of alpha.
    """

    width: int
    classes: int
    shots: int  # N, the number of labelled images
    alpha: float = 1.0
    beta: float = 5.0
    fixed_scale: float | None = None
    flair_training: bool = False

    def batch_spec(self, batch: int) -> dict[str, jax.ShapeDtypeStruct]:
        """feature f32 [B E], label i32 [B]."""
        return ClipAdapter(self.width, self.classes).batch_spec(batch)

    def init(self, rng: jax.Array, batch: Batch) -> tuple[Params, Extra]:
        """Keys and values of zeros; `remember` gives the real ones."""
        return remember(jnp.zeros((self.shots, self.width)), np.zeros(self.shots, np.int32), self.classes)

    def forward(self, params: Params, extra: Extra, batch: Batch) -> dict[str, jax.Array]:
        """logits f32 [B K]."""
        scale = jnp.exp(extra["log_scale"]) if self.fixed_scale is None else self.fixed_scale
        return {"logits": self._logits(params, extra, jnp.asarray(batch["feature"]), scale, self.alpha)}

    def loss(
        self, params: Params, extra: Extra, batch: Batch, rng: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, tuple[Extra, Metrics]]:
        """Mean cross-entropy. If the batch has `row` i32 [B], its features are those rows of the keys: see `fit`."""
        x = jax.lax.stop_gradient(params["keys"])[batch["row"]] if "row" in batch else batch["feature"]
        scale = jnp.exp(extra["log_scale"])
        weight = scale / self.shots if self.flair_training else self.alpha
        if not self.flair_training and self.fixed_scale is not None:
            scale = self.fixed_scale
        return _cross_entropy(self._logits(params, extra, x, scale, weight), batch["label"], extra)

    def _logits(
        self, params: Params, extra: Extra, x: jax.Array, scale: float | jax.Array, weight: float | jax.Array
    ) -> jax.Array:
        near = jnp.exp(-self.beta * (1 - x @ params["keys"].T))  # [B N]
        return scale * x @ extra["text"].T + weight * near @ extra["values"]


def remember(features: Array, labels: Array, classes: int, heads_of: Heads | None = None) -> tuple[Params, Extra]:
    """Parameters and extra state of a TipAdapter: the keys are features [N E], the values one-hot labels [N K]."""
    features = jnp.asarray(features, jnp.float32)
    values = jax.nn.one_hot(jnp.asarray(labels), classes, dtype=jnp.float32)
    empty = heads(jnp.zeros((classes, features.shape[1])), 0.0)
    return {"keys": features}, dict(heads_of or empty) | {"values": values}


def fit(
    objective: ClipAdapter | TipAdapter,
    params: Params,
    extra: Extra,
    features: Array,
    labels: Array,
    order: Array,
    *,
    rates: Array,
    weight_decay: float = 0.01,
    eps: float = 1e-4,
    storage_quirk: bool = False,
) -> Params:
    """Train an adapter with AdamW, in one compiled loop; returns its parameters.

    Args:
        objective, params, extra: the adapter and its state.
        features, labels: f32 [N E] and i32 [N].
        order: rows of each batch, i32 [steps B].
        rates: learning rates f32 [steps].
        weight_decay, eps: arguments of AdamW; every parameter decays.
        storage_quirk: reproduce a quirk of Tip-Adapter-F in FLAIR's code: the keys share memory with the training
            features, so the "frozen" features change with the keys.
    """
    arrays = {"feature": jnp.asarray(features, jnp.float32), "label": jnp.asarray(labels, jnp.int32)}
    settings = (objective, weight_decay, eps, storage_quirk)
    return _fit(settings, params, extra, arrays, jnp.asarray(order, jnp.int32), jnp.asarray(rates, jnp.float32))


@functools.partial(jax.jit, static_argnums=0)
def _run(model: Any, params: Params, extra: Extra, batch: Batch) -> dict[str, jax.Array]:
    return model.forward(params, extra, batch)


@functools.partial(jax.jit, static_argnums=0)
def _fit(
    settings: tuple[Any, ...], params: Params, extra: Extra, arrays: Batch, order: jax.Array, rates: jax.Array
) -> Params:
    objective, weight_decay, eps, storage_quirk = settings
    optimizer = optim.adamw(lambda step: rates[step], eps=eps, weight_decay=weight_decay, decay=lambda path, leaf: True)
    rng = jax.random.key(0)  # unused: neither loss is random

    def step(carry: tuple[Any, Any], rows: jax.Array) -> tuple[tuple[Any, Any], None]:
        params, state = carry
        batch = {name: array[rows] for name, array in arrays.items()} | ({"row": rows} if storage_quirk else {})
        grads = jax.grad(lambda p: objective.loss(p, extra, batch, rng, jnp.zeros((), jnp.int32))[0])(params)
        updates, state = optimizer.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (params, optimizer.init(params)), order)[0][0]


def _cross_entropy(logits: jax.Array, label: Array, extra: Extra) -> tuple[jax.Array, tuple[Extra, Metrics]]:
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.asarray(label)).mean()
    accuracy = (logits.argmax(-1) == jnp.asarray(label)).mean()
    return loss, (extra, {"loss": loss, "accuracy": accuracy})
