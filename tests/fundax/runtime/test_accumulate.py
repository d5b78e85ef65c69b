import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_objective import Linear

from fundax.encoders.clip_text import TextTransformer
from fundax.encoders.vit import ViT
from fundax.losses.contrastive import sigmoid_contrastive, softmax_contrastive
from fundax.objectives.clip import CLIP
from fundax.runtime.accumulate import join, split, value_and_grad
from fundax.types import UserError

RNG, STEP = jax.random.key(0), jnp.int32(0)


def tiny(contrast=softmax_contrastive, bias=None):
    image = ViT(image_size=16, patch=8, width=32, depth=1, heads=2)
    text = TextTransformer(vocab=16, context=6, width=32, depth=1, heads=2)
    return CLIP(image, text, embed=8, contrast=contrast, init_logit_bias=bias)


def pairs(n):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (n, 16, 16, 3), dtype=np.uint8)
    return {"image": image, "text": rng.integers(1, 16, (n, 6), dtype=np.int32)}


@pytest.mark.parametrize(("contrast", "bias"), [(softmax_contrastive, None), (sigmoid_contrastive, -10.0)])
def test_two_passes_equal_the_full_batch_with_all_its_negatives(contrast, bias):
    objective, batch = tiny(contrast, bias), pairs(12)
    params, extra = jax.jit(objective.init)(RNG, batch)
    (loss, (_, metrics)), grads = jax.jit(value_and_grad(objective, 1))(params, extra, batch, RNG, STEP)
    (loss_3, (_, metrics_3)), grads_3 = jax.jit(value_and_grad(objective, 3))(params, extra, batch, RNG, STEP)
    np.testing.assert_allclose(loss_3, loss, rtol=1e-6)
    assert metrics_3.keys() == metrics.keys()
    for ours, full in zip(jax.tree.leaves(grads_3), jax.tree.leaves(grads), strict=True):
        np.testing.assert_allclose(ours, full, rtol=0, atol=1e-6 * max(1.0, float(np.abs(full).max())))


class Normalised:
    """Features that are normalised by the mean of their batch, as by a ResNet's batch statistics; `extra` keeps it."""

    def encode_next(self, params, extra, batch, rng):
        x = batch["image"] @ params["kernel"]
        mean = x.mean(axis=0)
        return {"a": jnp.tanh(x - mean[None]), "b": batch["text"] @ params["kernel"]}, {
            "mean": 0.9 * extra["mean"] + mean
        }

    def encode(self, params, extra, batch, rng, step):
        return self.encode_next(params, extra, batch, rng)[0]

    def compare(self, params, features, batch):
        loss = softmax_contrastive(features["a"], features["b"], params["scale"])
        return loss, {"loss": loss}


def test_batch_statistics_are_those_of_each_micro_batch_and_all_negatives_are_kept():
    keys = jax.random.split(RNG, 3)
    batch = {"image": jax.random.normal(keys[0], (12, 5)), "text": jax.random.normal(keys[1], (12, 5))}
    params, extra = {"kernel": jax.random.normal(keys[2], (5, 4)), "scale": jnp.float32(2.0)}, {"mean": jnp.zeros(4)}
    objective = Normalised()

    def by_parts(params):
        state, parts = extra, split(batch, 3)
        found = []
        for k in range(3):
            features, state = objective.encode_next(params, state, {n: v[k] for n, v in parts.items()}, RNG)
            found.append(features)
        return objective.compare(params, join(jax.tree.map(lambda *x: jnp.stack(x), *found)), batch)[0], state

    (loss, state), grads = jax.jit(jax.value_and_grad(by_parts, has_aux=True))(params)
    (ours, (extra_3, _)), grads_3 = jax.jit(value_and_grad(objective, 3))(params, extra, batch, RNG, STEP)
    np.testing.assert_allclose(ours, loss, rtol=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), (grads_3, extra_3), (grads, state)
    )


def test_a_mean_of_micro_batches_would_be_another_loss():
    objective, batch = tiny(), pairs(12)
    params, extra = jax.jit(objective.init)(RNG, batch)
    loss = jax.jit(objective.loss)
    parts = [loss(params, extra, {k: v[i::3] for k, v in batch.items()}, RNG, STEP)[0] for i in range(3)]
    assert abs(float(np.mean(parts)) - float(loss(params, extra, batch, RNG, STEP)[0])) > 0.1


def test_any_other_loss_is_the_mean_and_extra_passes_through_every_part():
    objective = Linear(drop=0.0)
    rng = np.random.default_rng(0)
    batch = {"image": rng.normal(size=(8, 4)).astype("f4"), "value": rng.normal(size=8).astype("f4")}
    params, extra = jax.jit(objective.init)(RNG, batch)
    (loss, (_, _)), grads = jax.jit(value_and_grad(objective))(params, extra, batch, RNG, STEP)
    (loss_4, (extra_4, _)), grads_4 = jax.jit(value_and_grad(objective, 4))(params, extra, batch, RNG, STEP)
    np.testing.assert_allclose(loss_4, loss, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), grads_4, grads)
    assert float(extra_4["seen"]) == 8


def test_split_deals_rows_in_turn_and_join_puts_them_back():
    rows = {"image": jnp.arange(6)}
    np.testing.assert_array_equal(split(rows, 2)["image"], [[0, 2, 4], [1, 3, 5]])
    np.testing.assert_array_equal(join(split(rows, 3))["image"], np.arange(6))
    with pytest.raises(UserError, match="a batch of 6 does not divide into 4 micro-batches"):
        split(rows, 4)
