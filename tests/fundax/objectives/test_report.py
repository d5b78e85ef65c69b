"""Reports: what counts as a word, a step by step decoder equal to the whole one, beams against every possible report."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fundax.encoders.report_decoder import ReportDecoder, TorchNorm, beam_search, greedy, sinusoid, token_loss
from fundax.encoders.vit import ViT
from fundax.objectives.report import Report
from fundax.runtime import serialize
from fundax.types import UserError


def tiny(**fields):
    given = {"vocab": 5, "context": 3, "width": 8, "depth": 1, "heads": 2, "hidden": 8, "bos": 1, "eos": 2}
    return ReportDecoder(**(given | fields))


def filled(init, *given):
    """Parameters of a module or objective without its random numbers, which take seconds to compile."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(init, jax.random.key(0), *given)
    return jax.tree.map(lambda s: jnp.asarray(rng.normal(0, 0.4, s.shape), s.dtype), shapes)


@pytest.fixture(scope="module")
def decoder():
    decoder = tiny()
    tokens = jnp.asarray(np.random.default_rng(1).normal(size=(2, 2, 6)), jnp.float32)
    params = filled(decoder.init, tokens, jnp.ones((2, 3), jnp.int32))["params"]
    cache = jax.jit(lambda p, t: decoder.apply({"params": p}, t, method="begin"))(params, tokens)
    step = jax.jit(lambda c, i, at: decoder.apply({"params": params}, c, i, at, method="step"))
    return decoder, params, tokens, cache, step


def test_the_unbiased_norm_by_hand():
    x = jnp.array([[[1.0, 2.0, 3.0]]])  # mean 2, unbiased deviation 1
    params = {"params": {"scale": jnp.ones(3), "bias": jnp.zeros(3)}}
    apply = lambda x: TorchNorm(epsilon=0.0).apply(params, x)  # noqa: E731
    np.testing.assert_allclose(apply(x)[0, 0], [-1, 0, 1], rtol=1e-6)
    assert np.isfinite(jax.jit(jax.grad(lambda x: apply(x).sum()))(jnp.ones((1, 1, 3)))).all()


def test_positions_by_hand():
    np.testing.assert_allclose(sinusoid(2, 4)[1], [np.sin(1), np.cos(1), np.sin(0.01), np.cos(0.01)], rtol=1e-6)


def test_words_with_the_cache_are_those_without(decoder):
    decoder, params, tokens, cache, step = decoder
    ids = jnp.array([[1, 3, 4], [1, 4, 4]], jnp.int32)
    whole = jax.jit(lambda p, t, i: decoder.apply({"params": p}, t, i))(params, tokens, ids)
    for at in range(3):
        log_p, cache = step(cache, ids[:, at], at)
        np.testing.assert_allclose(log_p, whole[:, at], rtol=0, atol=1e-5)


def test_beams_find_the_best_report_and_greedy_follows_the_best_word(decoder):
    decoder, params, tokens, start, step = decoder
    reports = [[*words, 2] for n in range(3) for words in itertools.product((0, 1, 3, 4), repeat=n)]
    reports += [list(words) for words in itertools.product((0, 1, 3, 4), repeat=3)]  # cut at the last position

    def score(report, row):  # word by word: a written pad is a word like others
        cache, last, total = start, 1, 0.0
        for at, word in enumerate(report):
            log_p, cache = step(cache, jnp.full(2, last, jnp.int32), at)
            total, last = total + float(log_p[row, word]), word
        return total

    search = lambda p, t, beams: beam_search(decoder, p, t, beams)  # noqa: E731
    ids, found = jax.jit(search, static_argnums=2)(params, tokens, 25)  # 20 open reports are all there are
    best = max(reports, key=lambda r: score(r, 0))
    assert ids[0, : len(best)].tolist() == best
    np.testing.assert_allclose(found[0], score(best, 0), rtol=1e-5)
    ids, total = jax.jit(lambda p, t: greedy(decoder, p, t))(params, tokens)
    np.testing.assert_allclose(total[0], score([w for w in ids[0].tolist() if w != 0], 0), rtol=1e-5)
    np.testing.assert_array_equal(jax.jit(search, static_argnums=2)(params, tokens, 1)[0], ids)


def test_token_loss_by_hand():
    log_p = jnp.log(jnp.array([[[0.5, 0.5], [0.25, 0.75]]]))
    sums, words = token_loss(log_p, jnp.array([[0, 1]]), jnp.array([[True, False]]))
    assert (float(sums[0]), float(words[0])) == (pytest.approx(np.log(2)), 1.0)


