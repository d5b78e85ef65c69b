"""FLAIR's numbers: every array that the original code produced, before and after a trip through its own key names."""

import json
import re
from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from fundax.interop.flair import from_fundax, to_fundax
from fundax.losses.contrastive import bounded, label_aware
from fundax.objectives.flair import FLAIR
from fundax.optim import flair_schedule

pytestmark = pytest.mark.vectors("flair")

CASES = ("distinct", "dup", "allsame", "clamped", "negclamp")

# The README's tolerances of the image tower: the error of fp64, and the largest magnitude it belongs to (1 where none is
# given). For the pooled vectors its 1e-4 and 2e-4 have the digits that fp64 shows.
EVALUATION, TRAINING = (1e-4, 7.0), (2e-4, 3.13)
POOLED = {"eval_pooled": (1.1e-4, 7.22), "train_pooled": (2.3e-4, 3.13)}
GRADIENTS, STATISTICS = (2e-2, 130.0), (1e-4, 34.0)

# What our fp32 may lose, in units of what the original's fp32 lost. A sum of n terms kept in L lanes has a rounding error that
# grows as n / sqrt(2 L), and a product that is rounded before it is added makes that at most sqrt(2) larger. So 4 lanes
# without fused multiply-add (SSE4.2) lose up to sqrt(16 / 4) * sqrt(2) = 2.8 times what 16 lanes with it (AVX-512) lose.
LOSS = 3.0


def within(tolerance, expected):
    """A tolerance of the README for this array: of vectors with larger numbers it grows as they do."""
    error, scale = tolerance
    return error * max(1.0, float(np.abs(expected).max()) / scale)


def wide(tree):
    """In fp64; under jax.enable_x64."""
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), tree)


@pytest.fixture(scope="module")
def original(golden):
    """The original's arrays with our model of its weights."""
    folder = golden / "flair"
    config = json.loads((folder / "config.json").read_text())
    (vision,) = folder.glob("vision_resnet*.safetensors")
    state = load_file(vision) | load_file(folder / "text_tinybert.safetensors")
    facts = {"image_size": config["image_size"], "text_heads": config["bert"]["num_attention_heads"]}
    model = to_fundax(state, **facts)
    objective, params, extra = model
    vision, text = (dict(np.load(folder / name)) for name in ("vision_io.npz", "text_io.npz"))
    params, extra = jax.tree.map(jnp.asarray, (params, extra))
    return SimpleNamespace(
        folder=folder,
        config=config,
        state=state,
        objective=objective,
        params=params,
        extra=extra,
        vision=vision,
        text=text,
    )


@pytest.fixture(scope="module")
def images(original):
    return jnp.asarray(original.vision["x"].transpose(0, 2, 3, 1))


@pytest.fixture(scope="module")
def trained(original, images):
    """One train-mode pass of the image tower under the original's linear loss, in fp64: value, statistics, gradients.

    In fp32 the gradients of the first layers depend on the rounding of single activations deep in the network: one
    that is 9e-6 in these vectors switches its ReLU, and a gradient of 130 moves by 0.9.
    """
    weights = np.linspace(-1, 1, original.vision["train_proj"].size).reshape(original.vision["train_proj"].shape)
    with jax.enable_x64():
        tower, params, pixels = original.objective.image.clone(dtype="float64"), wide(original.params), wide(images)
        statistics = wide(original.extra["image"])
        weights = jnp.asarray(weights)

        def loss(params):
            variables = {"params": params["image"], "batch_stats": statistics}
            out, new = tower.apply(variables, pixels, True, mutable=["batch_stats"])
            x = out["pooled"] / jnp.linalg.norm(out["pooled"], axis=1, keepdims=True)
            x = x @ params["project"]["image"]["kernel"]
            x = x / jnp.linalg.norm(x, axis=1, keepdims=True)
            return (x * weights).sum(), new["batch_stats"]

        (value, statistics), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
        narrow = lambda tree: jax.tree.map(lambda x: np.asarray(x, np.float32), tree)  # noqa: E731
        return SimpleNamespace(loss=float(value), statistics=narrow(statistics), grads=narrow(grads))


