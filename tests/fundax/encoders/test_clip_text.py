"""The text transformer: what causal means, and where each pooling looks."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fundax.encoders.clip_text import Embedding, TextTransformer
from fundax.encoders.vit import size_named
from fundax.types import UserError

KEY = jax.random.key(0)
TEXT = np.array([[5, 1, 9, 0, 0], [5, 9, 2, 9, 0]], np.int32)


def small(**fields) -> TextTransformer:
    return TextTransformer(**{"vocab": 10, "context": 5, "width": 8, "depth": 2, "heads": 2} | fields)


@partial(jax.jit, static_argnums=0)
def apply(model, params, text):
    return model.apply(params, text)


@pytest.fixture(scope="module")
def params():
    """The same for every pooling and mask; larger than fresh ones, so that positions matter."""
    return jax.tree.map(lambda leaf: 3 * leaf + 0.1, jax.device_get(jax.jit(small().init)(KEY, TEXT)))


@pytest.mark.parametrize(
    ("fields", "rows"),
    [
        ({}, [2, 1]),  # the largest id, its first occurrence
        ({"pool": "eot", "eot_id": 2}, [0, 2]),  # row 0 has none: position 0
        ({"pool": "eot", "eot_id": 9}, [2, 1]),
        ({"pool": "last"}, [4, 4]),
        ({"pool": "first"}, [0, 0]),
    ],
)
def test_pooled_row(params, fields, rows):
    out = apply(small(**fields), params, TEXT)
    np.testing.assert_allclose(out["pooled"], out["tokens"][np.arange(2), rows], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("causal", [True, False])
def test_later_tokens_matter_only_without_the_causal_mask(params, causal):
    changed = TEXT.copy()
    changed[:, 4] = 7
    model = small(causal=causal)
    a, b = (np.asarray(apply(model, params, text)["tokens"][:, :4]) for text in (TEXT, changed))
    assert (np.abs(a - b).max() < 1e-6) == causal


def test_a_shorter_text_is_the_causal_prefix(params):
    whole, part = apply(small(), params, TEXT), apply(small(), params, TEXT[:, :3])
    np.testing.assert_allclose(part["tokens"], whole["tokens"][:, :3], rtol=1e-5, atol=1e-6)


def test_embedding_and_the_gradient_of_repeated_ids():
    table = np.arange(6, dtype=np.float32).reshape(3, 2)

    def total(table):
        return Embedding(3, 2).apply({"params": {"embedding": table}}, jnp.array([[2, 0, 2]])).sum()

    np.testing.assert_array_equal(total(table), 4 + 5 + 0 + 1 + 4 + 5)
    np.testing.assert_array_equal(jax.grad(total)(table), [[1, 1], [0, 0], [2, 2]])


def test_an_id_beyond_the_vocabulary_is_nan_and_not_the_last_word():
    table = jnp.ones((3, 2))
    rows = Embedding(3, 2).apply({"params": {"embedding": table}}, jnp.array([2, 3]))
    np.testing.assert_array_equal(rows, [[1, 1], [jnp.nan, jnp.nan]])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pool": "max"}, "pool is 'max'"),
        ({"pool": "eot"}, "needs eot_id"),
        ({"context": 4}, "text has 5 positions; this model has 4"),
    ],
)
def test_errors(fields, message):
    with pytest.raises(UserError, match=message):
        jax.eval_shape(small(**fields).init, KEY, TEXT)


def test_text_tower_of_dfn():
    row = size_named("H/14-378")
    model = TextTransformer(width=row.text_width, depth=row.text_depth, heads=row.text_heads, scan=True)
    params = jax.eval_shape(model.init, KEY, jax.ShapeDtypeStruct((1, 77), jnp.int32))
    total = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert total + 1024 * 1024 + 1 == 986_714_881 - 632_682_240  # with its projection and logit_scale
