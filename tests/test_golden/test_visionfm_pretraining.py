"""VisionFM's pretraining: every array of the peer's ViT, head, loss, masks, schedules, and two of its training steps."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from fundax import vit_layout
from fundax.encoders import vit_outputs
from fundax.encoders.positions import pixel_centres, resize_positions


@pytest.fixture(autouse=True)
def exact():
    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture(scope="module")
def folder(golden):
    return golden / "visionfm"


@pytest.fixture(scope="module")
def config(folder):
    return json.loads((folder / "config.json").read_text())


def close(ours, theirs, tolerance: float = 1e-5, name: str = "") -> None:
    """Every element within `tolerance` of the largest expected magnitude."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape, name
    error = np.abs(ours - theirs).max() / max(np.abs(theirs).max(), 1e-30)
    assert error <= tolerance, f"{name}: {error:.2e} of the largest magnitude"


def under(state, prefix: str):
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def pixels(x):
    return jnp.asarray(x.transpose(0, 2, 3, 1))


# --------------------------------------------------------------------------------------------------- the ViT


@pytest.fixture(scope="module")
def tiny(folder, config):
    state = load_file(folder / "vit_tiny.safetensors")
    tower = vit_layout.tower_of(state, "vit_tiny", heads=config["vit_tiny"]["num_heads"])
    with np.load(folder / "vit_tiny.npz") as file:
        return tower, vit_layout.read(tower, state, "vit_tiny"), dict(file), state


def test_tokens_masked_plain_and_of_other_sizes(tiny):
    tower, params, arrays, _ = tiny
    run = jax.jit(lambda x, masked: tower.apply({"params": params}, x, hidden=True, masked=masked))
    compared = 0
    for key in sorted(k for k in arrays if k.startswith("out") and not k.endswith("_cls")):
        size, kind = key.removeprefix("out").split("_")
        masked = arrays[f"mask{size}"] if kind == "masked" else None
        out = run(pixels(arrays[f"x{size}"]), masked)
        close(out["tokens"], arrays[key], name=key)
        if f"{key}_cls" in arrays:
            close(out["pooled"], arrays[f"{key}_cls"], name=f"{key}_cls")
        if (embedded := f"tokens{size}_masked") in arrays and kind == "masked":
            close(out["embedded"], arrays[embedded], name=embedded)
        if (embedded := f"tokens{size}") in arrays and kind == "plain":
            close(out["embedded"], arrays[embedded], name=embedded)
        compared += 1
    assert compared >= 6


def test_attention_and_intermediate_layers(tiny):
    tower, params, arrays, _ = tiny
    for key in (k for k in arrays if k.startswith("attn")):
        image = pixels(arrays[key.replace("attn", "x")])
        (ours,) = vit_outputs.attention_maps(tower, params, image)
        close(ours, arrays[key], name=key)
    for key in (k for k in arrays if k.startswith("inter")):
        size, last, index = key.removeprefix("inter").split("_")
        outputs = vit_outputs.intermediate_layers(tower, params, pixels(arrays[f"x{size}"]), int(last[1:]))
        close(outputs[int(index)], arrays[key], name=key)


def test_positions_by_both_rules(tiny):
    tower, params, arrays, state = tiny
    table = params["position"]
    for key in (k for k in arrays if k.startswith("pos_")):
        height, width = (int(n) // tower.patch for n in key.removeprefix("pos_").split("x"))
        close(tower._moved(table, (height, width))[None], arrays[key], name=key)
    for key in (k for k in arrays if k.startswith("resize_pos_embed_")):
        rows = int(key.rsplit("_", 1)[1]) ** 2 + 1
        close(resize_positions(table, rows, pixel_centres)[None], arrays[key], name=key)
        close(vit_layout.fit_positions(state, rows)["pos_embed"], arrays[key], name=key)


def test_mean_pooling_and_layer_scale(folder, config):
    states = load_file(folder / "vit_variants.safetensors")
    with np.load(folder / "vit_variants.npz") as file:
        arrays = dict(file)
    heads, image = config["vit_variants"]["num_heads"], pixels(arrays["x32"])
    for variant in ("meanpool", "layerscale"):
        state = under(states, f"{variant}.")
        tower = vit_layout.tower_of(state, variant, heads=heads)
        params = vit_layout.read(tower, state, variant)
        out = tower.apply({"params": params}, image)
        tokens = out["tokens"]
        if variant == "meanpool":  # the peer puts the pooled vector in the class token's row
            tokens = jnp.concatenate([out["pooled"][:, None], tokens[:, 1:]], axis=1)
        close(tokens, arrays[f"{variant}_out"], name=variant)
        keys = sorted(k for k in arrays if k.startswith(f"{variant}_inter"))
        outputs = vit_outputs.intermediate_layers(tower, params, image, tower.depth)
        for key in keys:
            close(outputs[int(key[-1])], arrays[key], name=key)


def test_rates_of_stochastic_depth(folder, config):
    with np.load(folder / "vit_variants.npz") as file:
        expected = file["drop_path_rates"]
    facts = config["vit_variants"]
    ours = jnp.linspace(0, facts["drop_path_rate"], facts["drop_path_depth"])  # as layers.Stack makes them
    np.testing.assert_allclose(ours, expected, rtol=1e-6)
