"""Reports: what counts as a word, a step by step decoder equal to the whole one, beams against every possible report."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fundax import spec
from fundax.decoding import beam_search, greedy
from fundax.encoders.report_decoder import ReportDecoder, TorchNorm, sinusoid, token_loss
from fundax.encoders.vit import ViT
from fundax.errors import UserError
from fundax.objectives.report import Report, write


def tiny(**fields):
    given = {"vocab": 5, "context": 4, "width": 8, "depth": 1, "heads": 2, "hidden": 8, "bos": 1, "eos": 2}
    return ReportDecoder(**(given | fields))


@pytest.fixture(scope="module")
def decoder():
    decoder = tiny()
    tokens = jax.random.normal(jax.random.key(1), (2, 3, 6))
    params = decoder.init(jax.random.key(0), tokens, jnp.ones((2, 4), jnp.int32))["params"]
    params["head"]["kernel"] = 3 * params["head"]["kernel"]  # so that words differ in likelihood
    return decoder, params, tokens


def test_the_unbiased_norm_by_hand():
    x = jnp.array([[[1.0, 2.0, 3.0]]])  # mean 2, unbiased deviation 1
    norm = TorchNorm(epsilon=0.0)
    np.testing.assert_allclose(norm.apply(norm.init(jax.random.key(0), x), x)[0, 0], [-1, 0, 1], rtol=1e-6)
    assert np.isfinite(
        jax.grad(lambda x: norm.apply(norm.init(jax.random.key(0), x), x).sum())(jnp.ones((1, 1, 3)))
    ).all()


def test_positions_by_hand():
    np.testing.assert_allclose(sinusoid(2, 4)[1], [np.sin(1), np.cos(1), np.sin(0.01), np.cos(0.01)], rtol=1e-6)


def test_words_with_the_cache_are_those_without(decoder):
    decoder, params, tokens = decoder
    ids = jnp.array([[1, 3, 4, 3], [1, 4, 4, 3]], jnp.int32)
    whole = decoder.apply({"params": params}, tokens, ids)
    cache = decoder.apply({"params": params}, tokens, method="begin")
    for at in range(4):
        log_p, cache = decoder.apply({"params": params}, cache, ids[:, at], at, method="step")
        np.testing.assert_allclose(log_p, whole[:, at], rtol=0, atol=1e-5)


def test_beams_find_the_best_report_and_greedy_follows_the_best_word(decoder):
    decoder, params, tokens = decoder
    reports = [[*words, 2] for n in range(4) for words in itertools.product((0, 1, 3, 4), repeat=n)]
    reports += [list(words) for words in itertools.product((0, 1, 3, 4), repeat=4)]  # cut at the last position

    def score(report, row):  # word by word: a written pad is a word like others
        cache, last, total = decoder.apply({"params": params}, tokens, method="begin"), 1, 0.0
        for at, word in enumerate(report):
            log_p, cache = step(cache, jnp.full(2, last), at)
            total, last = total + float(log_p[row, word]), word
        return total

    step = jax.jit(lambda c, i, at: decoder.apply({"params": params}, c, i, at, method="step"))
    ids, found = jax.jit(lambda p, t: beam_search(decoder, p, t, beams=64))(params, tokens)
    best = max(reports, key=lambda r: score(r, 0))
    assert ids[0, : len(best)].tolist() == best
    np.testing.assert_allclose(found[0], score(best, 0), rtol=1e-5)
    ids, total = greedy(decoder, params, tokens)
    np.testing.assert_allclose(total[0], score([w for w in ids[0].tolist() if w != 0], 0), rtol=1e-5)
    np.testing.assert_array_equal(beam_search(decoder, params, tokens, beams=1)[0], ids)


def test_token_loss_by_hand():
    log_p = jnp.log(jnp.array([[[0.5, 0.5], [0.25, 0.75]]]))
    sums, words = token_loss(log_p, jnp.array([[0, 1]]), jnp.array([[True, False]]))
    assert (float(sums[0]), float(words[0])) == (pytest.approx(np.log(2)), 1.0)


def test_the_end_counts_and_what_follows_does_not():
    text = jnp.array([[1, 3, 4, 2, 0], [1, 2, 0, 0, 0]])
    objective = Report(ViT(16, 8, 8, 1, 2), tiny())
    assert objective.counted(text).tolist() == [[True, True, True, False], [True, False, False, False]]
    one_id = Report(ViT(16, 8, 8, 1, 2), tiny(bos=0, eos=0))
    assert one_id.counted(jnp.array([[0, 3, 4, 0, 0]])).tolist() == [[True, True, True, False]]


def test_a_step_and_a_report():
    objective = Report(ViT(16, 8, 8, 1, 2), tiny())
    batch = {
        "image": np.zeros((2, 16, 16, 3), np.uint8),
        "text": np.array([[1, 3, 4, 2, 0], [1, 2, 0, 0, 0]], np.int32),
    }
    params, extra = objective.init(jax.random.key(0), batch)
    value = jax.jit(lambda p: objective.loss(p, extra, batch, jax.random.key(0), jnp.zeros((), jnp.int32)))(params)[0]
    assert 0.5 < float(value) < 6
    ids = write(objective, params, extra, batch["image"])
    assert ids.shape == (2, 4) and spec.from_json(spec.to_json(objective)) == objective
    with pytest.raises(UserError, match="5 positions; this decoder has 4"):
        objective.forward(params, extra, batch | {"text": np.ones((2, 6), np.int32)})