def test_the_end_counts_and_what_follows_does_not():
    text = jnp.array([[1, 3, 4, 2, 0], [1, 2, 0, 0, 0]])
    objective = Report(ViT(8, 8, 8, 1, 2), tiny())
    assert objective.counted(text).tolist() == [[True, True, True, False], [True, False, False, False]]
    one_id = Report(ViT(8, 8, 8, 1, 2), tiny(bos=0, eos=0))
    assert one_id.counted(jnp.array([[0, 3, 4, 0, 0]])).tolist() == [[True, True, True, False]]


def test_a_step_and_a_report():
    objective = Report(ViT(8, 8, 8, 1, 2), tiny(dropout=0.0, visual_dropout=0.0))
    image, text = np.zeros((2, 8, 8, 3), np.uint8), np.array([[1, 3, 2, 0], [1, 2, 0, 0]], np.int32)
    batch = {"image": image, "text": text}
    params, extra = filled(objective.init, batch)
    assert extra == {} and set(params) == {"image", "decoder"}

    @jax.jit
    def both(params):
        step = jnp.zeros((), jnp.int32)
        return objective.loss(params, {}, batch, jax.random.key(0), step)[0], objective.forward(params, {}, batch)

    value, out = both(params)
    assert float(value) == pytest.approx(-float(out["log_p"].sum()) / 3, rel=1e-5)  # a word and two ends
    assert out["words"].tolist() == [2.0, 1.0]
    assert serialize.from_json(serialize.to_json(objective)) == objective


def test_reports_longer_than_the_decoder_are_named():
    objective = Report(ViT(8, 8, 8, 1, 2), tiny())
    batch = {"image": np.zeros((1, 8, 8, 3), np.uint8), "text": np.ones((1, 4), np.int32)}
    params = jax.eval_shape(objective.init, jax.random.key(0), batch)[0]
    with pytest.raises(UserError, match="4 positions; this decoder has 3"):
        jax.eval_shape(lambda p: objective.forward(p, {}, batch | {"text": np.ones((1, 5), np.int32)}), params)


def test_forward_writes_what_greedy_or_beams_write(decoder):
    params, tokens = decoder[1], decoder[2]
    for beams in (1, 2):
        objective = Report(ViT(8, 8, 8, 1, 2), decoder[0], beams=beams)
        shape = jax.eval_shape(lambda t: objective.write({"decoder": params}, t), tokens)  # noqa: B023
        assert (shape.shape, shape.dtype) == ((2, 3), jnp.int32)


def test_findings_are_predicted_and_given_to_the_decoder():
    decoder = tiny(dropout=0.0, visual_dropout=0.0)
    objective = Report(ViT(8, 8, 8, 1, 2), decoder, findings=2, finding_weight=3.0)
    image, text = np.zeros((2, 8, 8, 3), np.uint8), np.array([[1, 3, 2, 0], [1, 2, 0, 0]], np.int32)
    batch = {"image": image, "text": text, "findings": np.array([[1, 0], [0, 0]], np.float32)}
    params, _ = filled(objective.init, batch)
    params["findings"]["answer"] = {"kernel": jnp.zeros((16, 2)), "bias": jnp.array([0.0, -jnp.log(3.0)])}

    @jax.jit
    def both(params):
        step = jnp.zeros((), jnp.int32)
        value, (_, metrics) = objective.loss(params, {}, batch, jax.random.key(0), step)
        written = objective.forward(params, {}, {"image": image})
        return value, metrics, objective.forward(params, {}, batch), written

    value, metrics, out, written = both(params)
    by_hand = 2 * np.log(2) + 2 * np.log(4 / 3)  # two findings of chance 1/2, two absences of chance 3/4
    assert float(metrics["loss_findings"]) == pytest.approx(by_hand / 2, rel=1e-5)
    assert float(value) == pytest.approx(-float(out["log_p"].sum()) / 3 + 3 * by_hand / 2, rel=1e-5)
    np.testing.assert_allclose(written["finding_p"], [[0.5, 0.25]] * 2, rtol=1e-6)
    token = out["image_tokens"][:, -1] - params["findings"]["token"]["bias"][None]
    np.testing.assert_allclose(token, [params["findings"]["token"]["kernel"][0], np.zeros(8)], atol=1e-6)
    np.testing.assert_array_equal(written["image_tokens"][:, -1], jnp.repeat(out["image_tokens"][:1, -1], 2, axis=0))
    assert serialize.from_json(serialize.to_json(objective)) == objective
