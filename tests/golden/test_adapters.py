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
def peer(golden):
    with np.load(golden / "flair" / "adapters.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def extra(peer):
    return heads(peer["text"], peer["logit_scale"])


def shape(peer):
    return peer["X_train"].shape[1], len(peer["text"]), len(peer["X_train"])


def few(peer, labels):
    return {"feature": peer["X_train"], "linear": peer["X_train"], "label": labels}


def test_zero_shot(peer):
    ours = few_shot.zero_shot({}, 0, peer["text"], float(peer["logit_scale"]), {"feature": peer["X_test"]}, 0)
    np.testing.assert_allclose(ours, peer["zeroshot_probs"], atol=1e-6)


@pytest.mark.parametrize("prefix", ["lp", "lpbin"])
def test_logistic_regression(peer, prefix):
    """The peer's solver stops early (tol 1e-4): the same stop gives its numbers, a tight one the tight ones."""
    labels = peer["Y_train"] if prefix == "lp" else peer["lpbin_Y_train"]
    classes, test = int(labels.max()) + 1, {"linear": peer["X_test"]}
    ours = few_shot.linear(few(peer, labels), classes, None, 0.0, test, 0)
    np.testing.assert_allclose(ours, peer[f"{prefix}_probs"], atol=1e-4)
    exact = few(peer, labels) | {"linear": peer["X_train"].astype(np.float64)}
    test = {"linear": peer["X_test"].astype(np.float64)}
    tight = few_shot.linear(exact, classes, None, 0.0, test, 0, tol=1e-12)
    logits = peer["X_test"] @ peer[f"{prefix}_coef_tight"].T + peer[f"{prefix}_intercept_tight"]
    if prefix == "lpbin":
        logits = np.concatenate([np.zeros_like(logits), logits], axis=1)
    odds = np.exp(logits)
    np.testing.assert_allclose(tight, odds / odds.sum(1, keepdims=True), atol=1e-6)


def test_clip_adapter(peer, extra):
    width, classes, count = shape(peer)
    objective = ClipAdapter(width, classes, reduction=width // len(peer["clip_w0_init"]))
    params = {"fc1": {"kernel": peer["clip_w0_init"].T}, "fc2": {"kernel": peer["clip_w2_init"].T}}
    test = {"feature": peer["X_test"]}
    before = objective.forward(params, extra, test)["image_features"]
    np.testing.assert_allclose(before, peer["clip_resid_before"], atol=1e-6)
    order = np.tile(peer["clip_order"], EPOCHS)[:, None]
    rates = jax.vmap(cosine(1e-3, EPOCHS * count))(jnp.arange(EPOCHS * count))
    params = fit(objective, params, extra, peer["X_train"], peer["Y_train"], order, rates=rates)
    np.testing.assert_allclose(params["fc1"]["kernel"].T, peer["clip_w0_final"], atol=5e-6)
    np.testing.assert_allclose(params["fc2"]["kernel"].T, peer["clip_w2_final"], atol=5e-6)
    after = objective.forward(params, extra, test)
    np.testing.assert_allclose(after["image_features"], peer["clip_resid_after"], atol=2e-6)
    np.testing.assert_allclose(jax.nn.softmax(after["logits"]), peer["clip_probs"], atol=2e-6)


def test_tip_adapter(peer, extra):
    width, classes, count = shape(peer)
    objective = TipAdapter(width, classes, count, fixed_scale=100.0)
    params, extra = remember(peer["X_train"], peer["Y_train"], classes, extra)
    logits = objective.forward(params, extra, {"feature": peer["X_test"]})["logits"]
    np.testing.assert_allclose(logits, peer["tip_logits"], atol=1e-5)
    np.testing.assert_allclose(jax.nn.softmax(logits), peer["tip_probs"], atol=2e-6)


def test_tip_adapter_f(peer, extra):
    """With the peer's shared memory its numbers; without, others: the quirk is an option, off by default."""
    width, classes, count = shape(peer)
    objective = TipAdapter(width, classes, count, fixed_scale=100.0, peer_training=True)
    params, extra = remember(peer["X_train"], peer["Y_train"], classes, extra)
    order = np.tile(peer["tipf_order"], EPOCHS)[:, None]
    data, rates = (peer["X_train"], peer["Y_train"], order), np.full(len(order), 1e-3)
    trained = fit(objective, params, extra, *data, rates=rates, storage_quirk=True)
    np.testing.assert_allclose(trained["keys"], peer["tipf_keys_final"], atol=1e-5)
    logits = objective.forward(trained, extra, {"feature": peer["X_test"]})["logits"]
    np.testing.assert_allclose(logits, peer["tipf_logits"], atol=5e-5)
    np.testing.assert_allclose(jax.nn.softmax(logits), peer["tipf_probs"], atol=1e-5)
    clean = fit(objective, params, extra, *data, rates=rates)
    assert np.abs(clean["keys"] - peer["tipf_keys_final"]).max() > 1e-2
