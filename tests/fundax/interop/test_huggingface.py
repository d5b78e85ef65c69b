"""Hugging Face's CLIPModel: tensors and configuration there and back, and what transformers itself makes of a folder."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from data_pipelines.language import tokenizers
from fundax.encoders import layers
from fundax.encoders.clip_text import TextTransformer
from fundax.encoders.vit import ViT
from fundax.interop import huggingface, keymap, processor
from fundax.interop.checkpoint import Checkpoint, preprocessing_of
from fundax.interop.read import load
from fundax.losses import contrastive
from fundax.objectives.clip import CLIP
from fundax.params import unflatten
from fundax.types import UserError


def tiny(vocab=11, **fields) -> CLIP:
    image = ViT(8, 4, 8, 1, 2, **fields.pop("image", {}))
    words = TextTransformer(vocab, 5, 8, 1, 2, **fields.pop("text", {}))
    return CLIP(image, words, embed=6, **fields)


def numbers(objective: CLIP):
    """Parameters that are all different numbers, without compiling an init."""
    shapes = keymap.shapes_of(objective)
    rng = np.random.default_rng(0)
    return unflatten({path: 0.3 * rng.standard_normal(shape, np.float32) for path, shape in shapes.items()})


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert np.shape(x) == np.shape(y)
        np.testing.assert_array_equal(x, y)


def test_tensors_there_and_back():
    objective = tiny(image={"activation": layers.gelu_exact})
    params = numbers(objective)
    state = huggingface.from_fundax(objective, params)
    assert huggingface.detect(state)
    assert len(state) == 46  # what transformers writes for one layer and one layer
    found, back = huggingface.to_fundax(state, huggingface.config_of(objective))
    assert found == objective
    same(back, params)
    same(huggingface.read(objective, {**state, "text_model.embeddings.position_ids": np.arange(5)}, "x"), params)


def test_layouts_by_hand():
    """Single numbers, found on both sides by their meaning."""
    params = numbers(tiny())
    state = huggingface.from_fundax(tiny(), params)
    qkv, layer = params["text"]["block_0"]["attention"]["qkv"], "text_model.encoder.layers.0"
    assert state[f"{layer}.self_attn.k_proj.weight"][3, 5] == qkv["kernel"][5, 1, 3]
    assert state[f"{layer}.self_attn.v_proj.bias"][4] == qkv["bias"][2, 4]
    assert state["visual_projection.weight"][2, 7] == params["project"]["image"]["kernel"][7, 2]
    patch = state["vision_model.embeddings.patch_embedding.weight"]
    assert patch[4, 0, 1, 2] == params["image"]["patch"]["kernel"][1, 2, 0, 4]
    assert state["logit_scale"].shape == ()


@pytest.mark.parametrize("eos, pool, eot_id", [(10, "argmax", None), (2, "argmax", None), (7, "eot", 7)])
def test_where_a_text_ends(eos, pool, eot_id):
    config = huggingface.config_of(tiny())
    config["text_config"]["eos_token_id"] = eos  # 2 stands in old files for "the highest id"
    found = huggingface.objective_of(config).text
    assert (found.pool, found.eot_id) == (pool, eot_id)


def test_old_files_repeat_their_configuration():
    config = huggingface.config_of(tiny()) | {"vision_config_dict": {"hidden_act": "gelu"}, "text_config_dict": None}
    assert huggingface.objective_of(config).image.activation is layers.gelu_exact
    assert huggingface.objective_of(config).text.activation is layers.quick_gelu


@pytest.mark.parametrize(
    "objective, words",
    [
        (tiny(image={"pre_norm": False}), "without a norm before its blocks"),
        (tiny(image={"pool": "mean"}), "image pooling by mean"),
        (tiny(text={"pool": "last"}), "text pooling by last"),
        (tiny(text={"causal": False}), "without causal mask"),
        (tiny(text_bias=True), "text projection with bias"),
        (tiny(image={"layer_scale": 0.1}), "layer scale"),
    ],
)
def test_what_clip_model_cannot_hold_is_named(objective, words):
    with pytest.raises(UserError, match=f"CLIPModel cannot hold .*{words}"):
        huggingface.config_of(objective)


def test_other_models_are_refused():
    with pytest.raises(UserError, match="model_type 'siglip'; expected 'clip'"):
        huggingface.objective_of({"model_type": "siglip"})
    with pytest.raises(UserError, match=r"vision_config\.hidden_act is 'relu'; supported: quick_gelu"):
        huggingface.objective_of({"model_type": "clip", "vision_config": {"hidden_act": "relu"}})
    with pytest.raises(UserError, match="end-of-text id 2"):
        huggingface.config_of(tiny(text={"pool": "eot", "eot_id": 2}))


@pytest.mark.parametrize("resize", ["squash", "shortest"])
def test_preprocessing_there_and_back(resize):
    facts = {
        "image_size": 8,
        "mean": [0.5, 0.4, 0.3],
        "std": [0.2, 0.2, 0.1],
        "resize": resize,
        "interpolation": "bilinear",
    }
    bundle = Checkpoint(tiny(mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.1)), {}, facts)
    down = {"round_down": True} if resize == "shortest" else {}  # as transformers rounds
    assert processor.preprocessing_of(processor.config_of(preprocessing_of(bundle)), "folder") == facts | down


def test_preprocessing_that_contradicts_the_model():
    for wrong, words in (({"image_size": 9}, "model takes 8 pixels"), ({"resize": "longest"}, "no resize 'longest'")):
        with pytest.raises(UserError, match=words):
            processor.config_of(preprocessing_of(Checkpoint(tiny(), {}, wrong)))


def test_folder_there_and_back_with_a_bias_it_has_no_place_for(tmp_path):
    objective = tiny(init_logit_bias=-10.0, contrast=contrastive.sigmoid_contrastive)
    bundle = Checkpoint(objective, numbers(objective), {}, source={"name": "tiny", "step": 7})
    huggingface.write_folder(bundle, tmp_path / "out")
    assert "logit_bias" not in load_file(tmp_path / "out" / "model.safetensors")
    found = load(tmp_path / "out")
    same(found.params, bundle.params)
    bias = float(bundle.params["logit_bias"])
    assert found.objective == dataclasses.replace(objective, init_logit_bias=bias)
    record = json.loads((tmp_path / "out" / "fundax_export.json").read_text())
    assert record["source"] == {"name": "tiny", "step": 7}
    assert set(record["tensors_sha256"]) == set(load_file(tmp_path / "out" / "model.safetensors"))
    assert "pipeline_tag: zero-shot-image-classification" in (tmp_path / "out" / "README.md").read_text()


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A model of the bundled tokenizer, two layers of each tower, written as a folder."""
    pytest.importorskip("torch", reason="compares with transformers' own model, which is PyTorch")
    tokenizer = tokenizers.bundled(context=12)
    towers = {"width": 16, "depth": 2, "heads": 2, "activation": layers.gelu_exact}
    objective = CLIP(
        ViT(image_size=28, patch=7, epsilon=1e-6, **towers),
        TextTransformer(tokenizer.vocab_size, tokenizer.context, **towers),
        embed=20,
    )
    bundle = Checkpoint(objective, numbers(objective), {}, tokenizer)
    bundle.params["log_scale"] = np.float32(2).reshape(())
    path = tmp_path_factory.mktemp("huggingface") / "out"
    huggingface.write_folder(bundle, path)
    return path, bundle