def test_sizes_come_from_the_shapes(original):
    config, image, text = original.config, original.objective.image, original.objective.text
    assert (image.width_first, list(image.blocks)) == (config["resnet"]["width"], config["resnet"]["blocks"])
    assert image.width == config["resnet"]["pooled"]
    assert (text.vocab, text.width, text.depth, text.hidden) == tuple(
        config["bert"][key] for key in ("vocab_size", "hidden_size", "num_hidden_layers", "intermediate_size")
    )
    assert original.objective.embed == config["proj_dim"]


def arrays_of(objective, params, extra, images):
    """Every array of the image tower that the vectors hold, under the original's names; jitted as one."""
    tower, variables = objective.image, {"params": params["image"], "batch_stats": extra["image"]}
    out = tower.apply(variables, images, hidden=True)
    hidden, trained = out["hidden"], tower.apply(variables, images, True, mutable=["batch_stats"])[0]
    stages = {"conv1": hidden["stem"]} | {f"layer{i}": hidden[f"stage{i}"] for i in range(1, 1 + len(tower.blocks))}
    arrays = {f"eval_mean_hw_{name}": x.mean((1, 2)) for name, x in stages.items()}
    arrays |= {f"eval_{name}": x.transpose(0, 3, 1, 2) for name, x in stages.items()}
    for mode, pooled in (("eval", out["pooled"]), ("train", trained["pooled"])):
        arrays |= {f"{mode}_pooled": pooled, f"{mode}_proj": features_of(objective, params, pooled)}
    return arrays


def features_of(objective, params, pooled):
    """Unit features of pooled vectors, in the dtype that these have."""
    unit = lambda x: x / jnp.linalg.norm(x, axis=1, keepdims=True)  # noqa: E731
    return unit(unit(pooled) @ params["project"]["image"]["kernel"])


@pytest.fixture(scope="module")
def computed(original, images):
    """The image tower's arrays in our fp32 and in fp64."""
    run = jax.jit(arrays_of, static_argnums=0)
    ours = run(original.objective, original.params, original.extra, images)
    with jax.enable_x64():
        exact = replace(original.objective, image=original.objective.image.clone(dtype="float64"))
        exact = jax.tree.map(np.asarray, run(exact, wide(original.params), wide(original.extra), wide(images)))
    assert all(x.dtype == np.float64 for x in exact.values())
    return SimpleNamespace(ours=ours, exact=exact)


def tolerance_of(name, exact):
    """The README's tolerance of an array of the image tower."""
    if name in POOLED:
        return POOLED[name]
    error, scale = TRAINING if name.startswith("train_") else EVALUATION
    if exact[name].ndim == 4 and exact[name].shape[1] == exact["eval_pooled"].shape[1]:
        # the map that is pooled: its h w positions round independently, so one is sqrt(h w) times as far as their mean
        error *= np.sqrt(np.prod(exact[name].shape[2:]))
    return error, scale


def test_image_tower_in_fp64_and_in_fp32(original, computed):
    """fp64 is as near to the original's arrays as the README says: the distance is what the original's fp32 lost.

    Ours may lose LOSS times that, whatever the processor; so it is at most (1 + LOSS) times the tolerance from theirs.
    """
    names = [name for name in original.vision if re.fullmatch(r"eval_.+|train_(pooled|proj)", name)]
    assert {"eval_pooled", "eval_proj", "train_pooled", "train_proj"} < set(names)
    for name in names:
        expected, exact = original.vision[name], computed.exact[name]
        close(exact, expected, within(tolerance_of(name, computed.exact), expected), f"{name} in fp64")
        close(computed.ours[name], exact, LOSS * np.abs(expected - exact).max(), f"{name} in fp32")


def test_the_objective_gives_what_its_tower_gives(original, images, computed):
    """Two programs of one computation: they may round apart, by no more than either may lose."""
    features = jax.jit(original.objective.forward)(original.params, original.extra, {"image": images})
    for ours, name in (("visual", "eval_pooled"), ("image_features", "eval_proj")):
        exact = computed.exact[name]
        close(features[ours], exact, LOSS * np.abs(original.vision[name] - exact).max(), name)
    pooled = jnp.asarray(computed.exact["train_pooled"], jnp.float32)
    projected = original.objective._projected(original.params, "image", pooled)["image_features"]
    close(projected, computed.exact["train_proj"], 1e-6, "train_proj")


