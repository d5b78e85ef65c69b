"""BERT compared with PyTorch: golden hidden states, FLAIR's pooling, dropout, scan, sizes."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from fundax.encoders.bert import BERT, bert
from fundax.params import stack_blocks, unstack_blocks
from fundax.types import UserError

SMALL = BERT(vocab=30, context=8, width=16, depth=2, heads=2, hidden=24)
TEXT = jnp.array([[2, 5, 6, 3, 0, 0], [2, 7, 3, 0, 0, 0]])


@pytest.fixture(scope="module")
def params():
    return jax.jit(SMALL.init)(jax.random.key(0), TEXT)["params"]


@partial(jax.jit, static_argnums=0)
def run(module, params, text=TEXT, seed=None):
    rngs = {} if seed is None else {"dropout": jax.random.key(seed)}
    return module.apply({"params": params}, text, hidden=True, rngs=rngs)


@partial(jax.jit, static_argnums=0)
def gradient(module, params):
    return jax.grad(lambda p: (module.apply({"params": p}, TEXT)["pooled"] ** 3).sum())(params)


@pytest.fixture(scope="module")
def original(golden):
    """The original's text tower: module, parameters, inputs and outputs."""
    config = json.loads((golden / "retclip" / "config.json").read_text())
    state = load_file(golden / "retclip" / "state_dict.safetensors")
    module = BERT(
        vocab=config["vocab_size"],
        context=config["text_max_position_embeddings"],
        width=config["text_hidden_size"],
        depth=config["text_num_hidden_layers"],
        heads=config["text_num_attention_heads"],
        hidden=config["text_intermediate_size"],
        token_types=config["text_type_vocab_size"],
    )
    return module, from_original(state, module.depth), load_file(golden / "retclip" / "forward.safetensors")


def from_original(state, depth):
    def take(name):
        return state[f"bert.{name}"]

    def dense(name):
        return {"kernel": take(f"{name}.weight").T, "bias": take(f"{name}.bias")}

    def norm(name):
        return {"scale": take(f"{name}.LayerNorm.weight"), "bias": take(f"{name}.LayerNorm.bias")}

    def block(name):
        qkv = [dense(f"{name}.attention.self.{part}") for part in ("query", "key", "value")]
        packed = {key: np.stack([d[key] for d in qkv], axis=-2) for key in ("kernel", "bias")}
        return {
            "attention": {"qkv": packed, "out": dense(f"{name}.attention.output.dense")},
            "norm1": norm(f"{name}.attention.output"),
            "mlp": {"fc1": dense(f"{name}.intermediate.dense"), "fc2": dense(f"{name}.output.dense")},
            "norm2": norm(f"{name}.output"),
        }

    tables = {t: {"embedding": take(f"embeddings.{t}_embeddings.weight")} for t in ("word", "position", "token_type")}
    blocks = {f"block_{i}": block(f"encoder.layer.{i}") for i in range(depth)}
    return tables | blocks | {"embed_norm": norm("embeddings")}


@pytest.mark.vectors("retclip")
def test_hidden_states_equal_the_originals(original):
    module, params, arrays = original
    out = run(module, params, jnp.asarray(arrays["in.tokens"]))
    np.testing.assert_allclose(out["embedded"], arrays["inter.bert.embeddings"], atol=2e-5)
    for i, x in enumerate(out["hidden"]):
        np.testing.assert_allclose(x, arrays[f"inter.bert.layer.{i}"], atol=2e-5)
    np.testing.assert_allclose(out["pooled"], arrays[f"inter.bert.layer.{module.depth - 1}"][:, 0], atol=2e-5)
    np.testing.assert_array_equal(out["tokens"], out["hidden"][-1])


