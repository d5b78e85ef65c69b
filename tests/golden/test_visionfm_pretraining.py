"""VisionFM's pretraining: every array of the original's ViT, head, loss, masks, schedules, and two of its training steps."""

import dataclasses
import json
import random
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from safetensors.numpy import load_file

from data_pipelines.transforms.multi_crop import Ratio, block_mask, random_mask
from fundax import optim
from fundax.encoders import vit as vit_outputs
from fundax.encoders.heads import IBOTHead
from fundax.encoders.positions import pixel_centres, resize_positions
from fundax.encoders.saliency import attention_maps
from fundax.encoders.vit import ViT
from fundax.interop import visionfm, vit
from fundax.objectives.ibot import IBOT, Temperature, teacher_part
from fundax.params import flatten

pytestmark = pytest.mark.vectors("visionfm")


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
    tower = vit.tower_of(state, "vit_tiny", heads=config["vit_tiny"]["num_heads"])
    with np.load(folder / "vit_tiny.npz") as file:
        return tower, vit.read(tower, state, "vit_tiny"), dict(file), state


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
        (ours,) = jax.jit(attention_maps, static_argnums=0)(tower, params, image)
        close(ours, arrays[key], name=key)
    layers = jax.jit(vit_outputs.intermediate_layers, static_argnums=(0, 3))
    for key in (k for k in arrays if k.startswith("inter")):
        size, last, index = key.removeprefix("inter").split("_")
        outputs = layers(tower, params, pixels(arrays[f"x{size}"]), int(last[1:]))
        close(outputs[int(index)], arrays[key], name=key)


