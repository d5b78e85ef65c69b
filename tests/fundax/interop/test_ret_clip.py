"""RET-CLIP's files, both ways: both numberings of the text heads, prefixes, old code, Chinese-CLIP, another image size."""

import warnings
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from fundax.encoders.positions import aligned_corners, resize_positions
from fundax.interop.initial import warm_start
from fundax.interop.ret_clip import detect, from_fundax, to_fundax, write_checkpoint
from fundax.interop.weights import read_state, write_safetensors
from fundax.params import stack_blocks, unstack_blocks
from fundax.types import UserError

HEADS = {"head_width": 16, "text_heads": 4}  # of the golden vectors


@pytest.fixture(scope="module")
def state():
    return load_file(Path(__file__).parents[2] / "golden" / "retclip" / "state_dict.safetensors")


def initial(path, objective):
    return warm_start(path, objective).init_from[0]


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def test_a_state_dict_comes_back_bit_for_bit(state):
    objective, params = to_fundax(state, **HEADS)
    again = from_fundax(objective, params)
    assert again.keys() == state.keys()
    for key, value in state.items():
        assert again[key].dtype == value.dtype
        assert again[key].tobytes() == value.tobytes(), key
    stacked = {name: stack_blocks(tree) if name in ("image", "text") else tree for name, tree in params.items()}
    same(from_fundax(objective, stacked), again)
    assert detect(state)
    assert not detect({"visual.conv1.weight": state["visual.conv1.weight"]})


def test_pt_files_released_and_of_training(state, tmp_path):
    torch = pytest.importorskip("torch", reason="the extra `torch` is not installed")
    objective, params = to_fundax(state, **HEADS)
    write_checkpoint(objective, params, tmp_path / "released.pt")
    stored = torch.load(tmp_path / "released.pt", weights_only=True)
    assert set(stored) == {f"module.{key}" for key in state}
    training = {
        "epoch": 3,
        "step": 40,
        "name": "run",
        "state_dict": stored,
        "optimizer": {"state": {}, "param_groups": []},
    }
    torch.save(training, tmp_path / "training.pt")
    for name in ("released.pt", "training.pt"):
        same(to_fundax(read_state(tmp_path / name), **HEADS)[1], params)


