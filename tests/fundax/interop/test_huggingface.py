"""Hugging Face's CLIPModel: tensors and configuration there and back, and what transformers itself makes of a folder."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from data_pipelines.language import tokenizers
from data_pipelines.transforms.steps import preprocess
from fundax.encoders import layers
from fundax.encoders.bert import BERT
from fundax.encoders.clip_text import TextTransformer
from fundax.encoders.vit import ViT
from fundax.interop import chinese_clip, huggingface, keymap, open_clip, processor, siglip
from fundax.interop.checkpoint import Checkpoint, preprocessing_of
from fundax.interop.formats import writer
from fundax.interop.initial import sized_like
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


WORDS = (
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    *["diabetic", "retinopathy", "healthy", "glaucoma", "eye", "a", "an", "眼", "青", "光"],
)
KINDS = {"clip": (huggingface, "CLIPModel"), "chinese_clip": (chinese_clip, "ChineseCLIPModel"),
         "siglip": (siglip, "SiglipModel")}  # fmt: skip
TOWERS = {"width": 16, "depth": 2, "heads": 2}


def model_of(kind, folder):
    """A small model of each class with its tokenizer, two layers in each encoder."""
    if kind == "chinese_clip":
        (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")
        words = tokenizers.wordpiece(folder / "vocab.txt", 12)
        text = BERT(words.vocab_size, 12, 16, 2, 2, 32)
        return CLIP(ViT(28, 7, epsilon=1e-6, **TOWERS), text, embed=20), words
    words = tokenizers.bundled(64 if kind == "siglip" else 12)  # the pipeline pads SigLIP's texts to 64
    text = TextTransformer(words.vocab_size, words.context, **TOWERS, activation=layers.gelu_exact)
    image = ViT(28, 7, epsilon=1e-6, **TOWERS, activation=layers.gelu_exact)
    if kind == "clip":
        return CLIP(image, text, embed=20), words
    tanh = {"activation": layers.gelu_tanh, "epsilon": 1e-6}
    image = image.clone(class_token=False, patch_bias=True, pre_norm=False, pool="attention", **tanh)
    text = text.clone(causal=False, pool="last", **tanh)
    fields = {"contrast": contrastive.sigmoid_contrastive, "init_logit_bias": -2.0, "text_bias": True}
    return CLIP(image, text, embed=16, image_projection=False, mean=(0.5,) * 3, std=(0.5,) * 3, **fields), words


@pytest.fixture(scope="module", params=KINDS)
def exported(request, tmp_path_factory):
    """A model of one of transformers' classes, written as a folder."""
    pytest.importorskip("torch", reason="compares with transformers' own model, which is PyTorch")
    folder = tmp_path_factory.mktemp("huggingface")
    objective, tokenizer = model_of(request.param, folder)
    bundle = Checkpoint(objective, numbers(objective), {}, tokenizer)
    bundle.params["log_scale"] = np.float32(2).reshape(())
    if request.param == "chinese_clip":
        bundle.params["text"]["word"]["embedding"][0] = 0  # transformers sets the row of its padding to 0
    writer("huggingface", bundle).write(bundle, folder / "out", False)
    return folder / "out", bundle, KINDS[request.param]


@pytest.mark.parametrize("kind", KINDS)
def test_each_class_there_and_back(kind, tmp_path):
    objective, tokenizer = model_of(kind, tmp_path)
    bundle = Checkpoint(objective, numbers(objective), {"resize": "squash"}, tokenizer)
    found = writer("huggingface", bundle)
    assert found is KINDS[kind][0].FORMAT
    found.write(bundle, tmp_path / "out", False)
    again = load(tmp_path / "out")
    same(again.params, bundle.params)
    drawn = {"init_logit_bias": float(bundle.params["logit_bias"])} if kind == "siglip" else {}
    assert again.objective == dataclasses.replace(objective, **drawn)
    assert again.preprocessing["resize"] == "squash"
    np.testing.assert_array_equal(again.tokenizer(["a healthy eye"]), tokenizer(["a healthy eye"]))
    assert sized_like(tmp_path / "out", objective).image == objective.image
    with pytest.raises(UserError, match=r"open_clip (cannot hold|has CLIP's text transformer)"):
        open_clip.config_of(dataclasses.replace(objective, image=objective.image.clone(patch_bias=True)))


def test_transformers_finds_every_key_and_the_same_features(exported):
    path, bundle, (module, _) = exported
    assert module.FORMAT.difference(path, bundle) < 1e-5  # raises for missing and unexpected keys


def test_transformers_own_files_are_read_back(exported, tmp_path):
    import transformers

    path, bundle, (_, kind) = exported
    getattr(transformers, kind).from_pretrained(path).save_pretrained(tmp_path / "again")
    transformers.AutoImageProcessor.from_pretrained(path).save_pretrained(tmp_path / "again")
    found = load(tmp_path / "again")
    same(found.params, bundle.params)
    assert found.objective.text == bundle.objective.text
    assert found.objective.image == bundle.objective.image


def test_the_zero_shot_pipeline_works_offline_and_agrees(exported):
    from PIL import Image
    from transformers import pipeline

    path, bundle, (_, kind) = exported
    pixels = np.random.default_rng(1).integers(0, 256, (28, 28, 3), dtype=np.uint8)
    labels = ["diabetic retinopathy", "a healthy eye", "glaucoma"]
    classify = pipeline("zero-shot-image-classification", model=str(path))
    answers = classify(Image.fromarray(pixels), candidate_labels=labels, hypothesis_template="{}")
    found = {answer["label"]: answer["score"] for answer in answers}
    batch = {"image": pixels[None], "text": bundle.tokenizer(labels)}
    out = jax.jit(bundle.objective.forward)(bundle.params, {}, batch)
    logits = np.exp(bundle.params["log_scale"]) * np.asarray(out["image_features"] @ out["text_features"].T)[0]
    expected = np.exp(logits) / np.exp(logits).sum()
    if kind == "SiglipModel":
        expected = 1 / (1 + np.exp(-logits - float(bundle.params["logit_bias"])))
    scores = [found[label] for label in labels]
    np.testing.assert_allclose(scores, expected, atol=1e-4)
    assert list(np.argsort(scores)) == list(np.argsort(expected))


def test_the_processor_opens_offline_and_prepares_as_fundax(exported):
    from PIL import Image
    from transformers import AutoProcessor

    path, bundle, _ = exported
    photograph = np.random.default_rng(2).integers(0, 256, (40, 61, 3), dtype=np.uint8)
    process = AutoProcessor.from_pretrained(path)
    pad = {"padding": "max_length", "max_length": bundle.tokenizer.context, "truncation": True}
    found = process(text=["a healthy eye"], images=Image.fromarray(photograph), return_tensors="np", **pad)
    np.testing.assert_array_equal(found["input_ids"], bundle.tokenizer(["a healthy eye"]))
    facts = preprocessing_of(bundle)
    ours = preprocess(photograph, facts).astype(np.float32)
    theirs = found["pixel_values"][0].transpose(1, 2, 0) * np.float32(facts["std"]) + np.float32(facts["mean"])
    assert np.abs(theirs * 255 - ours).max() <= 1.001  # one grey level