def test_positions_by_both_rules(tiny):
    tower, params, arrays, state = tiny
    table = params["position"]
    for key in (k for k in arrays if k.startswith("pos_")):
        height, width = (int(n) // tower.patch for n in key.removeprefix("pos_").split("x"))
        close(tower._interpolated(table, (height, width))[None], arrays[key], name=key)
    for key in (k for k in arrays if k.startswith("resize_pos_embed_")):
        rows = int(key.rsplit("_", 1)[1]) ** 2 + 1
        close(resize_positions(table, rows, pixel_centres)[None], arrays[key], name=key)
        close(vit.fit_positions(state, rows)["pos_embed"], arrays[key], name=key)


def test_mean_pooling_and_layer_scale(folder, config):
    states = load_file(folder / "vit_variants.safetensors")
    with np.load(folder / "vit_variants.npz") as file:
        arrays = dict(file)
    heads, image = config["vit_variants"]["num_heads"], pixels(arrays[f"x{config['vit_variants']['img_size']}"])
    for variant in ("meanpool", "layerscale"):
        state = under(states, f"{variant}.")
        tower = vit.tower_of(state, variant, heads=heads)
        params = vit.read(tower, state, variant)
        out = jax.jit(tower.apply)({"params": params}, image)
        tokens = out["tokens"]
        if variant == "meanpool":  # the original implementation puts the pooled vector in the class token's row
            tokens = jnp.concatenate([out["pooled"][:, None], tokens[:, 1:]], axis=1)
        close(tokens, arrays[f"{variant}_out"], name=variant)
        places = {k: int(k.removeprefix(f"{variant}_inter")) for k in arrays if k.startswith(f"{variant}_inter")}
        # of as many last blocks as are numbered, which a deeper tower may have more of
        layers_of = jax.jit(vit_outputs.intermediate_layers, static_argnums=(0, 3))
        outputs = layers_of(tower, params, image, 1 + max(places.values()))
        for key, place in places.items():
            close(outputs[place], arrays[key], name=key)


def test_rates_of_stochastic_depth(folder, config):
    with np.load(folder / "vit_variants.npz") as file:
        expected = file["drop_path_rates"]
    facts = config["vit_variants"]
    ours = jnp.linspace(0, facts["drop_path_rate"], facts["drop_path_depth"])  # as layers.Stack makes them
    np.testing.assert_allclose(ours, expected, rtol=1e-5)


# -------------------------------------------------------------------------------------------------- the head


@pytest.mark.parametrize("which", ["student", "teacher", "unshared"])
def test_head(folder, which):
    state = load_file(folder / "ibot_head.safetensors")
    with np.load(folder / "ibot_head.npz") as file:
        arrays = dict(file)
    head, params = visionfm.read_head(state, f"{which}.", frozen_scale=which != "unshared")
    out = jax.jit(head.apply)({"params": params}, arrays["tokens"])
    close(out["token"], arrays[f"{which}_cls"], name="token")
    close(out["patch"], arrays[f"{which}_patch"], name="patch")
    alone = jax.jit(partial(head.apply, method="token"))({"params": params}, arrays["cls_only"])
    close(alone, arrays[f"{which}_2d"], name="class tokens alone")
    if f"{which}_trainable" in arrays:
        tokens = arrays["tokens"]
        weight = jax.jit(jax.grad(lambda p: sum(jnp.sum(x**2) for x in head.apply({"params": p}, tokens).values())))
        trained = {path for path, g in flatten(weight(params)).items() if np.abs(g).max() > 0}
        theirs = {row.path for row in visionfm.head_rows(head) if row.keys[0] in set(arrays[f"{which}_trainable"])}
        assert trained == theirs


# -------------------------------------------------------------------------------------- the loss and its schedules


def temperatures(facts):
    epochs = facts["warmup_teacher_temp_epochs"]
    return {
        "token_temperature": Temperature(facts["warmup_teacher_temp"], facts["teacher_temp"], epochs),
        "patch_temperature": Temperature(
            facts["warmup_teacher_temp2"], facts["teacher_temp2"], epochs, facts["mim_start_epoch"]
        ),
        "token_weight": facts["lambda1"],
        "patch_weight": facts["lambda2"],
        "mask_start": facts["mim_start_epoch"],
    }


def objective_of_loss(facts) -> IBOT:
    tower = ViT(8, 2, 8, 1, 2, mask_token=True, any_size=True)
    return IBOT(
        image=tower, head=IBOTHead(facts["K"]), steps=2, epoch_steps=1, global_crops=facts["n_global"],
        local_crops=facts["n_local"], student_temperature=facts["student_temp"],
        center_momentum=facts["center_momentum"], patch_center_momentum=facts["center_momentum2"],
        **temperatures(facts),
    )  # fmt: skip


def by_image(x, batch: int):
    """The original's rows, crop after crop, as [B crops ...]."""
    return jnp.asarray(x.reshape(-1, batch, *x.shape[1:]).swapaxes(0, 1))


@pytest.mark.parametrize("call", [0, 1])
def test_loss_with_gradients_and_centers(folder, config, call):
    with np.load(folder / "ibot_loss.npz") as file:
        arrays = dict(file)
    assert config["ibot_loss"]
    for setting, facts in config["ibot_loss"].items():
        compare_loss(under(arrays, f"{setting}_"), facts, call, setting)


def compare_loss(arrays, facts, call: int, setting: str) -> None:
    objective, batch = objective_of_loss(facts), facts["B"]
    now = under(arrays, f"s{call}_")
    before = under(arrays, "s0_") if call else None
    center = {
        "token": (arrays["center_init"] if before is None else before["center_after"])[0],
        "patch": (arrays["center2_init"] if before is None else before["center2_after"])[0, 0],
    }
    rows = [now["student_cls"], now.get("student_local_cls", np.empty((0, facts["K"]), np.float32))]
    student = {"token": by_image(np.concatenate(rows), batch), "patch": by_image(now["student_patch"], batch)}
    teacher = {"token": by_image(now["teacher_cls"], batch), "patch": by_image(now["teacher_patch"], batch)}
    masked = now["masks"].swapaxes(0, 1)

    def run(student, teacher):
        loss, moved, metrics = objective.compare(student, teacher, center, masked, int(now["epoch"]))
        return loss, (moved, metrics)

    ((loss, (moved, metrics)), grads) = jax.jit(jax.value_and_grad(run, has_aux=True))(student, teacher)
    for ours, theirs in ((loss, "loss"), (metrics["loss_token"], "loss_cls"), (metrics["loss_patch"], "loss_patch")):
        np.testing.assert_allclose(ours, now[theirs], rtol=1e-5, err_msg=f"{setting} {theirs}")
    close(moved["token"][None], now["center_after"], name=f"{setting} center")
    close(moved["patch"][None, None], now["center2_after"], name=f"{setting} center2")
    wanted = [now["grad_student_cls"], now.get("grad_student_local_cls", rows[1])]
    close(grads["token"], by_image(np.concatenate(wanted), batch), name=f"{setting} gradient of the token logits")
    close(grads["patch"], by_image(now["grad_student_patch"], batch), name=f"{setting} gradient of the patch logits")
    for name, key in (("token_temperature", "teacher_temp_schedule"), ("patch_temperature", "teacher_temp2_schedule")):
        ours = [getattr(objective, name).at(epoch) for epoch in range(facts["nepochs"])]
        np.testing.assert_allclose(ours, arrays[key], rtol=1e-5, err_msg=f"{setting} {key}")


def test_schedules(folder, config):
    assert {"lr", "wd", "momentum"} <= config["schedules"].keys()
    with np.load(folder / "schedules.npz") as file:
        curves = {name: file[name] for name in config["schedules"]}
    for name, expected in curves.items():
        facts = config["schedules"][name]
        steps, warmup = (facts.get(key, 0) * facts["niter_per_ep"] for key in ("epochs", "warmup_epochs"))
        schedule = jax.jit(optim.cosine_schedule(facts["base"], facts["final"], steps, warmup))
        ours = [schedule(i) for i in range(len(expected))]
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-12, err_msg=name)


