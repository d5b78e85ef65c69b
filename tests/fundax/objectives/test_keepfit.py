"""KeepFIT: both halves teach, references by hand, contradicting eyes kept apart, the report branch learns."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fundax.encoders.bert import BERT
from fundax.encoders.report_decoder import ReportDecoder
from fundax.encoders.vit import ViT
from fundax.objectives.flair import FLAIR
from fundax.objectives.keepfit import KeepFIT
from fundax.objectives.keepfit_reference import V1, Attention, Reference, agreeing
from fundax.runtime import serialize
from fundax.types import UserError


@pytest.fixture(scope="module")
def started():
    text = BERT(vocab=11, context=6, width=8, depth=1, heads=2, hidden=16, pool="mean")
    base = FLAIR(ViT(16, 8, 8, 1, 2), text, embed=4, context=6)
    caption = ReportDecoder(vocab=11, context=5, width=8, depth=1, heads=2, hidden=8, bos=1, eos=2)
    objective = KeepFIT(base, caption=caption, appearance=3)
    rng = np.random.default_rng(0)
    draw = {
        np.uint8: lambda shape: rng.integers(0, 256, shape, np.uint8),
        np.int32: lambda shape: rng.integers(1, 11, shape, np.int32),
        np.float32: lambda shape: rng.normal(size=shape).astype(np.float32),
    }
    batch = {name: draw[np.dtype(x.dtype).type](x.shape) for name, x in objective.batch_spec(4).items()}
    params, extra = jax.jit(objective.init)(jax.random.key(0), batch)
    return objective, batch, params, extra


def test_both_halves_and_every_part_teach(started):
    objective, batch, params, extra = started
    step = jax.jit(jax.value_and_grad(objective.loss, has_aux=True))
    (loss, (_, m)), grads = step(params, extra, batch, jax.random.key(1), jnp.zeros((), jnp.int32))
    total = m["loss_public"] + m["loss_elite"] + m["loss_reference"] + 0.5 * m["loss_caption"]
    np.testing.assert_allclose(loss, total, rtol=1e-6)
    for name in ("image", "text", "reference", "caption", "project", "log_scale"):
        assert any(np.asarray(leaf).any() for leaf in jax.tree.leaves(grads[name])), name


def test_without_elite_images_it_says_so(started):
    objective, batch, params, extra = started
    public = {name: value for name, value in batch.items() if not name.startswith("elite/")}
    with pytest.raises(UserError, match="no elite/image"):
        jax.eval_shape(objective.loss, params, extra, public, jax.random.key(1), jnp.zeros((), jnp.int32))
    out = jax.jit(objective.forward)(params, extra, public)
    assert out["image_features"].shape == (4, 4) and objective.embed == 4


def test_it_is_kept_as_json(started):
    assert serialize.from_json(serialize.to_json(started[0])) == started[0]
    assert serialize.from_json(serialize.to_json(V1)) == V1


def test_a_reference_by_hand():
    eye = jnp.eye(2)
    cold = Reference(lam=1.0, tau_semantic=1e-3)
    params = cold.init(jax.random.key(0), 2)
    texts = jnp.array([[0.0, 1.0], [1.0, 0.0]])
    np.testing.assert_allclose(cold.text(params, eye, (eye, texts)), texts, atol=1e-6)  # the nearest elite image's text
    assert float(cold.distance(texts, texts)) == pytest.approx(0, abs=1e-6)
    assert float(cold.distance(eye, texts)) == pytest.approx(1)
    seen = Reference(lam=0.0, tau_appearance=1e-3)  # by appearance alone, the other one is nearest
    np.testing.assert_allclose(seen.text(params, eye, (eye, texts), appearance=1 - eye), eye, atol=1e-6)
    with pytest.raises(UserError, match="compares appearances"):
        seen.text(params, eye, (eye, texts))
    with pytest.raises(UserError, match="lam is 2"):
        Reference(lam=2)


def test_a_normal_eye_takes_no_advice_from_an_abnormal_one():
    mask = agreeing(jnp.array([0, 1, -1]), jnp.array([0, 1]))
    assert mask.tolist() == [[True, False], [False, True], [True, True]]
    weights = Attention(1).weigh(jnp.zeros((1, 3, 2)), mask)
    np.testing.assert_allclose(weights[0], [[1, 0], [0, 1], [0.5, 0.5]])


def test_heads_and_dropout_of_attention():
    weights = Attention(2, "heads").weigh(jnp.zeros((2, 3, 5)))
    np.testing.assert_allclose(weights, 0.5)
    dropped = np.asarray(Attention(1, "keys", 0.5).weigh(jnp.zeros((1, 40, 40)), None, jax.random.key(0)))
    np.testing.assert_allclose(np.unique(dropped), [0.0, 0.05], rtol=1e-6)
    with pytest.raises(UserError, match="does not divide among 3 heads"):
        Attention(3)(Attention(1).init(jax.random.key(0), 4), *(jnp.ones((2, 4)),) * 3)
