"""The label-aware loss by hand, its three kinds of negatives, and the bounds of the log scale."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from fundax.losses.contrastive import Similarity, bounded, contrastive_accuracy, label_aware
from fundax.optim import MAX_LOG_SCALE
from fundax.runtime.mesh import make_mesh
from fundax.types import UserError


def features(rows=8, width=4):
    x = np.random.default_rng(0).normal(size=(2, rows, width)).astype(np.float32)
    return tuple(jnp.asarray(x / np.linalg.norm(x, axis=-1, keepdims=True)))


def test_two_of_one_category_by_hand():
    # logits 0 everywhere: every softmax is 1/2, whatever the targets
    eye = jnp.eye(2)
    assert label_aware(eye, jnp.zeros((2, 2)), jnp.float32(1), jnp.array([3, 3])) == pytest.approx(np.log(2))
    # logits [[1, 0], [0, 1]] and both texts right for both images: mean of -log p(1) and -log p(0)
    p = np.exp(1) / (1 + np.exp(1))
    by_hand = -(np.log(p) + np.log(1 - p)) / 2
    assert label_aware(eye, eye, jnp.float32(1), jnp.array([3, 3])) == pytest.approx(by_hand, rel=1e-6)
    assert label_aware(eye, eye, jnp.float32(1), jnp.array([3, 4])) == pytest.approx(-np.log(p), rel=1e-6)


def test_ring_and_mask_give_the_loss_of_what_is_there():
    image, text = features()
    category, mask = jnp.array([0, 1, 0, 2, 1, 1, 3, 4]), jnp.arange(8) < 6
    rest = label_aware(image[:6], text[:6], jnp.float32(9), category[:6])
    for negatives in ("global", "ring"):
        masked = label_aware(image, text, jnp.float32(9), category, mask=mask, negatives=negatives)
        np.testing.assert_allclose(masked, rest, rtol=1e-6)


def test_local_negatives_are_the_mean_over_devices():
    image, text = features()
    category = jnp.array([0, 1, 0, 2, 1, 1, 3, 4])
    halves = [label_aware(image[i : i + 4], text[i : i + 4], jnp.float32(9), category[i : i + 4]) for i in (0, 4)]

    @jax.jit
    def loss(image, text, category):
        return label_aware(image, text, jnp.float32(9), category, negatives="local")

    np.testing.assert_allclose(
        loss(image, text, category), label_aware(image, text, jnp.float32(9), category), rtol=1e-6
    )
    with jax.set_mesh(make_mesh((2, 1))):
        data = jax.NamedSharding(jax.sharding.get_mesh(), P("data"))
        spread = loss(*(jax.device_put(x, data) for x in (image, text, category)))
    np.testing.assert_allclose(spread, np.mean(halves), rtol=1e-6)


def test_a_table_of_similarity():
    same = Similarity(((1.0, 0.0), (0.0, 1.0)))
    image, text = features(4)
    category = jnp.array([0, 1, 0, 1])
    equal = label_aware(image, text, jnp.float32(5), category)
    np.testing.assert_allclose(label_aware(image, text, jnp.float32(5), category, targets=same), equal, rtol=1e-6)
    assert Similarity(((1.0, 0.5), (0.5, 1.0)))(category)[0].tolist() == [1.0, 0.5, 1.0, 0.5]
    with pytest.raises(UserError, match="symmetric"):
        Similarity(((1.0, 0.5), (0.4, 1.0)))
    with pytest.raises(UserError, match="'plain'"):
        label_aware(image, text, jnp.float32(5), category, targets=same, negatives="ring")
    with pytest.raises(UserError, match="'none'"):
        label_aware(image, text, jnp.float32(5), category, negatives="none")


def test_bounds_hold_the_value_and_let_the_gradient_pass():
    for given, kept in ((6.0, MAX_LOG_SCALE), (-1.0, 0.0), (2.0, 2.0)):
        value, slope = jax.value_and_grad(bounded)(given)
        assert (value, slope) == (pytest.approx(kept), 1.0)


def test_a_text_of_the_same_category_is_right():
    image, text = jnp.eye(3), jnp.eye(3)[jnp.array([2, 1, 0])]  # image 0 is nearest to text 2
    assert contrastive_accuracy(image, text, group=jnp.array([5, 1, 5])) == (1.0, 1.0)
    assert contrastive_accuracy(image, text, group=jnp.array([5, 1, 6]))[0] == pytest.approx(1 / 3)
    mask = jnp.array([True, True, False])
    assert contrastive_accuracy(image, text, mask, jnp.array([5, 1, 6]))[0] >= 0.5