def ratio_of(name: str) -> Ratio | None:
    """The masking of a golden key: block_p0_03_v0_02_seed0 is means 0 and 0.3, spreads 0 and 0.2; None before its start."""
    found = re.match(r"(?:block|rand)_p([\d_]+)_v([\d_]+)_seed\d+(?:_start(\d+)_epoch(\d+))?$", name)
    if found is None:
        return Ratio()  # the small grid: the original's default
    means, spreads = ([float(f"{n[0]}.{n[1:] or 0}") for n in found[i].split("_")] for i in (1, 2))
    if found[3] is not None and int(found[4]) < int(found[3]):
        return None
    return Ratio(tuple(zip(means, spreads, strict=True)))


def test_masks_bit_for_bit(folder):
    with np.load(folder / "masks.npz") as file:
        arrays = dict(file)
    for name, expected in arrays.items():
        seed, ratio = int(re.search(r"seed(\d+)", name)[1]), ratio_of(name)
        draw, shuffle = random.Random(seed), np.random.RandomState(seed)
        crops, rows, columns = expected.shape
        for i in range(crops):
            budget = 0.0 if ratio is None else ratio.draw(draw) * rows * columns
            block = name.startswith("block")
            ours = block_mask(rows, columns, budget, draw) if block else random_mask(rows, columns, budget, shuffle)
            np.testing.assert_array_equal(ours, expected[i], err_msg=f"{name} {i}")
    assert len(arrays) >= 5


# ------------------------------------------------------------------------------------------- two training steps


@pytest.fixture(scope="module")
def steps(folder):
    with np.load(folder / "ibot_train_step.npz") as file:
        return load_file(folder / "ibot_train_step.safetensors"), dict(file)


def read_run(states, arrays, name: str, config):
    facts = config["ibot_train_step"]
    centers = {f"ibot_loss.{key}": arrays[f"{name}_{key}"] for key in ("center", "center2")}
    fields = {"local_crops": facts["n_local"], "local_size": facts["local_size"], "epoch_steps": 2}
    state = under(states, f"{name}.") | centers
    return visionfm.to_fundax(state, heads=facts["num_heads"], **fields, **temperatures(facts))


def batch_of(arrays, step: int, facts):
    views = {
        name: jnp.stack([pixels(arrays[f"step{step}_{name}{i}"]) for i in range(count)], axis=1)
        for name, count in (("global", facts["n_global"]), ("local", facts["n_local"]))
    }
    masks = [arrays[f"step{step}_mask{i}"] for i in range(facts["n_global"])]
    return views | {"masked": jnp.stack(masks, axis=1)}


def optimizer_of(facts, arrays):
    """The original implementation's, with the rates and decays of its steps."""
    count = len(facts["epochs"])
    rate, decay = (jnp.asarray([arrays[f"step{i}_{name}"] for i in range(count)]) for name in ("lr", "wd"))
    adamw = optim.adamw(
        lambda step: rate[step], weight_decay=lambda step: decay[step], decay=optim.decay_visionfm,
        late=("head/last_layer", sum(epoch < facts["freeze_last_layer"] for epoch in facts["epochs"])),
    )  # fmt: skip
    return optim.freeze(optax.chain(optim.clip_leaves(facts["clip_grad"]), adamw), "head/last_layer2?/scale")


