"""RET-CLIP's numbers: every array that the original code produced, before and after a trip through its own key names."""

import json
import re
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from safetensors.numpy import load_file

from fundax import optim
from fundax.encoders.positions import aligned_corners, resize_positions
from fundax.interop.ret_clip import from_fundax, to_fundax
from fundax.objectives.ret_clip import MAX_LOG_SCALE
from fundax.params import flatten

pytestmark = pytest.mark.vectors("retclip")
FEATURES = 2e-5
RAW = {
    "raw.visual_left": "visual_left",
    "raw.visual_right": "visual_right",
    "raw.global_image": "image_raw",
    "raw.left_image": "left_raw",
    "raw.right_image": "right_raw",
    "raw.text": "text_raw",
    "raw.text_left": "text_raw_left",
    "raw.text_right": "text_raw_right",
}
OUT = {
    f"out.{name}": name
    for name in (
        *("image_features", "left_features", "right_features"),
        *("text_features", "text_features_left", "text_features_right"),
    )
}
SCALES = {f"out.logit_scale{suffix}_exp": f"logit_scale{suffix}" for suffix in ("", "_left", "_right")}


@pytest.fixture(scope="module", params=["as read", "exported and read again"])
def trip(request):
    return request.param


@pytest.fixture(scope="module")
def original(golden, trip):
    """The original's arrays with our model of its weights: the second time from a state dict we wrote."""
    folder = golden / "retclip"
    config = json.loads((folder / "config.json").read_text())
    state = load_file(folder / "state_dict.safetensors")
    facts = {"head_width": config["vision_head_width"], "text_heads": config["text_num_attention_heads"]}
    objective, params = to_fundax(state, **facts)
    if trip != "as read":
        again = from_fundax(objective, params)
        assert again.keys() == state.keys()
        assert all(again[key].tobytes() == state[key].tobytes() for key in state)
        objective, params = to_fundax(again, **facts)
    arrays = load_file(folder / "forward.safetensors")
    batch = {
        "left": arrays["in.left"].transpose(0, 2, 3, 1),
        "right": arrays["in.right"].transpose(0, 2, 3, 1),
        "text": arrays["in.tokens"],
    }
    params = jax.tree.map(jnp.asarray, params)
    return SimpleNamespace(
        folder=folder, config=config, state=state, objective=objective, params=params, arrays=arrays, batch=batch
    )


@pytest.fixture(scope="module")
def outputs(original):
    return forward(original.objective, original.params, original.batch)


@pytest.fixture(scope="module")
def trained(original):
    """Loss, metrics and gradients, without dropout as the original's vectors are."""
    objective = replace(original.objective, text=original.objective.text.clone(dropout=0.0))
    (value, metrics), grads = gradients(objective, original.params, original.batch)
    return SimpleNamespace(loss=value, metrics=metrics, grads=grads)


@partial(jax.jit, static_argnums=0)  # one program for both trips, as they have the same objective
def forward(objective, params, batch):
    return objective.forward(params, {}, batch)


@partial(jax.jit, static_argnums=0)
def gradients(objective, params, batch):
    def loss(params):
        value, (_, metrics) = objective.loss(params, {}, batch, jax.random.key(0), jnp.zeros((), jnp.int32))
        return value, metrics

    return jax.value_and_grad(loss, has_aux=True)(params)


@partial(jax.jit, static_argnums=0)
def tower(module, params, *inputs):
    return module.apply({"params": params}, *inputs, hidden=True)


def test_sizes_come_from_the_shapes(original):
    image, text, config = original.objective.image, original.objective.text, original.config
    assert (image.image_size, image.patch, image.width, image.depth) == tuple(
        config[f"{'image_resolution' if k == 'resolution' else 'vision_' + k}"]
        for k in ("resolution", "patch_size", "width", "layers")
    )
    assert (original.objective.embed, text.vocab) == (config["embed_dim"], config["vocab_size"])
    assert (text.hidden, text.context) == (
        config["text_intermediate_size"],
        config["text_max_position_embeddings"],
    )


def test_intermediate_arrays(original):
    arrays, objective = original.arrays, original.objective
    for eye in ("left", "right"):
        out = tower(objective.image, original.params["image"], original.batch[eye])
        conv = arrays[f"inter.visual.conv1.{eye}"]
        close(out["patches"], conv.reshape(*conv.shape[:2], -1).swapaxes(1, 2))
        close(out["embedded"], arrays[f"inter.visual.ln_pre.{eye}"])
        stored = [key for key in arrays if re.fullmatch(rf"inter\.visual\.resblocks\.\d+\.{eye}", key)]
        assert stored  # not all blocks need be there
        for key in stored:
            close(out["hidden"][int(key.split(".")[3])], arrays[key])
        close(out["pooled"], arrays[f"inter.visual.ln_post.{eye}"])
    out = tower(objective.text, original.params["text"], original.batch["text"])
    close(out["embedded"], arrays["inter.bert.embeddings"])
    stored = [key for key in arrays if key.startswith("inter.bert.layer.")]
    assert stored
    for key in stored:
        close(out["hidden"][int(key.rsplit(".", 1)[1])], arrays[key])


@pytest.mark.parametrize(("theirs", "ours"), [*RAW.items(), *OUT.items()])
def test_features(original, outputs, theirs, ours):
    close(outputs[ours], original.arrays[theirs])


