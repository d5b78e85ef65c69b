"""FLAIR's adapters: the same scores and trained weights from the same features, starts and orders."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fundax.evals import few_shot
from fundax.objectives.adapter import ClipAdapter, TipAdapter, fit, heads, remember
from fundax.optim import cosine

pytestmark = pytest.mark.vectors("flair")
EPOCHS = 40


@pytest.fixture(scope="module")
def original(golden):
    with np.load(golden / "flair" / "adapters.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def extra(original):
    return heads(original["text"], original["logit_scale"])


def shape(original):
    return original["X_train"].shape[1], len(original["text"]), len(original["X_train"])


def few(original, labels):
    return {"feature": original["X_train"], "linear": original["X_train"], "label": labels}


def test_zero_shot(original):
    ours = few_shot.zero_shot(
        {}, 0, original["text"], float(original["logit_scale"]), {"feature": original["X_test"]}, 0
    )
    np.testing.assert_allclose(ours, original["zeroshot_probs"], atol=1e-6)


@pytest.mark.parametrize("prefix", ["lp", "lpbin"])
def test_logistic_regression(original, prefix):
    """The original's solver stops early (tol 1e-4): the same stop gives its numbers, a tight one the tight ones."""
    labels = original["Y_train"] if prefix == "lp" else original["lpbin_Y_train"]
    classes, test = int(labels.max()) + 1, {"linear": original["X_test"]}
    ours = few_shot.linear(few(original, labels), classes, None, 0.0, test, 0)
    np.testing.assert_allclose(ours, original[f"{prefix}_probs"], atol=1e-4)
    exact = few(original, labels) | {"linear": original["X_train"].astype(np.float64)}
    test = {"linear": original["X_test"].astype(np.float64)}
    tight = few_shot.linear(exact, classes, None, 0.0, test, 0, tol=1e-12)
    logits = original["X_test"] @ original[f"{prefix}_coef_tight"].T + original[f"{prefix}_intercept_tight"]
    if prefix == "lpbin":
        logits = np.concatenate([np.zeros_like(logits), logits], axis=1)
    odds = np.exp(logits)
    np.testing.assert_allclose(tight, odds / odds.sum(1, keepdims=True), atol=1e-6)


def test_clip_adapter(original, extra):
    width, classes, count = shape(original)
    objective = ClipAdapter(width, classes, reduction=width // len(original["clip_w0_init"]))
    params = {"fc1": {"kernel": original["clip_w0_init"].T}, "fc2": {"kernel": original["clip_w2_init"].T}}
    test = {"feature": original["X_test"]}
    before = objective.forward(params, extra, test)["image_features"]
    np.testing.assert_allclose(before, original["clip_resid_before"], atol=1e-6)
    order = np.tile(original["clip_order"], EPOCHS)[:, None]
    rates = jax.vmap(cosine(1e-3, EPOCHS * count))(jnp.arange(EPOCHS * count))
    params = fit(objective, params, extra, original["X_train"], original["Y_train"], order, rates=rates)
    np.testing.assert_allclose(params["fc1"]["kernel"].T, original["clip_w0_final"], atol=5e-6)
    np.testing.assert_allclose(params["fc2"]["kernel"].T, original["clip_w2_final"], atol=5e-6)
    after = objective.forward(params, extra, test)
    np.testing.assert_allclose(after["image_features"], original["clip_resid_after"], atol=2e-6)
    np.testing.assert_allclose(jax.nn.softmax(after["logits"]), original["clip_probs"], atol=2e-6)


def test_tip_adapter(original, extra):
    width, classes, count = shape(original)
    objective = TipAdapter(width, classes, count, fixed_scale=100.0)
    params, extra = remember(original["X_train"], original["Y_train"], classes, extra)
    logits = objective.forward(params, extra, {"feature": original["X_test"]})["logits"]
    np.testing.assert_allclose(logits, original["tip_logits"], atol=1e-5)
    np.testing.assert_allclose(jax.nn.softmax(logits), original["tip_probs"], atol=2e-6)


def test_tip_adapter_f(original, extra):
    """With the original's shared memory its numbers; without, others: the quirk is an option, off by default."""
    width, classes, count = shape(original)
    objective = TipAdapter(width, classes, count, fixed_scale=100.0, flair_training=True)
    params, extra = remember(original["X_train"], original["Y_train"], classes, extra)
    order = np.tile(original["tipf_order"], EPOCHS)[:, None]
    data, rates = (original["X_train"], original["Y_train"], order), np.full(len(order), 1e-3)
    trained = fit(objective, params, extra, *data, rates=rates, storage_quirk=True)
    np.testing.assert_allclose(trained["keys"], original["tipf_keys_final"], atol=1e-5)
    logits = objective.forward(trained, extra, {"feature": original["X_test"]})["logits"]
    np.testing.assert_allclose(logits, original["tipf_logits"], atol=5e-5)
    np.testing.assert_allclose(jax.nn.softmax(logits), original["tipf_probs"], atol=1e-5)
    clean = fit(objective, params, extra, *data, rates=rates)
    assert np.abs(clean["keys"] - original["tipf_keys_final"]).max() > 1e-2