def test_a_written_state_dict_is_the_originals_bit_for_bit(original):
    again = from_fundax(original.objective, original.params, original.extra)
    assert again.keys() == original.state.keys()
    # FLAIR does not use BERT's pooler, which is written as zeros
    same = [key for key in original.state if "pooler" not in key]
    assert all(again[key].tobytes() == original.state[key].tobytes() for key in same)
    assert all(again[key].dtype == original.state[key].dtype for key in original.state)


def test_loss_and_gradients_of_the_image_tower(original, trained):
    expected = original.vision["train_loss_lin"]
    close(trained.loss, expected, within(TRAINING, expected), "loss")
    grads = from_fundax(original.objective, trained.grads, original.extra)
    names = {
        "conv1": "vision_model.model.conv1.weight",
        "bn1_w": "vision_model.model.bn1.weight",
        "proj": "vision_model.projection_head_vision.projection.weight",
    }
    stored = [key.removeprefix("train_grad_") for key in original.vision if key.startswith("train_grad_")]
    assert set(names) < set(stored)
    for short in stored:
        name = names.get(short) or re.sub(r"l(\d)_(\d+)_(\w+)", r"vision_model.model.layer\1.\2.\3.weight", short)
        expected = original.vision[f"train_grad_{short}"]
        close(grads[name], expected, within(GRADIENTS, expected), name)


def test_running_statistics_after_one_step(original, trained):
    after = from_fundax(original.objective, original.params, {"image": trained.statistics})
    expected = load_file(original.folder / "vision_bn_after_train_step.safetensors")
    ours = {name: after[name if name in after else f"vision_model.model.{name}"] for name in expected}
    assert len(expected) == sum(name.endswith(("running_mean", "running_var", "num_batches_tracked")) for name in after)
    for name, value in expected.items():
        close(ours[name], value, within(STATISTICS, value), name)


def test_text_tower_with_padding_and_without(original):
    forward = jax.jit(original.objective.forward)
    ids = jnp.asarray(original.text["input_ids"], jnp.int32)
    assert np.array_equal(
        original.text["input_ids"] != original.objective.text.pad_id, original.text["attention_mask"] == 1
    )
    tower = jax.jit(lambda params, ids: original.objective.text.apply({"params": params}, ids, hidden=True))
    out = tower(original.params["text"], ids)
    states = (out["embedded"], *out["hidden"])
    stored = [name for name in original.text if name.startswith("hidden_")]
    assert "hidden_last" in stored
    for name in stored:
        place = name.removeprefix("hidden_")
        close(states[-1 if place == "last" else int(place)], original.text[name], 1e-6 * 5, name)
    assert len(states) == original.text["n_hidden_states"]
    close(out["pooled"], original.text["pooled_preproj"], 2e-6)
    close(forward(original.params, original.extra, {"text": ids})["text_features"], original.text["embed"], 2e-6)
    alone = jnp.asarray(original.text["single_input_ids"], jnp.int32)
    single = forward(original.params, original.extra, {"text": alone})["text_features"]
    close(single, original.text["single_embed"], 2e-6)
    assert np.abs(single[0] - original.text["embed"][0]).max() > 1e-2  # padding is averaged in: the original's quirk


def test_text_pooled_over_words_alone(original):
    tower = original.objective.text.clone(pool="mean")
    ids = jnp.asarray(original.text["input_ids"], jnp.int32)
    close(
        jax.jit(tower.apply)({"params": original.params["text"]}, ids)["pooled"],
        original.text["masked_mean_pooled_ALT"],
        2e-6,
    )


@pytest.mark.parametrize("project", [True, False])
@pytest.mark.parametrize("normalize", [True, False])
def test_projection_and_its_flags(golden, project, normalize):
    arrays = np.load(golden / "flair" / "projection_layer.npz")
    objective = FLAIR(None, None, project=project, normalize=normalize)
    params = {"project": {"image": {"kernel": jnp.asarray(arrays["W_torch_out_in"].T)}}}
    out = objective._projected(params, "image", jnp.asarray(arrays["x"]))["image_features"]
    close(out, arrays[f"y_projection{int(project)}_norm{int(normalize)}"], 1e-6)


