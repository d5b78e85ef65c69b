"""ViTs with registers, rotary positions, a norm before their blocks or no class token: the classes of transformers and timm."""

import jax
import numpy as np
import pytest

from fundax.encoders import layers
from fundax.encoders.backbone import Encoder
from fundax.encoders.saliency import class_attention
from fundax.encoders.vit import ViT, dino_vit, intermediate_layers
from fundax.interop import dinov2, dinov3, timm, vit
from fundax.interop.checkpoint import Checkpoint
from fundax.interop.formats import writer
from fundax.interop.read import load
from fundax.interop.weights import write_safetensors
from fundax.objectives.clip import clip
from fundax.params import flatten, unflatten
from fundax.types import UserError

DINO = dino_vit("B/16").clone(image_size=32, patch=8, width=16, depth=2, heads=2)
KINDS = {
    "registers": DINO.clone(registers=3, layer_scale=1e-5),
    "rotary": DINO.clone(registers=3, layer_scale=0.1, rotary=100.0, epsilon=1e-5),
    "clip": DINO.clone(pre_norm=True, patch_bias=False, activation=layers.quick_gelu, epsilon=1e-5),
    "attention": DINO.clone(class_token=False, pool="attention", activation=layers.gelu_tanh),
    "mean": DINO.clone(class_token=False, pool="mean", qkv_bias=False),
    "class and mean": DINO.clone(pool="mean", norm_after_pool=True, registers=2),
}
CELLS = {("registers", "huggingface"): dinov2, ("rotary", "huggingface"): dinov3}
CELLS |= {(kind, "timm"): timm for kind in KINDS if kind != "rotary"}


def a_model(tower):
    rng = np.random.default_rng(0)
    params = {path: 0.3 * rng.standard_normal(shape, np.float32) for path, shape in vit.shapes_of(tower).items()}
    facts = {"image_size": 32, "resize": "squash", "interpolation": "bicubic"}
    return Checkpoint(Encoder(tower), {"image": unflatten(params)}, facts)


def same(ours, theirs):
    ours, theirs = flatten(ours), flatten(theirs)
    assert ours.keys() == theirs.keys()
    for path, leaf in ours.items():
        np.testing.assert_array_equal(theirs[path], leaf, err_msg=path)


@pytest.mark.parametrize("kind, to", CELLS)
def test_out_and_in_again(tmp_path, kind, to):
    model, found = a_model(KINDS[kind]), CELLS[kind, to].FORMAT
    assert writer(to, model) is found
    found.write(model, tmp_path / "out", False)
    again = load(tmp_path / "out")
    same(again.params, model.params)
    plain = {name: getattr(again.objective.image, name) for name in ("activation", "pool", "rotary", "epsilon")}
    assert plain == {name: getattr(KINDS[kind], name) for name in plain}


@pytest.mark.parametrize("kind, to", CELLS)
def test_the_other_program_computes_the_same(tmp_path, kind, to):
    pytest.importorskip("torch", reason="compares with PyTorch's models")
    if to == "timm":
        pytest.importorskip("timm", reason="compares with timm's models")
    model, found = a_model(KINDS[kind]), CELLS[kind, to].FORMAT
    found.write(model, tmp_path / "out", False)
    assert found.difference(tmp_path / "out", model) < 1e-5
    if to == "huggingface":  # and its own files are read back, without the bias of the keys in the published DINOv3
        from transformers import AutoModel

        AutoModel.from_pretrained(tmp_path / "out").save_pretrained(tmp_path / "theirs")
        same(load(tmp_path / "theirs").params, model.params)


OF_TIMM = {
    "vit_base_patch16_clip_quickgelu_224": 32, "vit_small_patch14_reg4_dinov2": 28, "vit_base_patch16_siglip_224": 32,
    "vit_medium_patch16_gap_240": 32, "vit_base_patch16_224": 32,
}  # fmt: skip


