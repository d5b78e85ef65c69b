"""VisionFM's dense decoders: UNETR (eval, train, running statistics), the linear head, Dice + focal, landmarks."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from fundax.encoders.unetr import UNETR, Linear
from fundax.evals.landmarks import distances
from fundax.interop import unetr as layout
from fundax.losses import dense as losses
from fundax.params import flatten

pytestmark = pytest.mark.vectors("visionfm")
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}  # the README's independent implementation: 9e-6 at worst


@pytest.fixture(scope="module")
def files(golden):
    config = json.loads((golden / "visionfm" / "config.json").read_text())
    with np.load(golden / "visionfm" / "unetr.npz") as stored:
        arrays = dict(stored)
    parts = [load_file(path) for path in (golden / "visionfm").glob("unetr_part*.safetensors")]
    return config["unetr"], arrays, {k: v.astype(np.float32) for part in parts for k, v in part.items()}


@pytest.fixture(scope="module")
def decoder(files):
    config, arrays, state = files
    module = UNETR(config["num_classes"], config["patch_dim"], config["base_channel"])
    params, statistics = layout.read(module, state, config["embed_dim"])
    return module, {"params": params, "batch_stats": statistics}, inputs(arrays["feats"], arrays["image"])


def inputs(feats, image):
    return tuple(jnp.asarray(z) for z in feats), last(image)


def last(x):
    """Channels from the second axis, as torch has them, to the last."""
    return jnp.moveaxis(jnp.asarray(x), 1, -1)


def test_unetr_without_training(files, decoder):
    module, variables, (tokens, image) = decoder
    out = jax.jit(module.apply)(variables, tokens, image)
    np.testing.assert_allclose(out, last(files[1]["out_eval"]), **TOLERANCE)


def test_unetr_with_statistics_of_the_batch(files, decoder):
    module, variables, (tokens, image) = decoder
    train = jax.jit(lambda v, z, x: module.clone(dropout=0.0).apply(v, z, x, train=True, mutable=["batch_stats"]))
    out, moved = train(variables, tokens, image)
    np.testing.assert_allclose(out, last(files[1]["out_train_nodrop"]), **TOLERANCE)
    state = layout.write(module, variables["params"], moved["batch_stats"])
    wanted = {k.removeprefix("bn_after."): v for k, v in files[1].items() if k.startswith("bn_after.")}
    assert wanted and wanted.keys() <= state.keys()
    for key, value in wanted.items():
        np.testing.assert_allclose(state[key], value, err_msg=key, **TOLERANCE)


def test_unetr_round_trip_of_the_originals_names(files, decoder):
    config, _, state = files
    module, variables, _ = decoder
    again = layout.write(module, variables["params"], variables["batch_stats"])
    assert again.keys() == state.keys()
    for key, value in state.items():
        np.testing.assert_array_equal(again[key], value, err_msg=key)
    shapes = flatten(jax.eval_shape(module.init, jax.random.key(0), *decoder[2])["params"])
    assert {k: v.shape for k, v in shapes.items()} == {k: v.shape for k, v in flatten(variables["params"]).items()}
    assert config["base_channel"] == module.width


def test_linear_head(golden):
    config = json.loads((golden / "visionfm" / "config.json").read_text())["decoders"]["linseg"]
    state = load_file(golden / "visionfm" / "decoders.safetensors")
    with np.load(golden / "visionfm" / "decoders.npz") as stored:
        feats, wanted = stored["linseg_feats"], stored["linseg_out"]
    module = Linear(config["num_classes"], config["patch_dim"])
    params, _ = layout.read(module, state, config["dim"], "linseg.")
    image = jnp.zeros((feats.shape[1], config["img_dim"], config["img_dim"], 3))
    out = jax.jit(module.apply)({"params": params}, tuple(jnp.asarray(z) for z in feats), image)
    np.testing.assert_allclose(out, last(wanted), **TOLERANCE)


@pytest.mark.parametrize("version", ["monai120", "monai151"])
@pytest.mark.parametrize("kind", ["mc", "bin"])
def test_dice_and_focal(files, version, kind):
    config, arrays, _ = files
    logits = last(arrays["out_eval"])
    if kind == "mc":
        target = losses.one_hot(jnp.asarray(arrays["seg_label"][:, 0]), config["num_classes"])
    else:
        logits, target = logits[..., :1], losses.one_hot(jnp.asarray(arrays["seg_label_bin"][:, 0]), 1)
    found = losses.dice_focal(logits, target, exclusive=kind == "mc")
    wanted = {"loss": "", "dice_loss": "_dice", "focal_loss": "_focal"}
    for ours, theirs in wanted.items():
        np.testing.assert_allclose(found[ours], arrays[f"{version}_{kind}{theirs}"], rtol=1e-5, err_msg=ours)


def test_landmarks(files):
    arrays = files[1]
    logits, target = last(arrays["out_eval"]), last(arrays["landmark_target"])
    np.testing.assert_allclose(jnp.exp(losses.spatial_log_softmax(logits)), last(arrays["landmark_prob"]), rtol=1e-4)
    np.testing.assert_allclose(losses.landmark_loss(logits, target), arrays["landmark_nll"], rtol=1e-5)
    found, truth = np.asarray(losses.peaks(logits)), np.asarray(losses.peaks(target))
    np.testing.assert_array_equal(found[..., ::-1], arrays["landmark_pred_points"])  # (row, column) there
    np.testing.assert_allclose(distances(found, truth).mean(), arrays["landmark_mre"], rtol=1e-6)
    maps = losses.heat_maps(jnp.asarray(truth), *logits.shape[1:3], sigma=0)
    np.testing.assert_array_equal(maps, target)