@pytest.mark.parametrize("negatives", ["global", "ring", "local"])
@pytest.mark.parametrize("case", CASES)
def test_contrastive_loss_and_its_gradients(golden, case, negatives):
    arrays = np.load(golden / "flair" / "contrastive_loss.npz")
    image, text, log_scale = (jnp.asarray(arrays[f"{case}_{k}"]) for k in ("img", "txt", "logit_scale_in"))
    category = jnp.asarray(arrays[f"{case}_cat"], jnp.int32)

    def loss(image, text, log_scale):
        return label_aware(image, text, jnp.exp(bounded(log_scale)), category, negatives=negatives)

    value, grads = jax.jit(jax.value_and_grad(loss, (0, 1, 2)))(image, text, log_scale)
    close(bounded(log_scale), arrays[f"{case}_logit_scale_after"], 1e-6)
    close(value, arrays[f"{case}_loss"], 5e-7 * max(1.0, float(arrays[f"{case}_loss"])))
    for ours, name in zip(grads, ("img", "txt", "logit_scale"), strict=True):
        expected = arrays[f"{case}_grad_{name}"]
        close(ours, expected, 3e-6 * max(1.0, np.abs(expected).max()), name)


def test_one_image_against_texts(original, computed):
    """fp64 gives the original's logits. Our fp32 loses as many digits of the features as the original's may of any image's.

    The original's three images show it, for the loss of the four logits of one image is the luck of one direction:
    a logit is the scale times the product with a unit vector, so it may lose the scale times what the features lost.
    """
    arrays = np.load(original.folder / "e2e_io.npz")
    pixels, ids = arrays["preprocessed"].transpose(0, 2, 3, 1), jnp.asarray(arrays["input_ids"], jnp.int32)
    text = jax.jit(original.objective.forward)(original.params, original.extra, {"text": ids})
    with jax.enable_x64():  # rounding in fifty layers of fp32 alone costs 3e-5
        tower = original.objective.image.clone(dtype="float64")
        variables = {"params": original.params["image"], "batch_stats": original.extra["image"]}
        pooled = np.asarray(jax.jit(tower.apply)(variables, jnp.asarray(pixels, jnp.float64))["pooled"], np.float32)
    image = original.objective._projected(original.params, "image", jnp.asarray(pooled))["image_features"]
    logits = text["logit_scale"] * image @ text["text_features"].T
    close(
        logits, arrays["logits"], 6e-6 * np.abs(arrays["logits"]).max()
    )  # the original's fp32 is 2.1e-5 off fp64 at 4.4
    close(jax.nn.softmax(logits), arrays["probs"], 1e-5)
    whole = jax.jit(original.objective.forward)(original.params, original.extra, {"image": jnp.asarray(pixels)})
    lost = np.linalg.norm(original.vision["eval_proj"] - computed.exact["eval_proj"], axis=1).max()
    close(np.linalg.norm(whole["image_features"] - image, axis=1), 0, LOSS * lost)
    single = text["logit_scale"] * whole["image_features"] @ text["text_features"].T
    close(single, logits, text["logit_scale"] * LOSS * lost)


def test_a_class_is_the_plain_mean_of_its_prompts(original):
    arrays = np.load(original.folder / "e2e_io.npz")
    forward = jax.jit(original.objective.forward)
    for i in range(len(original.config["e2e"]["ensemble_classes"])):
        ids = jnp.asarray(arrays[f"ensemble_ids_{i}"], jnp.int32)
        mean = np.asarray(forward(original.params, original.extra, {"text": ids})["text_features"]).mean(0)
        close(mean, arrays["ensemble_text_embeds"][i], 2e-6)
        close(np.sqrt((mean * mean).sum()), arrays["ensemble_norms"][i], 2e-6)


def test_schedule(golden):
    arrays = np.load(golden / "flair" / "lr_schedule.npz")
    config = json.loads((golden / "flair" / "config.json").read_text())["lr_schedule"]
    epochs = {"horizon": config["horizon_epochs"], "warmup": config["warmup_epoch"]}
    schedule = flair_schedule(config["base_lr"], config["its_per_epoch"], **epochs)
    curves = [name for name in arrays.files if arrays[name].ndim]
    assert "lr" in curves
    for name in curves:
        ours = np.array([schedule(step) for step in range(len(arrays[name]))])
        np.testing.assert_allclose(ours, arrays[name], rtol=1e-5, err_msg=name)


def close(ours, theirs, bound, name=""):
    np.testing.assert_allclose(np.asarray(ours), theirs, rtol=0, atol=bound, equal_nan=False, err_msg=name)