@pytest.mark.parametrize(("theirs", "ours"), SCALES.items())
def test_scales(original, outputs, theirs, ours):
    np.testing.assert_allclose(outputs[ours], original.arrays[theirs], rtol=1e-6)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("loss.total", "loss"),
        ("loss.global", "loss_patient"),
        ("loss.left", "loss_left"),
        ("loss.right", "loss_right"),
        ("loss.acc_i2t", "image_to_text"),
        ("loss.acc_t2i", "text_to_image"),
    ],
)
def test_loss_and_its_parts(original, trained, theirs, ours):
    np.testing.assert_allclose(trained.metrics[ours], original.arrays[theirs], rtol=0, atol=2e-5)
    np.testing.assert_allclose(trained.loss, original.arrays["loss.total"], rtol=0, atol=2e-5)


def test_every_array_of_the_forward_file_is_compared(original):
    inputs = {"in.left_uint8", "in.right_uint8", "in.left", "in.right", "in.tokens", "in.eos_index"}
    masking = {name for name in original.arrays if name.startswith("mask.")}
    rest = set(original.arrays) - inputs - masking - set(RAW) - set(OUT) - set(SCALES)
    assert all(name.startswith(("inter.visual.", "inter.bert.", "loss.")) for name in rest)


def test_every_gradient(original, trained):
    grads = from_fundax(original.objective, jax.tree.map(np.asarray, trained.grads))
    expected = load_file(original.folder / "grads.safetensors")
    assert grads.keys() == expected.keys()
    # Softmax does not see a key's bias: its gradient is 0 but for rounding, so queries, keys and values share a scale
    # (as they do where the original implementation keeps them in one tensor).
    largest: dict[str, float] = {}
    for name, value in expected.items():
        group = re.sub("query|key|value", "qkv", name)
        largest[group] = max(largest.get(group, 0.0), float(np.abs(value).max()))
    for name, value in expected.items():
        bound = 1e-5 * largest[re.sub("query|key|value", "qkv", name)]
        np.testing.assert_allclose(grads[name], value, rtol=0, atol=bound, err_msg=name)


def test_one_adamw_step_with_the_originals_groups(original):
    facts = json.loads((original.folder / "param_groups.json").read_text())
    adamw = facts["adamw"]
    grads = to_ours(original, load_file(original.folder / "grads.safetensors"))
    optimizer = optax.chain(
        optim.adamw(
            optim.constant(adamw["lr"]),
            betas=tuple(adamw["betas"]),
            eps=adamw["eps"],
            weight_decay=adamw["weight_decay"],
            decay=optim.decay_ret_clip,
        ),
        optim.clip_params({"^log_scale/": (0.0, MAX_LOG_SCALE)}),
    )

    @jax.jit
    def step(params, grads):
        updates, _ = optimizer.update(grads, optimizer.init(params), params)
        return optax.apply_updates(params, updates)

    stepped = from_fundax(original.objective, jax.tree.map(np.asarray, step(original.params, grads)))
    for name, value in load_file(original.folder / "after_one_adamw_step.safetensors").items():
        np.testing.assert_allclose(stepped[name], value, rtol=0, atol=1e-6, err_msg=name)


def test_the_decay_groups_are_the_originals(original):
    facts = json.loads((original.folder / "param_groups.json").read_text())
    decayed = optim.decay_mask(optim.decay_ret_clip)(original.params)
    marks = jax.tree.map(lambda yes, leaf: np.full(leaf.shape, yes, np.float32), decayed, original.params)
    ours = {name for name, mark in from_fundax(original.objective, marks).items() if mark.all()}
    assert ours == set(facts["decay"])
    assert set(original.state) - ours == set(facts["no_decay"])


def test_flip_masking_with_the_originals_noise(original):
    objective = original.objective
    (masked,) = (name for name in original.arrays if name.startswith("mask.visual_left_ratio"))
    masking = objective.image.clone(mask_ratio=float(masked.removeprefix("mask.visual_left_ratio")))
    pooled = tower(masking, original.params["image"], original.batch["left"], original.arrays["mask.noise"])
    visual = pooled["pooled"] @ original.params["project"]["image"]["kernel"]
    close(visual, original.arrays[masked])


def test_schedule(golden):
    with np.load(golden / "retclip" / "schedule_posembed.npz") as file:
        curves = {name: file[name] for name in file.files if not name.startswith("pos_")}
    assert curves
    for name, expected in curves.items():
        # cosine_lr_base3e5_warm50_steps400: to 3e-5 in 50 steps, and to 0 in 400
        mantissa, exponent, warmup, steps = re.fullmatch(
            r"cosine_lr_base([\d.]+)e(\d+)_warm(\d+)_steps(\d+)", name
        ).groups()
        schedule = optim.cosine(float(f"{mantissa}e-{exponent}"), int(steps), warmup=int(warmup))
        ours = np.array([schedule(step) for step in range(len(expected))])
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("direction", ["up", "down"])
def test_positions_resized_by_the_originals_rule(golden, direction):
    with np.load(golden / "retclip" / "schedule_posembed.npz") as file:
        table, expected = file[f"pos_{direction}_in"], file[f"pos_{direction}_out"]
    np.testing.assert_allclose(resize_positions(table, len(expected), aligned_corners), expected, rtol=0, atol=2e-5)


def close(ours, theirs):
    """Within FEATURES; of arrays with numbers above 5, relative to the largest of them."""
    bound = FEATURES * max(1.0, float(np.abs(theirs).max()) / 5)
    np.testing.assert_allclose(np.asarray(ours), theirs, rtol=0, atol=bound)


def to_ours(original, state):
    """Any arrays under the original's keys (gradients, say) as a tree of ours."""
    image, text = original.config["vision_head_width"], original.config["text_num_attention_heads"]
    params = to_fundax(state, head_width=image, text_heads=text)[1]
    assert flatten(params).keys() == flatten(original.params).keys()
    return jax.tree.map(jnp.asarray, params)
