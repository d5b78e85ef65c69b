"""Which form is computed, and that every form gives the same loss, gradients and accuracy."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fundax.encoders.bert import BERT
from fundax.encoders.clip_text import TextTransformer
from fundax.encoders.vit import ViT
from fundax.losses import contrastive, ring
from fundax.losses import contrastive as forms
from fundax.losses.contrastive import accuracy, as_ring, contrast, contrast_pairs
from fundax.objectives.clip import CLIP
from fundax.objectives.flair import FLAIR
from fundax.objectives.keepfit import KeepFIT
from fundax.objectives.ret_clip import LEVELS, RetCLIP
from fundax.runtime.mesh import make_mesh
from fundax.types import UserError

B, E = 16, 8
TOWER = ViT(image_size=16, patch=8, width=32, depth=1, heads=2)
WORDS = TextTransformer(vocab=64, context=6, width=32, depth=1, heads=2)


def l2_normalize(*shape, seed=0):
    x = np.random.default_rng(seed).normal(size=shape)
    return jnp.asarray(x / np.linalg.norm(x, axis=-1, keepdims=True), jnp.float32)


def test_the_form_by_batch_and_by_name():
    limit = forms.RING_ABOVE
    assert not as_ring(limit, "global") and as_ring(limit + 1, "global")
    assert as_ring(2, "ring") and not as_ring(10 * limit, "plain") and not as_ring(10 * limit, "local")


@pytest.mark.parametrize("loss", [contrastive.softmax_contrastive, contrastive.sigmoid_contrastive])
def test_above_the_limit_the_ring_is_taken_and_gives_the_same(loss, monkeypatch):
    image, text, scale = l2_normalize(B, E), l2_normalize(B, E, seed=1), jnp.float32(20)
    group = jnp.arange(B, dtype=jnp.int32) // 3

    def both():  # a new function: the limit is read while tracing
        return jax.jit(jax.value_and_grad(lambda i, t: contrast(loss, i, t, (scale,), group=group), (0, 1)))

    plain, gradients = both()(image, text)
    assert f"{B},{B}" in str(jax.make_jaxpr(both())(image, text))
    monkeypatch.setattr(forms, "RING_ABOVE", B - 1)
    with jax.set_mesh(make_mesh((2, 2, 2))):
        assert f"{B},{B}" not in str(jax.make_jaxpr(both())(image, text))
        ringed, others = both()(image, text)
    np.testing.assert_allclose(ringed, plain, rtol=1e-6)
    for ours, theirs in zip(others, gradients, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5 * float(jnp.abs(theirs).max()))


def test_a_loss_of_ones_own_has_no_ring():
    own = lambda image, text, scale, **_: scale * (image * text).sum()  # noqa: E731
    with pytest.raises(UserError, match="'plain'"):
        contrast(own, l2_normalize(B, E), l2_normalize(B, E), (jnp.float32(1),), negatives="ring")
    with pytest.raises(UserError, match="expected one of global, plain, ring"):
        contrast(own, l2_normalize(B, E), l2_normalize(B, E), (jnp.float32(1),), negatives="rign")


def test_accuracy_by_hand_and_against_the_plain_one():
    image, text = jnp.eye(3), jnp.eye(3)[jnp.array([2, 1, 0])]  # image 0 is nearest to text 2
    assert ring.accuracy(image, text) == (pytest.approx(1 / 3), pytest.approx(1 / 3))
    assert ring.accuracy(image, text, group=jnp.array([5, 1, 5])) == (1.0, 1.0)
    image, mask = l2_normalize(B, E), jnp.arange(B) < 13
    text = image + 0.8 * l2_normalize(B, E, seed=1)
    group = jnp.arange(B, dtype=jnp.int32) // 2
    for options in ({}, {"group": group}):
        plain = accuracy(image, text, mask, negatives="plain", **options)
        with jax.set_mesh(make_mesh((2, 2, 2))):
            ringed = jax.jit(lambda i, t, o=options: accuracy(i, t, mask, negatives="ring", **o))(image, text)
        np.testing.assert_allclose(ringed, plain, rtol=1e-6)
        assert 0 < float(plain[0]) < 1


def test_three_pairs_in_one_ring():
    images, texts = [l2_normalize(B, E, seed=s) for s in range(3)], [l2_normalize(B, E, seed=s) for s in range(3, 6)]
    scales, masks = [jnp.float32(s) for s in (5, 10, 20)], [jnp.arange(B) < n for n in (16, 12, 9)]
    loss = contrastive.softmax_contrastive
    plain = contrast_pairs(loss, images, texts, scales, masks=masks, negatives="plain")
    with jax.set_mesh(make_mesh((2, 2, 1))):
        together = lambda i, t: contrast_pairs(loss, i, t, scales, masks=masks, negatives="ring")  # noqa: E731
        ringed = jax.jit(together)(images, texts)
        program = jax.jit(together).lower(images, texts).as_text()
    np.testing.assert_allclose(ringed, plain, rtol=1e-6)
    assert program.count("stablehlo.while") == 2  # one trip and its chunks of rows, for all three


def features(*names):
    return {name: l2_normalize(B, E, seed=i) for i, name in enumerate(names)}


def same_in_every_form(objective, params, batch, features):
    """The loss and every metric of compare(), plain and as a ring, for an objective with a `negatives` field."""
    forms = {}
    with jax.set_mesh(make_mesh((2, 2, 1))):
        for name in ("plain", "ring"):
            one = objective(name)
            forms[name] = jax.jit(lambda f, one=one: one.compare(params, f, batch))(features)
    assert forms["plain"][1].keys() == forms["ring"][1].keys()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-6), forms["plain"], forms["ring"])


def test_clip():
    same_in_every_form(
        lambda form: CLIP(TOWER, WORDS, embed=E, negatives=form),
        {"log_scale": jnp.log(10.0)},
        {"valid": jnp.arange(B) < 13},
        features("image_features", "text_features"),
    )


def test_ret_clip():
    bert = BERT(vocab=64, context=8, width=16, depth=1, heads=2)
    objective = RetCLIP(TOWER, bert, embed=E, context=4, repeats="share")
    names = [*(f"{s}_features" for s in ("image", "left", "right"))]
    names += [f"text_features{s}" for s in ("", "_left", "_right")]
    rng = np.random.default_rng(0)
    batch = {"left_present": jnp.arange(B) > 2, "right_present": jnp.arange(B) < 12}
    batch["text"] = jnp.asarray(rng.integers(0, 2, (B, 3)), jnp.int32)  # eight different reports
    params = {"log_scale": {level: jnp.log(5.0 + i) for i, level in enumerate(LEVELS)}}
    same_in_every_form(lambda form: replace(objective, negatives=form), params, batch, features(*names))


def test_flair_and_keepfit():
    def flair(form):
        return FLAIR(TOWER, None, embed=E, negatives=form)

    params = {"log_scale": jnp.log(10.0)}
    batch = {"category": jnp.arange(B, dtype=jnp.int32) // 3}
    named = features("image_features", "text_features", "elite/image_features", "elite/text_features")
    same_in_every_form(flair, params, batch, {k: v for k, v in named.items() if "/" not in k})
    same_in_every_form(lambda form: KeepFIT(flair(form), reference=None), params, batch, named)


@pytest.mark.parametrize("negatives", ["plain", "ring"])
@pytest.mark.parametrize("loss", [contrastive.softmax_contrastive, contrastive.sigmoid_contrastive])
def test_nan_in_a_row_that_does_not_count_is_not_seen(loss, negatives):
    image, text, mask = l2_normalize(B, E), l2_normalize(B, E, seed=1), jnp.arange(B) != 3

    def total(i, t):
        return contrast(loss, i, t, (jnp.float32(20),), mask=mask, negatives=negatives)

    both = jax.jit(jax.value_and_grad(total, (0, 1)))
    expected, gradients = both(image, text)
    found, others = both(image.at[3].set(jnp.nan), text.at[3].set(jnp.nan))
    assert found == expected and np.isfinite(expected)
    for ours, theirs in zip(others, gradients, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert all(np.isfinite(accuracy(image.at[3].set(jnp.nan), text, mask, negatives=negatives)))
