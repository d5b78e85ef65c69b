"""Backbones: out of runs, files and names of sizes, at the size asked for, with their decoder and statistics."""

import re

import jax
import numpy as np
import pytest

from fundax.encoders.backbone import Backbone, Encoder
from fundax.encoders.heads import MLPHead
from fundax.encoders.unetr import Linear
from fundax.encoders.vit import dino_vit
from fundax.interop import backbones, vit
from fundax.interop.backbones import backbone
from fundax.interop.weights import write_safetensors
from fundax.objectives.classify import Classify
from fundax.objectives.dense import Segment
from fundax.runtime.checkpoint import Checkpoints
from fundax.runtime.serialize import to_json
from fundax.runtime.workdir import write_json
from fundax.types import UserError


def tower(side=32, patch=8):
    return dino_vit("Ti/16").clone(image_size=side, patch=patch, width=64, depth=4, heads=1)


def values(shapes):
    return jax.tree.map(lambda x: np.random.default_rng(x.size).standard_normal(x.shape, np.float32), shapes)


def a_run(path, objective, params, extra):
    path.mkdir()
    write_json(path / "config.json", {"objective": to_json(objective)})
    with Checkpoints(path) as checkpoints:
        checkpoints.save(3, {"params": params, "extra": extra, "opt": {}}, {}, {})
    return path


@pytest.fixture
def run(monkeypatch, tmp_path):
    """A pretraining of two modalities at 32 pixels, in place of a folder."""
    encoder = Encoder(tower(), ((0.1,) * 3, (0.2,) * 3), ((1.0,) * 3, (2.0,) * 3))
    params = values(jax.eval_shape(lambda: encoder.init(jax.random.key(0), encoder_batch()))[0])
    monkeypatch.chdir(tmp_path)
    for name in ("run", "one", "two"):
        (tmp_path / name / "checkpoints").mkdir(parents=True)
    monkeypatch.setattr(backbones, "is_run", lambda path: True)
    monkeypatch.setattr(backbones, "read_objective", lambda path: encoder)
    monkeypatch.setattr(backbones, "load_params", lambda path, checkpoint: (params, {}))
    return params


def encoder_batch():
    return {"image": np.zeros((1, 32, 32, 3), np.uint8)}


def test_a_run_at_another_size(run):
    found = backbone("run", image_size=64, modality="FFA")
    assert found.backbone.mean == ((0.2,) * 3,) and found.backbone.std == ((2.0,) * 3,)
    assert found.image.image_size == found.preprocessing["image_size"] == 64
    fresh = {"image": {}, "decoder": {"out": {"kernel": np.zeros((4, 1))}}}
    filled = found.init_from[0](fresh)
    assert filled["image"]["position"].shape == (65, 64) and filled["decoder"] is fresh["decoder"]
    np.testing.assert_array_equal(filled["image"]["position"][0], run["image"]["position"][0])
    scale = run["image"]["block_3"]["norm1"]["scale"]
    np.testing.assert_array_equal(filled["image"]["block_3"]["norm1"]["scale"], scale)
    with pytest.raises(UserError, match="patches of 8 pixels, which do not fill an image of 30"):
        backbone("run", image_size=30)
    assert backbone("run").backbone.mean == ((0.1,) * 3, (0.2,) * 3)  # by the modality of a batch


def test_a_decoder_that_fits_comes_along(run):
    kernel = np.ones((4, 1), np.float32)
    run["decoder"] = {"out": {"kernel": kernel}}
    fill = backbone("run", image_size=32).init_from[0]
    assert fill({"image": {}, "decoder": {"out": {"kernel": 0 * kernel}}})["decoder"]["out"]["kernel"] is kernel
    other = {"image": {}, "decoder": {"out": {"kernel": np.zeros((4, 2))}}}
    assert fill(other)["decoder"]["out"]["kernel"].shape == (4, 2)


def test_a_file_of_another_program(tmp_path):
    params = {
        "image": values(jax.eval_shape(lambda: tower().init(jax.random.key(0), np.zeros((1, 32, 32, 3))))["params"])
    }
    write_safetensors(vit.from_fundax(Encoder(tower()), params), tmp_path / "vit.safetensors")
    found = backbone(tmp_path / "vit.safetensors", image_size=32, modality="oct")
    assert found.backbone.mean == ((0.21091926, 0.21091926, 0.21091919),)
    assert found.image.depth == 4 and found.image.patch == 8
    objective = Segment(found.image, Linear(1, 8), (0, 1, 2, 3), ("disc",))
    fresh = jax.eval_shape(lambda: objective.init(jax.random.key(0), {}))[0]
    filled = found.init_from[0](fresh)
    assert jax.tree.map(np.shape, filled) == jax.tree.map(np.shape, fresh)


def test_a_residual_network_brings_its_statistics(tmp_path):
    start = backbone("resnet-smoke", frozen=False)
    assert start.backbone.feature == "pooled" and start.init_from == ()
    objective = Classify(start.backbone, MLPHead(2), classes=("a", "b"))
    batch = {key: np.zeros(spec.shape, spec.dtype) for key, spec in objective.batch_spec(1).items()}
    fresh = jax.jit(objective.init)(jax.random.key(0), batch)
    params, extra = values(fresh[0]), jax.tree.map(lambda x: np.asarray(x) + 1, fresh[1])
    found = backbone(a_run(tmp_path / "run", objective, params, extra))
    filled, statistics = found.init_from[0](dict(fresh[0])), found.init_extra[0](dict(fresh[1]))
    jax.tree.map(np.testing.assert_array_equal, filled["image"], params["image"])
    jax.tree.map(np.testing.assert_array_equal, statistics["image"], extra["image"])
    jax.tree.map(np.testing.assert_array_equal, filled["head"], fresh[0]["head"])


def test_an_encoder_for_each_modality(tmp_path, run):
    found = backbone({0: "one", 2: "two"}, blocks=9)
    assert found.backbone.modalities == (0, 2) and found.backbone.blocks == 4
    fresh = {"image": {"m0": {}, "m2": {}}}
    filled = found.init_from[0](fresh)
    np.testing.assert_array_equal(filled["image"]["m2"]["class_token"], run["image"]["class_token"])
    several = Classify(found.backbone, MLPHead(2), classes=("a", "b"))
    assert isinstance(several.tower, Backbone)


def test_names_of_sizes():
    assert backbone("B/16", image_size=512).image.patches == 32**2
    assert backbone("B/16").image.scan and not backbone("tiny").image.scan
    assert backbone("resnet50").image.image_size == 224
    known = r"imagenet, imagenet-lite1, imagenet-lite2, timm:NAME, hf:OWNER/NAME"
    expected = f"'huge' is not a run, a folder, a file of weights, named weights ({known}) or a size; sizes are smoke"
    with pytest.raises(UserError, match=re.escape(expected)):
        backbone("huge", image_size=64)
