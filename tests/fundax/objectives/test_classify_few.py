"""What a few hundred images need: logistic regression as scikit-learn's, grades, a moving average, an ensemble."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fundax.encoders.backbone import Backbone
from fundax.encoders.heads import MLPHead
from fundax.encoders.resnet import ResNet
from fundax.objectives.classify import Classify, Supervision, grade_probabilities, probe
from fundax.objectives.ensemble import Ensemble, stacked
from fundax.types import UserError

TOWER = Backbone(ResNet(32, 2, (1,)), feature="pooled")
RUN = SimpleNamespace(steps=0, batch=8, epochs=1, lr=1e-3, weight_decay=0.0)


@pytest.mark.parametrize("classes", [2, 3])
def test_logistic_regression_is_scikit_learns(classes):
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    random = np.random.default_rng(0)
    feature = (random.standard_normal((40, TOWER.width)) * random.uniform(0.1, 9, TOWER.width)[None] + 3).astype(
        np.float32
    )
    label = np.arange(40) % classes
    feature[:, 0] += label
    solved = probe("logistic", RUN, TOWER.width, 40, classes, False, 0.05)
    objective = Classify(TOWER, solved.head, classes=tuple("abc"[:classes]), given="feature", penalty=solved.penalty)
    batch = {"feature": jnp.asarray(feature), "label": jnp.asarray(label, jnp.int32)}
    params, extra = jax.jit(objective.init)(jax.random.key(0), batch)
    extra = solved.init_extra(lambda: {"feature": feature})[0](extra)

    def step(carry, _):
        params, state = carry
        grads = jax.grad(lambda p: objective.loss(p, extra, batch, jax.random.key(0), jnp.int32(0))[0])(params)
        updates, state = solved.rule.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    run = jax.jit(lambda params: jax.lax.scan(step, (params, solved.rule.init(params)), length=solved.steps)[0][0])
    ours = objective.forward(run(params), extra, batch)["probabilities"]
    scaled = StandardScaler().fit_transform(feature)
    theirs = LogisticRegression(C=0.05, tol=1e-8, max_iter=9999).fit(scaled, label).predict_proba(scaled)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-3)
    with pytest.raises(UserError, match="--strength 0"):
        probe("logistic", RUN, 4, 40, 2, False, 0)


def test_grades_are_probabilities_and_learned_as_thresholds():
    logits = jnp.asarray(
        [[9.0, 0.0, -9.0], [-9.0, 9.0, 9.0]]
    )  # the second says above 1 and not above 0: made to decrease
    found = grade_probabilities(logits)
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-6)
    np.testing.assert_allclose(found[0], [0, 0.5, 0.5, 0], atol=1e-3)
    assert found[1].argmax() == 0
    objective = Classify(TOWER, MLPHead(3, 1, norm=False), kind="grades", classes=tuple("0123"))
    targets = objective._targets(jnp.asarray([0, 2, -1]))
    np.testing.assert_array_equal(targets, [[0, 0, 0], [1, 1, 0], [np.nan] * 3])
    supervision = Supervision(ordinal=True)
    assert supervision.outputs(tuple("0123")) == 3
    with pytest.raises(UserError, match="at least three grades"):
        supervision.outputs(("no", "yes"))


def test_the_moving_average_predicts():
    objective = Classify(TOWER, MLPHead(2, 1, norm=False), classes=("a", "b"), given="feature", momentum=0.5)
    batch = {"feature": jnp.ones((4, TOWER.width)), "label": jnp.asarray([0, 1, 0, 1])}
    params, extra = jax.jit(objective.init)(jax.random.key(0), batch)
    moved = jax.tree.map(lambda leaf: leaf + 1, params)
    loss = jax.jit(objective.loss)
    _, (extra, _) = loss(params, extra, batch, jax.random.key(0), jnp.int32(0))
    jax.tree.map(np.testing.assert_allclose, extra["average"], params)  # the first step starts it
    _, (extra, _) = loss(moved, extra, batch, jax.random.key(0), jnp.int32(1))
    weight = 1 / 10  # (steps - 1) / (steps + 8) at the second step
    expected = jax.tree.map(lambda old, new: weight * old + (1 - weight) * new, params, moved)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6), extra["average"], expected)
    out = objective.forward(params, extra, batch)
    np.testing.assert_allclose(out["logits"], objective.forward(expected, {}, batch)["logits"], atol=1e-5)


def test_an_ensemble_is_the_mean_of_its_members():
    objective = Classify(TOWER, MLPHead(3, 1, norm=False), classes=tuple("abc"))
    image = {"image": np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)}
    init, forward = jax.jit(objective.init), jax.jit(objective.forward)
    states = [init(jax.random.key(k), image) for k in range(2)]
    expected = np.mean([forward(*state, image)["probabilities"] for state in states], axis=0)
    whole = Ensemble(objective, 2)
    params, extra = stacked(states)
    assert set(params) == {"members"}
    np.testing.assert_allclose(whole.forward(params, extra, image)["probabilities"], expected, atol=1e-6)
    shared = [({**states[0][0], "head": state[0]["head"]}, states[0][1]) for state in states]
    params, extra = stacked(shared)
    assert set(params) == {"image", "members"} and set(params["members"]) == {"head"}
    expected = np.mean([forward(*state, image)["probabilities"] for state in shared], axis=0)
    np.testing.assert_allclose(whole.forward(params, extra, image)["probabilities"], expected, atol=1e-6)
    with pytest.raises(UserError, match="not trained"):
        whole.loss(params, extra, image, jax.random.key(0), jnp.int32(0))
