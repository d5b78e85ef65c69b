"""VisionFM, timm, RETFound and Dinov2Model formats: in, out again with the same bits, and what a broken file says."""

import argparse
import importlib.util
import json
import pickle

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from fundax.encoders.backbone import Encoder
from fundax.encoders.heads import IBOTHead
from fundax.encoders.vit import dino_vit
from fundax.interop import pickled, visionfm, vit
from fundax.interop.checkpoint import Checkpoint
from fundax.interop.exchange import export, import_checkpoint
from fundax.interop.initial import warm_start
from fundax.interop.read import load
from fundax.interop.weights import write_torch
from fundax.objectives.ibot import IBOT
from fundax.params import unflatten
from fundax.runtime import serialize
from fundax.types import UserError

TOWER = dino_vit("B/16").clone(image_size=8, patch=4, width=8, depth=2, heads=1)


def random(shapes, rng):
    return {key: rng.normal(size=shape).astype(np.float32) for key, shape in shapes.items()}


@pytest.fixture(scope="module")
def pretraining():
    """A flat VisionFM state dict of random numbers."""
    objective = IBOT(TOWER.clone(mask_token=True), IBOTHead(6, None, 8, 4), steps=2, epoch_steps=1)
    shapes = visionfm._shapes(objective)
    rng = np.random.default_rng(0)
    tree = unflatten(random(shapes, rng))
    return visionfm.from_fundax(objective, tree["student"], {"teacher": tree["teacher"], "center": tree["center"]})


@pytest.fixture(scope="module")
def encoder(pretraining):
    """A bare state dict under timm's names."""
    prefix = "teacher.backbone."
    return {key.removeprefix(prefix): value for key, value in pretraining.items() if key.startswith(prefix)}


def through(state, path, to, tmp_path):
    """Import, export; the folder."""
    save_file({key: np.ascontiguousarray(value) for key, value in state.items()}, path)
    import_checkpoint(path, tmp_path / "run", modality="oct")
    message = export(tmp_path / "run", to, tmp_path / "out")
    assert "read back bit for bit" in message
    return tmp_path / "out"


def same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        assert np.asarray(ours[key]).tobytes() == np.asarray(value, order="C").tobytes(), key


def test_timm_round_trip(encoder, tmp_path):
    out = through(
        encoder | {"head.weight": np.zeros((3, 8), np.float32)}, tmp_path / "dino.safetensors", "timm", tmp_path
    )
    same(load_file(out / "model.safetensors"), encoder)
    config = json.loads((out / "config.json").read_text())
    assert config["model_args"]["embed_dim"] == 8 and config["pretrained_cfg"]["input_size"] == [3, 8, 8]
    assert config["pretrained_cfg"]["mean"][0] == 0.21091926  # of OCT
    again = load(out)
    assert again.objective.mean == ((0.21091926, 0.21091926, 0.21091919),)
    import_checkpoint(out, tmp_path / "again")
    assert serialize.from_json(json.loads((tmp_path / "again/config.json").read_text())["objective"]) == again.objective


def test_mean_pooled_and_layer_scaled(tmp_path):
    """RETFound's fine-tuned form (fc_norm) and DINOv2's layer scales keep their names."""
    for fields in ({"pool": "mean", "norm_after_pool": True}, {"layer_scale": 0.1}):
        tower = TOWER.clone(**fields)
        params = jax.jit(lambda rng, image, tower=tower: tower.init(rng, image)["params"])(
            jax.random.key(0), np.zeros((1, 8, 8, 3), np.float32)
        )
        state = vit.from_fundax(Encoder(tower), {"image": params})
        assert ("fc_norm.weight" in state) == ("pool" in fields)
        assert ("blocks.0.ls1.gamma" in state) == ("layer_scale" in fields)
        objective, again = vit.to_fundax(state, "x")
        assert objective.image.pool == tower.pool and objective.image.norm_after_pool == tower.norm_after_pool
        same(vit.from_fundax(objective, again), state)


