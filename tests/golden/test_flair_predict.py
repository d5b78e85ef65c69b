"""FLAIR's inference: from the bytes of an image and the words of categories to the original's logits."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from fundax.inference.flair import load
from fundax.interop.weights import write_safetensors
from fundax.types import UserError

pytestmark = pytest.mark.vectors("flair")


@pytest.fixture(scope="module")
def asked(golden, tmp_path_factory):
    folder = golden / "flair"
    config = json.loads((folder / "config.json").read_text())
    (vision,) = folder.glob("vision_resnet*.safetensors")
    state = load_file(vision) | load_file(folder / "text_tinybert.safetensors")
    path = tmp_path_factory.mktemp("flair") / "flair_resnet.safetensors"
    write_safetensors(state, path)
    sizes = {"image_size": config["image_size"], "text_heads": config["bert"]["num_attention_heads"]}
    return load(path, folder / "tiny_vocab.txt", **sizes), dict(np.load(folder / "e2e_io.npz")), config["e2e"]


def test_words_to_tokens_as_the_originals(asked):
    model, arrays, facts = asked
    ids = model.tokens([model.known.prompt(name) for name in facts["texts"]])
    np.testing.assert_array_equal(ids, arrays["input_ids"])
    np.testing.assert_array_equal(ids != model.tokenizer.pad, arrays["attention_mask"])
    for i in range(len(facts["ensemble_classes"])):
        there = arrays[f"ensemble_ids_{i}"] != model.tokenizer.pad
        np.testing.assert_array_equal(there, arrays[f"ensemble_mask_{i}"])


def test_an_image_and_texts_to_probabilities_and_logits(asked):
    model, arrays, facts = asked
    bound = 1e-5 * np.abs(arrays["logits"]).max()
    with jax.enable_x64():  # the original's own fp32 is 2.1e-5 off; what ours may be off, test_flair.py derives
        tower = model.objective.image.clone(dtype="float64")
        exact = replace(model, objective=replace(model.objective, image=tower))
        probabilities, logits = exact(arrays["image_uint8"], facts["texts"])
    np.testing.assert_allclose(logits, arrays["logits"], rtol=0, atol=0.6 * bound)
    np.testing.assert_allclose(probabilities, arrays["probs"], rtol=0, atol=1e-5)
    probabilities, single = model(arrays["image_uint8"], facts["texts"])
    text = model._features("text", model.tokens([model.known.prompt(name) for name in facts["texts"]]))
    scale = np.exp(model.params["log_scale"])
    np.testing.assert_allclose(single, scale * model.image_features([arrays["image_uint8"]]) @ text.T, rtol=1e-5)
    np.testing.assert_allclose(probabilities, arrays["probs"], rtol=0, atol=1e-5)
    plain = model.text_features(facts["plain_classes"], with_knowledge=False)
    np.testing.assert_allclose(plain, arrays["plain_text_embeds"], rtol=0, atol=2e-6)


def test_knowledge_is_a_plain_mean_of_prompts(asked):
    model, _, _ = asked
    features = model.text_features(["glaucoma"])
    each = model._features("text", model.tokens(model.known.ensemble("glaucoma")))
    np.testing.assert_allclose(features[0], each.mean(0), atol=1e-6)
    assert np.linalg.norm(features) < 1 - 1e-4  # not made unit again
    image = np.zeros((8, 8, 3), np.uint8)
    logits = model(image, ["glaucoma"], with_knowledge=True)[1]
    scale = np.exp(model.params["log_scale"])
    np.testing.assert_allclose(logits, scale * model.image_features([image]) @ features.T, rtol=1e-5)
    with pytest.raises(UserError, match="a list"):
        model.text_features("glaucoma")
