"""open_clip's layout: the original tensors there and back, its configuration, its folder."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from fundax.encoders import layers
from fundax.encoders.clip_text import TextTransformer
from fundax.encoders.vit import ViT
from fundax.interop import keymap, open_clip
from fundax.interop.checkpoint import Checkpoint
from fundax.interop.read import load
from fundax.interop.weights import read_state
from fundax.losses import contrastive
from fundax.objectives.clip import CLIP, clip
from fundax.params import stack_blocks, unflatten
from fundax.types import UserError

MODELS = ("clip_quickgelu", "clip_gelu", "customtext", "customtext_siglip")


def tiny(**fields) -> CLIP:
    image = ViT(8, 4, 8, 1, 2, **fields.pop("image", {}))
    text = TextTransformer(11, 5, 8, 1, 2, **fields.pop("text", {}))
    return CLIP(image, text, embed=6, **fields)


SIGLIP = tiny(
    image={"pool": "mean", "norm_after_pool": True, "activation": layers.gelu_exact, "mask_ratio": 0.0},
    text={"pool": "last", "causal": False, "activation": layers.gelu_exact, "epsilon": 1e-6},
    text_bias=True, init_logit_scale=2.0, init_logit_bias=-10.0, contrast=contrastive.sigmoid_contrastive,
)  # fmt: skip


def numbers(objective: CLIP):
    """Parameters that are all different numbers, without compiling an init."""
    shapes = keymap.shapes_of(objective)
    rng = np.random.default_rng(0)
    return unflatten({path: rng.standard_normal(shape, np.float32) for path, shape in shapes.items()})


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert np.shape(x) == np.shape(y)
        np.testing.assert_array_equal(x, y)


@pytest.mark.vectors("openclip")
@pytest.mark.parametrize("model", MODELS)
def test_the_originals_tensors_there_and_back(golden, model):
    state = load_file(golden / "openclip" / f"{model}_state_dict.safetensors")
    config = json.loads((golden / "openclip" / f"{model}_config.json").read_text())
    assert open_clip.detect(state)
    objective, params = open_clip.to_fundax(state, config)
    same(open_clip.from_fundax(objective, params, custom_text=model.startswith("customtext")), state)
    assert open_clip.objective_of(open_clip.config_of(objective)) == objective


@pytest.mark.vectors("openclip")
def test_layouts_by_hand(golden):
    """Single numbers, found in the two files by their meaning."""
    state = load_file(golden / "openclip" / "clip_gelu_state_dict.safetensors")
    config = json.loads((golden / "openclip" / "clip_gelu_config.json").read_text())
    _, params = open_clip.to_fundax(state, config)
    block, theirs = params["image"]["block_1"], "visual.transformer.resblocks.1"
    qkv = state[f"{theirs}.attn.in_proj_weight"]  # rows: 32 of q, 32 of k, 32 of v; columns: input
    assert block["attention"]["qkv"]["kernel"][5, 1, 7] == qkv[32 + 7, 5]
    assert block["attention"]["qkv"]["bias"][2, 9] == state[f"{theirs}.attn.in_proj_bias"][64 + 9]
    assert params["image"]["patch"]["kernel"][1, 2, 0, 4] == state["visual.conv1.weight"][4, 0, 1, 2]
    assert block["mlp"]["fc1"]["kernel"][3, 100] == state[f"{theirs}.mlp.c_fc.weight"][100, 3]
    assert params["project"]["image"]["kernel"][3, 15] == state["visual.proj"][3, 15]
    assert params["text"]["norm"]["scale"][2] == state["ln_final.weight"][2]


def test_scalars_stored_as_vectors_and_half_precision():
    objective = tiny()
    params = numbers(objective)
    state = open_clip.from_fundax(objective, params)
    state["logit_scale"] = state["logit_scale"].reshape(1)
    state["visual.proj"] = state["visual.proj"].astype(np.float16)
    found = open_clip.read(objective, state, "x")
    assert found["log_scale"].shape == ()
    assert found["project"]["image"]["kernel"].dtype == np.float32


def test_stacked_layers_are_written_like_single_ones():
    objective = tiny(image={"scan": True})
    params = numbers(objective)
    stacked = {**params, "image": stack_blocks(params["image"])}
    same(open_clip.from_fundax(objective, stacked), open_clip.from_fundax(objective, params))


def test_errors_name_the_keys():
    objective = tiny()
    state = open_clip.from_fundax(objective, numbers(objective))
    lacking = {key: value for key, value in state.items() if not key.endswith("ln_post.bias")}
    with pytest.raises(UserError, match=r"x\.pt: .*missing visual\.ln_post\.bias$"):
        open_clip.read(objective, lacking, "x.pt")
    with pytest.raises(UserError, match=r"x\.pt: .*unknown visual\.more$"):
        open_clip.read(objective, {**state, "visual.more": np.zeros(1)}, "x.pt")
    with pytest.raises(UserError, match=r"'visual\.proj' has the shape \(8, 7\), expected \(8, 6\)"):
        open_clip.read(objective, {**state, "visual.proj": np.zeros((8, 7))}, "x.pt")
    with pytest.raises(UserError, match=r"absent: image/norm/bias"):
        params = numbers(objective)
        del params["image"]["norm"]["bias"]
        open_clip.from_fundax(objective, params)
    with pytest.raises(UserError, match=r"no place for the parameters head/kernel"):
        open_clip.from_fundax(objective, {**numbers(objective), "head": {"kernel": np.zeros(1)}})


@pytest.mark.parametrize(
    "objective, words",
    [
        (tiny(image={"class_token": False, "pool": "mean"}), "without class token"),
        (tiny(image={"patch_bias": True}), "patch embedding with bias"),
        (tiny(image={"pool": "attention"}), "pooling by attention"),
        (tiny(text={"activation": layers.gelu_exact}), "QuickGELU in one encoder only"),
    ],
)
def test_what_open_clip_cannot_hold_is_named(objective, words):
    with pytest.raises(UserError, match=f"open_clip cannot hold .*{words}"):
        open_clip.config_of(objective)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"vision_cfg": {"layers": [3, 4, 6, 3]}}, "ResNet"),
        ({"vision_cfg": {"timm_model_name": "vit_base"}}, r"vision_cfg\.timm_model_name"),
        ({"text_cfg": {"hf_model_name": "bert"}}, r"text_cfg\.hf_model_name"),
        ({"text_cfg": {"pool_type": "cls"}}, r"text_cfg\.pool_type is 'cls'; supported: argmax"),
        ({"multimodal_cfg": {"width": 3}}, "multimodal_cfg"),
        ({"vision_cfg": {"image_size": [224, 112]}}, "only square"),
    ],
)
def test_configurations_of_other_models_are_refused(change, words):
    config = {"embed_dim": 6, "vision_cfg": {}, "text_cfg": {}} | change
    with pytest.raises(UserError, match=words):
        open_clip.objective_of(config)
    with pytest.raises(UserError, match="no 'vision_cfg'"):
        open_clip.objective_of({})


def test_the_base_model_of_mm_fundus_clip():
    """Its published configuration gives the objective of that size, and its 686 tensors and 986,714,881 numbers."""
    config = {
        "embed_dim": 1024, "quick_gelu": True,
        "vision_cfg": {"image_size": 378, "layers": 32, "width": 1280, "head_width": 80, "patch_size": 14},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 1024, "heads": 16, "layers": 24},
    }  # fmt: skip
    objective = open_clip.objective_of(config)
    assert objective == clip("H/14-378")
    keys = [key for row in open_clip.rows(objective, custom_text=False) for key in row.keys]
    assert len(keys) == len(set(keys)) == 686
    assert sum(np.prod(shape, dtype=int) for shape in keymap.shapes_of(objective).values()) == 986_714_881


@pytest.mark.parametrize("objective", [tiny(), SIGLIP], ids=["clip", "siglip"])
def test_folder_there_and_back(tmp_path, objective):
    bundle = Checkpoint(objective, numbers(objective), {"resize": "squash"}, source={"name": "tiny"})
    open_clip.write_folder(bundle, tmp_path / "out")
    found = load(tmp_path / "out")
    same(found.params, bundle.params)
    assert found.objective == objective
    assert found.preprocessing["resize"] == "squash"
    config = json.loads((tmp_path / "out" / "open_clip_config.json").read_text())
    assert config["preprocess_cfg"]["size"] == 8
    assert config["model_cfg"].get("custom_text", False) == (objective is SIGLIP)


class OtherVocabulary:
    start, end, pad = 9, 10, 0

    def save(self, folder):
        (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"a": 0}}}))
        (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": self.kind}))

    kind = "PreTrainedTokenizerFast"


def test_open_clip_reads_a_tokenizer_that_is_not_its_own(tmp_path):
    objective = tiny()
    open_clip.write_folder(Checkpoint(objective, numbers(objective), {}, OtherVocabulary()), tmp_path / "out")
    config = json.loads((tmp_path / "out" / "open_clip_config.json").read_text())
    assert config["model_cfg"]["text_cfg"]["hf_tokenizer_name"]
    assert open_clip.read_model(tmp_path / "out", read_state(tmp_path / "out")).objective == objective


def test_folder_is_written_whole_or_not_at_all(tmp_path):
    objective = tiny()
    bundle = Checkpoint(objective, numbers(objective), {})
    (tmp_path / "out").mkdir()
    open_clip.write_folder(bundle, tmp_path / "out")  # an empty folder is fine
    with pytest.raises(UserError, match="not empty"):
        open_clip.write_folder(bundle, tmp_path / "out")
    before = sorted(path.name for path in (tmp_path / "out").iterdir())
    broken = dataclasses.replace(bundle, preprocessing={"mean": (0.5, 0.5, 0.5)})
    with pytest.raises(UserError, match=r"preprocessing\.mean"):
        open_clip.write_folder(broken, tmp_path / "out", overwrite=True)

    class Failing(OtherVocabulary):
        def save(self, folder):
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        open_clip.write_folder(dataclasses.replace(bundle, tokenizer=Failing()), tmp_path / "out", overwrite=True)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    open_clip.write_folder(bundle, tmp_path / "out", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    with pytest.raises(UserError, match="is a file"):
        open_clip.write_folder(bundle, tmp_path / "out" / "README.md")


@pytest.mark.vectors("openclip")
def test_features_are_those_of_the_golden_model(golden):
    """One of the four end to end; tests/golden holds them all, with gradients."""
    files = {part: golden / "openclip" / f"clip_gelu_{part}.safetensors" for part in ("state_dict", "forward")}
    config = json.loads((golden / "openclip" / "clip_gelu_config.json").read_text())
    objective, params = open_clip.to_fundax(load_file(files["state_dict"]), config)
    expected = load_file(files["forward"])
    batch = {"image": expected["in.image"].transpose(0, 2, 3, 1), "text": expected["in.tokens"]}
    out = jax.jit(objective.forward)(jax.tree.map(jnp.asarray, params), {}, batch)
    for side in ("image", "text"):
        np.testing.assert_allclose(out[f"{side}_features"], expected[f"out.{side}_features"], atol=2e-5, rtol=0)