def test_dinov2_round_trip(encoder, tmp_path):
    out = through(encoder, tmp_path / "x.safetensors", "huggingface", tmp_path)
    written = load_file(out / "model.safetensors")
    np.testing.assert_array_equal(written["encoder.layer.1.layer_scale1.lambda1"], np.ones(8))
    np.testing.assert_array_equal(
        written["encoder.layer.0.attention.attention.key.weight"], encoder["blocks.0.attn.qkv.weight"][8:16]
    )
    import_checkpoint(out, tmp_path / "back")
    export(tmp_path / "back", "timm", tmp_path / "timm")
    same(load_file(tmp_path / "timm" / "model.safetensors"), encoder)


def test_a_pretraining_gives_its_teachers_encoder(pretraining, encoder, tmp_path):
    out = through(pretraining, tmp_path / "v.safetensors", "timm", tmp_path)
    same(load_file(out / "model.safetensors"), encoder)
    with pytest.raises(
        UserError,
        match="open_clip cannot hold a IBOT: cannot export to 'open_clip'; expected visionfm, huggingface, timm",
    ):
        export(tmp_path / "run", "open_clip", tmp_path / "o")


def test_visionfm_state_round_trip(pretraining):
    objective, params, extra = visionfm.to_fundax(pretraining)
    same(visionfm.from_fundax(objective, params, extra), pretraining)
    bundle = vit.encoder_of(Checkpoint(objective, params, {}, extra=extra))
    assert "mask_token" not in bundle.params["image"] and not bundle.objective.image.mask_token


@pytest.mark.parametrize("layout_name", ["visionfm", "retfound"])
def test_pth_round_trip(layout_name, pretraining, encoder, tmp_path):
    """The .pth of each program, with a Namespace and an optimizer in it, and back: the same tensors."""
    torch = pytest.importorskip("torch", reason="torch, an extra, reads and writes .pth files")
    parts = {"student": {}, "teacher": {}, "ibot_loss": {}}
    for key, value in pretraining.items():
        part, _, rest = key.partition(".")
        parts[part][f"module.{rest}" if part == "student" else rest] = torch.from_numpy(np.array(value))
    more = {"optimizer": {"state": {}}, "epoch": 3, "args": argparse.Namespace(arch="vit_base"), "fp16_scaler": None}
    decoder = {"decoder_pred.weight": torch.zeros(3, 3), "mask_token": torch.zeros(1, 1, 3)}
    retfound = {"model": {k: torch.from_numpy(np.array(v)) for k, v in encoder.items()} | decoder, "epoch": 1}
    file = tmp_path / "in.pth"
    torch.save(parts | more if layout_name == "visionfm" else retfound, file)
    import_checkpoint(file, tmp_path / "run")
    assert "bit for bit" in export(tmp_path / "run", layout_name, tmp_path / "out")
    written = torch.load(tmp_path / "out" / f"{layout_name}.pth", weights_only=True)
    # RETFound's MAE mode reads "model", its DINOv2 mode "teacher"
    expected = parts if layout_name == "visionfm" else dict.fromkeys(("model", "teacher"), retfound["model"])
    for part, tensors in written.items():
        for key, value in tensors.items():
            assert torch.equal(value, expected[part][key]), key
    assert written.keys() == expected.keys()
    cut = tmp_path / "cut.pth"
    cut.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"cut.pth: (damaged|refused)"):
        import_checkpoint(cut, tmp_path / "none")
    evil = tmp_path / "evil.pth"
    evil.write_bytes(pickle.dumps({"student": Evil(), "teacher": {}}, protocol=2))
    with pytest.raises(UserError, match="refused"):
        import_checkpoint(evil, tmp_path / "none")


class Evil:
    def __reduce__(self):
        return print, ("this must not run",)