def test_transformers_finds_every_key_and_the_same_features(exported):
    path, bundle = exported
    assert huggingface.difference(path, bundle) < 1e-5  # raises for missing and unexpected keys


def test_transformers_own_files_are_read_back(exported, tmp_path):
    from transformers import CLIPModel

    path, bundle = exported
    CLIPModel.from_pretrained(path).save_pretrained(tmp_path / "again")
    found = load(tmp_path / "again")
    same(found.params, bundle.params)
    assert found.objective.text == bundle.objective.text
    assert found.objective.image == bundle.objective.image


def test_the_zero_shot_pipeline_works_offline_and_agrees(exported):
    from PIL import Image
    from transformers import pipeline

    path, bundle = exported
    pixels = np.random.default_rng(1).integers(0, 256, (28, 28, 3), dtype=np.uint8)
    labels = ["diabetic retinopathy", "a healthy eye", "glaucoma"]
    classify = pipeline("zero-shot-image-classification", model=str(path))
    answers = classify(Image.fromarray(pixels), candidate_labels=labels, hypothesis_template="{}")
    found = {answer["label"]: answer["score"] for answer in answers}
    batch = {"image": pixels[None], "text": bundle.tokenizer(labels)}
    out = jax.jit(bundle.objective.forward)(bundle.params, {}, batch)
    logits = np.exp(2.0) * np.asarray(out["image_features"] @ out["text_features"].T)[0]
    expected = np.exp(logits) / np.exp(logits).sum()
    np.testing.assert_allclose([found[label] for label in labels], expected, atol=1e-4)
    assert len(set(np.round(expected, 3))) == 3