@pytest.mark.parametrize("name", OF_TIMM)
def test_timms_own_models_are_read(tmp_path, name):
    torch = pytest.importorskip("torch", reason="compares with PyTorch's models")
    package = pytest.importorskip("timm", reason="compares with timm's models")
    size, fields = OF_TIMM[name], {"embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 0}
    program = package.create_model(name, img_size=size, **fields).eval()
    rng = np.random.default_rng(0)
    state = {key: 0.3 * rng.standard_normal(value.shape, np.float32) for key, value in program.state_dict().items()}
    program.load_state_dict({key: torch.from_numpy(value) for key, value in state.items()})
    write_safetensors(state, tmp_path / "model.safetensors")
    arguments = (
        f'"model_args": {{"num_heads": 2}}, "num_classes": 0, "pretrained_cfg": {{"input_size": [3, {size}, {size}]}}'
    )
    (tmp_path / "config.json").write_text(f'{{"architecture": "{name}", {arguments}}}')
    model = load(tmp_path)
    with torch.no_grad():
        assert vit.unit_difference(model, lambda x: program(torch.from_numpy(x)).numpy()) < 1e-5


def test_registers_are_seen_by_the_blocks_and_left_out_of_every_output():
    tower, image = KINDS["registers"], np.random.default_rng(1).standard_normal((2, 32, 32, 3), np.float32)
    params = a_model(tower).params["image"]
    out = tower.apply({"params": params}, image, hidden=True)
    assert out["tokens"].shape == (2, 17, 16) and all(each.shape == (2, 17, 16) for each in out["hidden"])
    others = {**params, "registers": params["registers"][:, ::-1]}
    assert np.abs(np.asarray(tower.apply({"params": others}, image)["tokens"] - out["tokens"])).max() > 1e-3
    np.testing.assert_array_equal(intermediate_layers(tower, params, image, 1)[0], out["tokens"])
    maps = class_attention(tower, params, image)
    assert maps["heads"].shape == (2, 2, 4, 4) and (np.asarray(maps["heads"]).sum((2, 3)) < 1).all()


def test_rotary_positions_move_with_the_grid():
    """The same tokens of another place differ, and the row that is computed alone is that of all rows."""
    tower = KINDS["rotary"]
    params = a_model(tower).params["image"]
    image = np.random.default_rng(2).standard_normal((1, 32, 48, 3), np.float32)  # any size, by no table
    out = tower.apply({"params": params}, image)
    np.testing.assert_allclose(out["pooled"], out["tokens"][:, 0], atol=1e-5)
    flipped = tower.apply({"params": params}, image[:, :, ::-1])
    assert np.abs(np.asarray(flipped["pooled"] - out["pooled"])).max() > 1e-4
    with pytest.raises(UserError, match="rotary positions need heads of a multiple of 4 channels"):
        jax.eval_shape(tower.clone(mask_ratio=0.5).apply, {"params": params}, image[:, :, :32])


def test_the_image_encoder_of_a_clip_goes_to_timm(tmp_path):
    objective = clip("smoke", vocab=11, context=5)
    batch = {key: np.zeros(spec.shape, spec.dtype) for key, spec in objective.batch_spec(1).items()}
    params = jax.tree.map(
        lambda x: np.ones(x.shape, x.dtype), jax.eval_shape(objective.init, jax.random.key(0), batch)[0]
    )
    model = Checkpoint(objective, params, {"image_size": 32, "resize": "squash", "interpolation": "bicubic"})
    found = writer("timm", model)
    found.write(found.select(model), tmp_path / "out", False)
    again = load(tmp_path / "out")
    same(again.params["image"], params["image"])
    assert again.objective.image.activation is layers.quick_gelu and again.objective.mean == (objective.mean,)


def test_what_is_not_supported_is_named(tmp_path):
    with pytest.raises(UserError, match="Dinov2Model has a position table"):
        dinov2.from_fundax(Encoder(KINDS["rotary"]), a_model(KINDS["rotary"]).params)
    with pytest.raises(UserError, match=r"DINOv3ViTModel cannot hold a ViT with rotary = None"):
        dinov3.from_fundax(Encoder(KINDS["registers"]), a_model(KINDS["registers"]).params)
    with pytest.raises(UserError, match=r"timm's ViT cannot hold rotary positions"):
        vit.from_fundax(Encoder(KINDS["rotary"]), a_model(KINDS["rotary"]).params)
    state = {"pos_embed": np.zeros((1, 9, 4), np.float32), "cls_token": np.zeros((1, 1, 4), np.float32)}
    with pytest.raises(UserError, match="'pos_embed' has two grids"):  # 4 patches, registers and a class token, or 9
        vit.positions_of(state | {"reg_token": np.zeros((1, 4, 4), np.float32)}, "x")
    assert isinstance(KINDS["mean"], ViT)