@pytest.mark.vectors("retclip")
def test_pooling_of_chosen_layers(original):
    module, params, arrays = original
    tokens = jnp.asarray(arrays["in.tokens"])
    states = np.stack([arrays["inter.bert.embeddings"]] + [arrays[f"inter.bert.layer.{i}"] for i in range(2)])
    present = (arrays["in.tokens"] != 0)[:, :, None]
    expected = {
        "cls": states[[0, 2]].mean(0)[:, 0],
        "mean": (states[[0, 2]].mean(0) * present).sum(1) / present.sum(1),
        "unmasked_mean": states[[0, 2]].mean((0, 2)),
    }
    for pool, value in expected.items():
        pooled = run(module.clone(pool=pool, pool_layers=(0, -1)), params, tokens)["pooled"]
        np.testing.assert_allclose(pooled, value, atol=2e-5)


def test_only_the_unmasked_mean_depends_on_padding(params):
    short, padded = TEXT[1:, :3], TEXT[1:]
    for pool, same in (("cls", True), ("mean", True), ("unmasked_mean", False)):
        module = SMALL.clone(pool=pool)
        gap = np.abs(run(module, params, short)["pooled"] - run(module, params, padded)["pooled"]).max()
        assert (gap < 1e-6) == same


def test_dropout_is_active_only_with_an_rng(params):
    def with_rng(seed):
        return run(SMALL, params, seed=seed)["pooled"]

    plain = run(SMALL, params)["pooled"]
    np.testing.assert_array_equal(plain, run(SMALL, params)["pooled"])
    assert np.abs(with_rng(1) - with_rng(2)).max() > 1e-2
    assert np.abs(with_rng(1) - plain).max() > 1e-2
    np.testing.assert_array_equal(with_rng(1), with_rng(1))
    undropped = SMALL.clone(dropout=0.0)
    np.testing.assert_allclose(run(undropped, params, seed=1)["pooled"], plain, atol=1e-6)


def test_dropout_keeps_the_mean():
    """With every weight at zero but the embedding norm's bias, the output of the embedding is 1 or 1/0.9 or 0."""
    module = SMALL.clone(depth=1, dropout=0.5)
    shapes = jax.eval_shape(module.init, jax.random.key(0), TEXT)["params"]
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), shapes)
    params["embed_norm"]["bias"] = jnp.ones(16)
    text = jnp.ones((64, 8), jnp.int32)
    x = run(module, params, text, seed=0)["embedded"]
    assert set(np.unique(x)) == {0.0, 2.0}
    assert float(x.mean()) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("remat", ["none", "full"])
def test_scan_and_remat_give_the_same_numbers(params, remat):
    scanned = SMALL.clone(scan=True, remat=remat)
    stacked = stack_blocks(params)
    expected = run(SMALL, params)["tokens"]
    np.testing.assert_allclose(run(scanned, stacked)["tokens"], expected, atol=1e-6)
    a, b = gradient(SMALL.clone(remat=remat), params), unstack_blocks(gradient(scanned, stacked))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5 * np.abs(y).max() + 1e-4), a, b)
    dropped = [run(scanned, stacked, seed=seed)["tokens"] for seed in (0, 1)]
    assert np.abs(dropped[0] - dropped[1]).max() > 1e-2


@pytest.mark.parametrize(("size", "count"), [("base", 101_677_056), ("rbt3", 37_886_208), ("large", 324_472_832)])
def test_parameter_counts_of_the_published_sizes(size, count):
    shapes = jax.eval_shape(bert(size).init, jax.random.key(0), jnp.zeros((1, 4), jnp.int32))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == count


def test_bfloat16_stays_close(params):
    low = run(SMALL.clone(dtype="bfloat16"), params)["pooled"]
    assert low.dtype == jnp.bfloat16
    np.testing.assert_allclose(low.astype(jnp.float32), run(SMALL, params)["pooled"], atol=0.1)


def test_bad_settings_are_named(params):
    with pytest.raises(UserError, match="text has 9 positions; this model has 8"):
        run(SMALL, params, jnp.ones((1, 9), jnp.int32))
    with pytest.raises(UserError, match="pool is 'max'; expected one of cls, mean, unmasked_mean"):
        run(SMALL.clone(pool="max"), params)
    with pytest.raises(UserError, match="pool_layers has 3; there are layers 0"):
        run(SMALL.clone(pool_layers=(1, 3)), params)
    with pytest.raises(UserError, match="text size is 'huge'"):
        bert("huge")