def test_pytorch_files_are_written_without_pytorch(tmp_path):
    """Our own reader finds the same, and PyTorch where it is installed."""
    tree = {
        "model": {"a": np.arange(12, dtype=np.float32).reshape(3, 4).T, "scalar": np.float32(2.5)},
        "others": {"none": np.zeros((2, 0), np.float16), "count": np.array(7), "yes": np.array([True, False])},
    }
    write_torch(tree, tmp_path / "x.pth")
    readers = [lambda path: pickled.read(path)]
    if importlib.util.find_spec("torch") is not None:
        import torch

        readers.append(lambda path: torch.load(path, weights_only=True))
    for read in readers:
        found = read(tmp_path / "x.pth")
        assert found.keys() == tree.keys()
        for part, values in tree.items():
            for name, value in values.items():
                np.testing.assert_array_equal(np.asarray(found[part][name]), value)
                assert tuple(found[part][name].shape) == value.shape
    with pytest.raises(UserError, match="PyTorch has no tensors of complex64"):
        write_torch({"x": np.zeros(1, np.complex64)}, tmp_path / "y.pth")


def test_broken_files_name_the_first_key(encoder, pretraining, tmp_path):
    wrong = encoder | {"blocks.1.mlp.fc1.weight": np.zeros((32, 9), np.float32)}
    with pytest.raises(UserError, match=r"'blocks.1.mlp.fc1.weight' has the shape \(32, 9\), expected \(32, 8\)"):
        vit.to_fundax(wrong, "x")
    with pytest.raises(UserError, match=r"unknown blocks\.0\.attn\.bias_k"):
        vit.to_fundax(encoder | {"blocks.0.attn.bias_k": np.zeros(8)}, "x")
    with pytest.raises(UserError, match=r"missing norm.bias"):
        vit.to_fundax({k: v for k, v in encoder.items() if k != "norm.bias"}, "x")
    key = "teacher.head.mlp.2.weight"
    with pytest.raises(UserError, match=rf"'{key}' has the shape \(8, 3\), expected \(8, 8\)"):
        visionfm.to_fundax(pretraining | {key: np.zeros((8, 3), np.float32)})
    file = tmp_path / "x.safetensors"
    save_file({k: np.ascontiguousarray(v) for k, v in encoder.items()}, file)
    file.write_bytes(file.read_bytes()[:-50])
    with pytest.raises(UserError, match=r"x\.safetensors: damaged"):
        import_checkpoint(file, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_initial_weights_fit_another_image_size(encoder, pretraining, tmp_path):
    file = tmp_path / "x.safetensors"
    save_file({k: np.ascontiguousarray(v) for k, v in encoder.items()}, file)
    tower = TOWER.clone(image_size=16, mask_token=True, scan=True)
    objective = IBOT(tower, IBOTHead(6, None, 8, 4), steps=2, epoch_steps=1)
    batch = {key: np.zeros(s.shape, s.dtype) for key, s in objective.batch_spec(1).items()}
    fresh, _ = jax.jit(objective.init)(jax.random.key(0), batch)
    filled = warm_start(file, objective).init_from[0](fresh)
    assert jax.tree.map(np.shape, filled) == jax.tree.map(np.shape, fresh)
    np.testing.assert_array_equal(filled["image"]["position"][0], encoder["pos_embed"][0, 0])
    np.testing.assert_array_equal(filled["image"]["blocks"]["mlp"]["fc2"]["bias"][1], encoder["blocks.1.mlp.fc2.bias"])
    save_file({k: np.ascontiguousarray(v) for k, v in pretraining.items()}, file)
    import_checkpoint(file, tmp_path / "run")
    whole = warm_start(tmp_path / "run", objective).init_from[0](fresh)  # a run gives its heads too
    np.testing.assert_array_equal(whole["head"]["mlp"]["fc1"]["bias"], pretraining["student.head.mlp.0.bias"])
    np.testing.assert_array_equal(whole["image"]["mask_token"], pretraining["student.backbone.masked_embed"][0])