def test_two_training_steps(steps, config):
    states, arrays = steps
    facts = config["ibot_train_step"]
    objective, params, extra = read_run(states, arrays, "init", config)
    optimizer = optimizer_of(facts, arrays)

    @jax.jit
    def run(momentum, params, extra, opt, batch, step):
        # the loss first moves the teacher by the momentum of the step before: given here, as the original's is in its arrays
        now = dataclasses.replace(objective, momentum=(momentum, momentum), steps=10**6)
        loss = jax.value_and_grad(now.loss, has_aux=True)
        (_, (extra, metrics)), grads = loss(params, extra, batch, jax.random.key(0), step)
        updates, opt = optimizer.update(grads, opt, params)
        return optax.apply_updates(params, updates), extra, opt, metrics, grads, updates

    opt, momentum = jax.jit(optimizer.init)(params), 1.0  # the original's teacher begins apart from its student
    smallest = jax.tree.map(lambda p: np.full(p.shape, np.inf, np.float32), params)
    for i, epoch in enumerate(facts["epochs"]):
        batch, step = batch_of(arrays, i, facts), jnp.int32(epoch * objective.epoch_steps + 1)
        params, extra, opt, metrics, grads, updates = run(momentum, params, extra, opt, batch, step)
        for ours, theirs in (("loss", "loss"), ("loss_token", "cls"), ("loss_patch", "patch")):
            np.testing.assert_allclose(
                metrics[ours], arrays[f"step{i}_{theirs}"], rtol=1e-5, err_msg=f"step {i} {ours}"
            )
        momentum = float(arrays[f"step{i}_teacher_momentum"])
        after = extra | {"teacher": jax.jit(optim.ema_update)(extra["teacher"], teacher_part(params), momentum)}
        np.testing.assert_allclose(optim.rate_of(opt), arrays[f"step{i}_lr"], rtol=1e-5)
        smallest = jax.tree.map(  # of the steps that moved a parameter: a frozen one has no noise
            lambda a, g, u: np.minimum(a, np.abs(g)) if np.any(u) else a, smallest, grads, updates
        )
        compare_run(objective, params, after, states, arrays, f"after{i}", smallest)


def compare_run(objective, params, extra, states, arrays, name: str, smallest) -> None:
    """All of the state, but what Adam made of rounding noise: it turns a gradient of any size into a step of the rate.

    So the student's elements with a gradient below 1e-5 (README of the vectors) are left out, and with them the
    key's biases, whose gradient is 0 but for rounding: softmax does not see them.
    """
    ours = visionfm.from_fundax(objective, params, extra)
    slopes = visionfm.from_fundax(objective, jax.tree.map(np.asarray, smallest), extra)
    for key in ("center", "center2"):
        close(ours.pop(f"ibot_loss.{key}"), arrays[f"{name}_{key}"], name=key)
    theirs = under(states, f"{name}.")
    assert ours.keys() == theirs.keys()
    left_out = 0
    for key, value in theirs.items():
        noise = np.zeros(value.shape, bool)
        if key.startswith("student."):
            noise = slopes[key] < 1e-5
        left_out += noise.sum() * (not key.endswith("qkv.bias"))
        close(np.where(noise, value, ours[key]), value, name=f"{name}.{key}")
    assert left_out < 0.02 * sum(value.size for value in theirs.values())


def test_decay_groups(steps, config):
    states, arrays = steps
    objective, params, _ = read_run(states, arrays, "init", config)
    marks = jax.tree.map(
        lambda yes, leaf: np.full(leaf.shape, yes, np.float32), optim.decay_mask(optim.decay_visionfm)(params), params
    )
    rows = [row for row in visionfm.rows(objective, {}) if row.path.startswith("student/")]
    flat = flatten({"student": marks})
    ours = {row.keys[0].removeprefix("student."): bool(flat[row.path].all()) for row in rows}
    del ours["head.last_layer.weight_g"]  # frozen, so in neither of the original's groups
    assert {key for key, yes in ours.items() if yes} == set(arrays["group_decay"])
    assert {key for key, yes in ours.items() if not yes} == set(arrays["group_nodecay"])


def test_checkpoint_round_trip_is_bit_for_bit(steps, config):
    states, arrays = steps
    name = f"after{len(config['ibot_train_step']['epochs']) - 1}"
    objective, params, extra = read_run(states, arrays, name, config)
    again = visionfm.from_fundax(objective, params, extra)
    expected = under(states, f"{name}.")
    assert all(again[key].tobytes() == value.tobytes() for key, value in expected.items())
