"""Rows of one patient and rows with equal texts are no negatives: dense, in the ring and on every mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fundax.losses import contrastive
from fundax.losses.contrastive import accuracy, contrast
from fundax.losses.relations import agreeing_pairs, equal_rows, no_negatives, relations
from fundax.runtime.mesh import make_mesh

B, E = 16, 8
PATIENT = np.arange(B) // 2  # rows 2k and 2k + 1 are of one patient


def unit(seed):
    x = np.random.default_rng(seed).normal(size=(B, E))
    return jnp.asarray(x / np.linalg.norm(x, axis=1, keepdims=True), jnp.float32)


def test_equal_rows_and_their_number():
    rows = jnp.array([[3, 1, 0], [1, 3, 0], [3, 1, 0], [0, 0, 0], [1, 3, 0], [3, 1, 0]])
    found = np.asarray(equal_rows(rows))
    np.testing.assert_array_equal(found[:, None] == found, (rows[:, None] == rows[None]).all(-1))
    assert float(agreeing_pairs(equal_rows(rows))) == 3 * 2 + 2
    many = np.random.default_rng(0).integers(0, 9, (400, 4))
    found = np.asarray(equal_rows(jnp.asarray(many)))
    np.testing.assert_array_equal(found[:, None] == found, (many[:, None] == many[None]).all(-1))


def test_what_is_hidden():
    text = jnp.array([[1], [2], [1], [3]])
    patient = jnp.array([7, 7, -1, -1])  # two rows of one patient, two of unknown ones
    masked = relations("mask", text=text, patient=patient)
    expected = np.zeros((4, 4), bool)
    for i, j in ((0, 1), (0, 2)):
        expected[i, j] = expected[j, i] = True
    np.testing.assert_array_equal(no_negatives(masked.group, masked.related), expected)
    assert (float(masked.counts["same_text"]), float(masked.counts["same_patient"])) == (2, 2)
    shared = relations("share", text=text, patient=patient)
    expected[0, 2] = expected[2, 0] = False  # now positives
    np.testing.assert_array_equal(no_negatives(shared.group, shared.related), expected)
    absent = relations("mask", text=text, mask=jnp.array([True, True, False, True]))
    assert not np.asarray(no_negatives(absent.group, absent.related)).any()
    assert relations("negatives", text=text, patient=patient) == (None, (), {})


def test_softmax_by_hand():
    """Three orthogonal pairs at scale ln 3, two of one patient: their rows have one negative, the third has two."""
    eye = jnp.eye(3)
    loss = contrast(contrastive.softmax_contrastive, eye, eye, (jnp.log(3.0),), related=(jnp.array([0, 0, 1]),))
    assert float(loss) == pytest.approx((2 * np.log(4 / 3) + np.log(5 / 3)) / 3, rel=1e-6)


MESHES = [(1, 1), (8, 1), (4, 2)]


@pytest.mark.parametrize("negatives", ["plain", "ring"])
@pytest.mark.parametrize("shape", MESHES)
def test_no_pair_of_one_patient_is_a_negative(shape, negatives):
    """The features of the other row of a patient have no gradient from one row: its probability is not in the sum."""
    image, text, patient = unit(0), unit(1), jnp.asarray(PATIENT, jnp.int32)

    def of_row_0(image, text, related):  # the loss in which row 0 is the only image
        there = jnp.arange(B) < 2
        return contrast(
            contrastive.softmax_contrastive, image, text, (jnp.float32(5),),
            mask=there, related=related, negatives=negatives,
        )  # fmt: skip

    def whole(image, text, related, loss):
        rows = relations("mask", patient=related)
        return contrast(loss, image, text, (jnp.float32(5),), related=rows.related, negatives=negatives)

    with jax.set_mesh(make_mesh(shape)):
        # two rows of one patient and nobody else: nothing to tell apart, so the loss is 0 but for rounding
        alone, pulls = jax.jit(jax.value_and_grad(of_row_0, (0, 1)))(image, text, (patient,))
        assert abs(float(alone)) < 1e-6 and all(np.abs(pull).max() < 1e-6 for pull in pulls)
        assert float(of_row_0(image, text, ())) > 0.01
        for loss in (contrastive.softmax_contrastive, contrastive.sigmoid_contrastive):
            value, grads = jax.jit(jax.value_and_grad(lambda i, t, loss=loss: whole(i, t, patient, loss), (0, 1)))(
                image, text
            )
            expected, others = _by_numpy(loss)
            np.testing.assert_allclose(value, expected, rtol=1e-5)
            for ours, theirs in zip(grads, others, strict=True):
                np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())


def _by_numpy(loss):
    """The loss and its gradients with the pairs written out: every pair of one patient is left out of the sums."""
    negative = jnp.asarray((PATIENT[:, None] != PATIENT[None]) | np.eye(B, dtype=bool))

    def plain(image, text):
        logits = 5.0 * jnp.einsum("be,ce->bc", image, text, precision="highest")
        if loss is contrastive.sigmoid_contrastive:
            signs = 2 * jnp.eye(B) - 1
            return (jnp.log1p(jnp.exp(-signs * logits)) * negative).sum() / B
        sums = [jnp.log((jnp.exp(logits) * negative).sum(axis)) for axis in (0, 1)]
        return 0.5 * (sums[0] + sums[1] - 2 * jnp.diagonal(logits)).mean()

    return jax.jit(jax.value_and_grad(plain, (0, 1)))(unit(0), unit(1))


def test_accuracy_leaves_the_same_pairs_out():
    image, patient = unit(0), jnp.asarray(PATIENT, jnp.int32)
    text = image[jnp.arange(B) ^ 1]  # the nearest text of every image is that of the other row of its patient
    assert accuracy(image, text, negatives="plain") == (0, 0)
    plain = accuracy(image, text, related=(patient,), negatives="plain")
    with jax.set_mesh(make_mesh((4, 2))):
        ringed = jax.jit(lambda i, t: accuracy(i, t, related=(patient,), negatives="ring"))(image, text)
    np.testing.assert_allclose(ringed, plain)