def test_heads_numbered_two_and_four_are_read_with_a_warning(state):
    moved = {}
    for key, value in state.items():
        for side in ("left", "right"):
            for old, new in ((2, 4), (0, 2)):
                if key.startswith(f"text_projection_{side}.{old}."):
                    key = key.replace(f".{old}.", f".{new}.")
                    break
        moved[key] = value
    assert "text_projection_left.4.weight" in moved
    assert "text_projection_left.0.weight" not in moved
    with pytest.warns(UserWarning, match="text_projection_left, text_projection_right: layers are numbered 2 and 4"):
        params = to_fundax(moved, **HEADS)[1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        same(to_fundax(state, **HEADS)[1], params)


def test_pooler_flash_attention_and_tensorflow_names(state):
    other = {
        "bert.pooler.dense.weight": np.zeros((32, 32), np.float32),
        "bert.pooler.dense.bias": np.zeros(32, np.float32),
    }
    for key, value in state.items():
        if ".attention.self." in key:
            continue
        key = key.replace(".attn.in_proj_", ".attn.Wqkv.").replace(
            ".attention.output.dense.", ".attention.self.out_proj."
        )
        if "LayerNorm" in key:
            key = key.replace(".weight", ".gamma").replace(".bias", ".beta")
        other[key] = value
    for i in range(2):
        name = f"bert.encoder.layer.{i}.attention.self"
        for part in ("weight", "bias"):
            thirds = [state[f"{name}.{qkv}.{part}"] for qkv in ("query", "key", "value")]
            other[f"{name}.Wqkv.{part}"] = np.concatenate(thirds)
    same(to_fundax(other, **HEADS)[1], to_fundax(state, **HEADS)[1])


def test_keys_that_do_not_fit_are_named(state):
    lacking = {key: value for key, value in state.items() if key != "text_projection_left.2.bias"}
    with pytest.raises(UserError, match=r"missing text_projection_left\.2\.bias"):
        to_fundax(lacking, **HEADS)
    with pytest.raises(UserError, match="unknown surplus"):
        to_fundax(state | {"surplus": np.zeros(1, np.float32)}, **HEADS)
    with pytest.raises(UserError, match=r"'left_feature_mapping\.weight' has the shape \(2, 2\), expected \(24, 24\)"):
        to_fundax(state | {"left_feature_mapping.weight": np.zeros((2, 2), np.float32)}, **HEADS)
    with pytest.raises(UserError, match="before 2024-07-16"):
        to_fundax(state | {"single_feature_mapping.weight": np.zeros((2, 2), np.float32)}, **HEADS)
    with pytest.raises(UserError, match=r"lacks visual\.conv1\.weight"):
        to_fundax({}, **HEADS)


def test_a_model_that_ret_clip_computes_differently_is_not_exported(state):
    objective, params = to_fundax(state, **HEADS)
    mean = replace(objective, text=objective.text.clone(pool="mean"))
    with pytest.raises(UserError, match=r"cannot hold this model: text\.pool is mean, there it is cls"):
        from_fundax(mean, params)
    exact = replace(objective, image=objective.image.clone(activation=jax.nn.gelu))
    with pytest.raises(UserError, match=r"image\.activation is gelu, there it is quick_gelu"):
        from_fundax(exact, params)


def test_another_image_size_moves_positions_by_ret_clips_rule(state):
    objective, params = to_fundax(state, image_size=48, **HEADS)
    assert objective.image.image_size == 48
    table = state["visual.positional_embedding"]
    np.testing.assert_array_equal(params["image"]["position"], resize_positions(table, 37, aligned_corners))
    np.testing.assert_array_equal(params["image"]["position"][0], table[0])


def test_chinese_clip_fills_the_towers_only(state, tmp_path):
    torch = pytest.importorskip("torch", reason="the extra `torch` is not installed")
    objective, params = to_fundax(state, image_size=48, **HEADS)
    fresh = jax.tree.map(np.zeros_like, params)
    towers = {key: value for key, value in state.items() if key.startswith(("visual.", "bert."))}
    extra = {"text_projection": np.zeros((32, 24), np.float32), "logit_scale": np.float32(4.6)}
    extra |= {"bert.pooler.dense.weight": np.zeros((32, 32), np.float32)}
    tensors = {f"module.{key}": torch.from_numpy(np.array(value)) for key, value in (towers | extra).items()}
    torch.save({"epoch": 15, "name": "x", "state_dict": tensors}, tmp_path / "cn_clip.pt")
    filled = initial(tmp_path / "cn_clip.pt", objective)(fresh)
    same({name: filled[name] for name in ("image", "text")}, {name: params[name] for name in ("image", "text")})
    same(filled["project"]["image"], params["project"]["image"])
    for level in ("left", "right", "patient", "text_left", "text_right", "text_patient"):
        same(filled["project"][level], fresh["project"][level])
    same(filled["log_scale"], fresh["log_scale"])
    scanned = {name: stack_blocks(tree) if name in ("image", "text") else tree for name, tree in fresh.items()}
    again = initial(tmp_path / "cn_clip.pt", objective)(scanned)
    same(again["text"], stack_blocks(params["text"]))
    assert objective.image.depth == 2


def test_initial_weights_are_all_of_ret_clip_or_the_towers_of_chinese_clip(state, tmp_path):
    objective, params = to_fundax(state, image_size=48, **HEADS)  # another size than the checkpoint's
    fresh = jax.tree.map(np.zeros_like, params)
    scanned = {name: stack_blocks(tree) if name in ("image", "text") else tree for name, tree in fresh.items()}
    write_safetensors(state, tmp_path / "ret_clip.safetensors")
    filled = initial(tmp_path / "ret_clip.safetensors", objective)(scanned)
    same({name: unstack_blocks(tree) for name, tree in filled.items()}, params)
    assert jax.tree.structure(filled) == jax.tree.structure(scanned)
    towers = {key: value for key, value in state.items() if key.startswith(("visual.", "bert."))}
    write_safetensors(towers | {"logit_scale": np.zeros((), np.float32)}, tmp_path / "cn_clip.safetensors")
    filled = initial(tmp_path / "cn_clip.safetensors", objective)(fresh)
    same(filled["text"], params["text"])
    same(filled["image"], params["image"])
    same(filled["project"]["text_left"], fresh["project"]["text_left"])


def test_chinese_clip_names_what_is_missing(state, tmp_path):
    torch = pytest.importorskip("torch", reason="the extra `torch` is not installed")
    objective, params = to_fundax(state, **HEADS)
    towers = {
        k: torch.from_numpy(v) for k, v in state.items() if k.startswith(("visual.", "bert.")) and "ln_pre" not in k
    }
    torch.save(towers, tmp_path / "short.pt")
    with pytest.raises(UserError, match=r"missing visual\.ln_pre\.bias, visual\.ln_pre\.weight"):
        initial(tmp_path / "short.pt", objective)(params)
