"""open_clip's four kinds of model and its losses: every intermediate, feature, loss and gradient of PyTorch's."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from fundax.interop import open_clip
from fundax.losses import contrastive

pytestmark = pytest.mark.vectors("openclip")
MODELS = ("clip_quickgelu", "clip_gelu", "customtext", "customtext_siglip")
KEY, STEP = jax.random.key(0), jnp.int32(0)


def close(actual, expected, tolerance: float, name: str = "") -> None:
    """Every element within `tolerance` of the largest expected magnitude."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape, name
    error = np.abs(actual - expected).max() / max(np.abs(expected).max(), 1e-30)
    assert error <= tolerance, f"{name}: {error:.2e} of the largest magnitude"


@pytest.fixture(autouse=True)
def exact():
    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture(params=MODELS)
def original(request, golden):
    """(tag, objective, params, forward vectors, batch)."""
    folder = golden / "openclip"
    config = json.loads((folder / f"{request.param}_config.json").read_text())
    objective, params = open_clip.to_fundax(load_file(folder / f"{request.param}_state_dict.safetensors"), config)
    expected = load_file(folder / f"{request.param}_forward.safetensors")
    batch = {"image": expected["in.image"].transpose(0, 2, 3, 1), "text": expected["in.tokens"]}
    return request.param, objective, params, expected, batch


def test_intermediates(original):
    _, objective, params, expected, batch = original

    @jax.jit
    def towers(params, batch):
        image = objective.image.apply({"params": params["image"]}, jnp.asarray(batch["image"]), hidden=True)
        return image, objective.text.apply({"params": params["text"]}, batch["text"], hidden=True)

    image, text = towers(params, batch)
    conv = expected["inter.visual.conv1"]
    close(image["patches"], conv.reshape(*conv.shape[:2], -1).swapaxes(1, 2), 2e-5, "conv1")
    close(image["embedded"], expected["inter.visual.ln_pre"], 2e-5, "ln_pre")
    after = "pooled" if objective.image.norm_after_pool else "tokens"
    close(image[after], expected["inter.visual.ln_post"], 2e-5, "ln_post")
    for tower, name in ((image, "visual"), (text, "text")):
        blocks = [key for key in expected if key.startswith(f"inter.{name}.resblocks.")]
        assert blocks  # not all need be there
        for key in blocks:
            close(tower["hidden"][int(key.rsplit(".", 1)[1])], expected[key], 2e-5, key)
    close(text["tokens"], expected["inter.text.ln_final"], 2e-5, "ln_final")


def test_features_loss_and_every_gradient(original, golden):
    tag, objective, params, expected, batch = original
    out = jax.jit(objective.forward)(params, {}, batch)
    for ours, theirs in (
        ("image_raw", "raw.image"),
        ("text_raw", "raw.text"),
        ("image_features", "out.image_features"),
        ("text_features", "out.text_features"),
        ("logit_scale", "out.logit_scale_exp"),
    ):
        close(out[ours], expected[theirs], 2e-5, ours)
    logits = out["logit_scale"] * out["image_features"] @ out["text_features"].T + out.get("logit_bias", 0)
    close(logits, expected["out.logits_per_image"], 2e-5, "logits")
    close(logits.T, expected["out.logits_per_text"], 2e-5, "logits of texts")

    run = jax.jit(jax.value_and_grad(objective.loss, has_aux=True))
    (loss, _), gradients = run(params, {}, batch, KEY, STEP)
    close(loss, expected["loss"], 1e-5, "loss")
    theirs = load_file(golden / "openclip" / f"{tag}_grads.safetensors")
    ours = open_clip.from_fundax(objective, gradients, custom_text=tag.startswith("customtext"))
    assert ours.keys() == theirs.keys()
    for name in theirs:
        close(ours[name], theirs[name], 1e-5, name)


def original_losses(golden, name: str):
    (path,) = (golden / "openclip").glob("losses_b*_d*.npz")
    with np.load(path) as vectors:
        return {key: vectors[key] for key in vectors.files if "." not in key or key.startswith(f"{name}.")}


def softmax(image, text, log_scale, bias):
    return contrastive.softmax_contrastive(image, text, jnp.exp(log_scale))


def sigmoid(image, text, log_scale, bias):
    return contrastive.sigmoid_contrastive(image, text, jnp.exp(log_scale), bias)


@pytest.mark.parametrize(("name", "loss"), [("clip", softmax), ("siglip_init", sigmoid), ("siglip_mid", sigmoid)])
def test_losses_with_gradients(golden, name, loss):
    original = original_losses(golden, name)
    arguments = (
        original["image"],
        original["text"],
        original[f"{name}.log_scale"],
        original.get(f"{name}.bias", np.float32(0)),
    )
    value, gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2, 3)))(*arguments)
    close(value, original[f"{name}.loss"], 1e-5, "loss")
    for key, ours in zip(("d_image", "d_text", "d_log_scale", "d_bias"), gradients, strict=True):
        if f"{name}.{key}" in original:
            close(ours, original[f"{name}.{key}"], 1e-5, key)


# What the original code's processes compute, as a multiple of the gradient of the global loss, averaged over processes.
# Without gather_with_grad, open_clip's features get 1/W of it, its logit scale all of it.
EXACT = ("clip_local_gwg", "clip_global_gwg", "siglip_bidir", "siglip_shift", "siglip_gather", "siglip_reduce")


@pytest.mark.parametrize("variant", [*EXACT, "clip_global_nograd"])
def test_originals_processes_are_the_global_batch(golden, variant):
    name, loss = ("siglip_mid", sigmoid) if variant.startswith("siglip") else ("clip", softmax)
    original = original_losses(golden, name)
    with np.load(golden / "openclip" / "losses_distributed.npz") as vectors:
        theirs = {key: vectors[key] for key in vectors.files}
    arguments = (
        original["image"],
        original["text"],
        original[f"{name}.log_scale"],
        original.get(f"{name}.bias", np.float32(0)),
    )
    value, (d_image, d_text, d_scale) = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))(*arguments)
    worlds = {int(key.split(".")[0][1:]) for key in theirs}
    assert worlds
    for world in worlds:
        run = f"w{world}.{variant}"
        close(value, theirs[f"{run}.loss_per_rank"].mean(), 1e-5, "loss")
        close(d_scale, theirs[f"{run}.d_log_scale_per_rank"].mean(), 1e-5, "d_log_scale")
        # each process's gradients are of its own loss; averaging over processes divides the sum by W
        share = 1 if variant in EXACT else 1 / world
        close(share * d_image, theirs[f"{run}.d_image"] / world, 1e-5, "d_image")
        close(share * d_text, theirs[f"{run}.d_text"] / world, 1e-5, "d_text")
