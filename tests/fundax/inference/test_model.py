"""A model in use: features do not depend on batching, probabilities are the textbook's, maps point where they should."""

import dataclasses

import jax
import numpy as np
import pytest
from PIL import Image

from data_pipelines.language import tokenizers
from data_pipelines.records import DataError
from fundax.encoders.clip_text import TextTransformer
from fundax.encoders.vit import ViT
from fundax.inference.model import Model, load
from fundax.interop import huggingface, keymap
from fundax.interop.checkpoint import Checkpoint
from fundax.objectives.clip import CLIP
from fundax.params import unflatten
from fundax.types import UserError

TOKENIZER = tokenizers.bundled(context=8)
OBJECTIVE = CLIP(ViT(16, 8, 16, 1, 2), TextTransformer(TOKENIZER.vocab_size, 8, 16, 1, 2), embed=6)
IMAGES = [np.random.default_rng(i).integers(0, 256, (20, 30, 3), dtype=np.uint8) for i in range(5)]
TEXTS = ["a healthy eye", "glaucoma", "drusen"]


def numbers(objective: CLIP):
    rng = np.random.default_rng(0)
    shapes = keymap.shapes_of(objective)
    return unflatten({path: 0.3 * rng.standard_normal(shape, np.float32) for path, shape in shapes.items()})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("predict") / "model"
    huggingface.write_folder(Checkpoint(OBJECTIVE, numbers(OBJECTIVE), {}, TOKENIZER), path)
    return path


@pytest.fixture(scope="module")
def model(folder):
    return load(folder, batch=4)


def test_features_are_unit_and_do_not_depend_on_batching(model):
    features = model.encode_image(IMAGES)  # 5 in batches of 4
    assert features.shape == (5, 6)
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, atol=1e-6)
    one_by_one = np.concatenate([model.encode_image([image]) for image in IMAGES])
    np.testing.assert_allclose(features, one_by_one, atol=1e-6)
    words = model.encode_text(TEXTS)
    np.testing.assert_allclose(words, np.concatenate([model.encode_text([t]) for t in TEXTS]), atol=1e-6)
    assert model.encode_text([]).shape == (0, 6)


def test_files_arrays_and_bytes_are_the_same_image(model, tmp_path):
    path = tmp_path / "eye.png"
    Image.fromarray(IMAGES[0]).save(path)
    found = model.encode_image([path, str(path), path.read_bytes(), IMAGES[0]])
    np.testing.assert_array_equal(found, found[:1].repeat(4, axis=0))


def test_features_are_those_of_the_objective(model):
    """With the squash resize written out here by Pillow."""
    pixels = np.asarray(Image.fromarray(IMAGES[0]).resize((16, 16), Image.Resampling.BICUBIC))[None]
    out = jax.jit(OBJECTIVE.forward)(model.params, {}, {"image": pixels, "text": TOKENIZER(TEXTS)})
    np.testing.assert_allclose(model.encode_image(IMAGES[:1]), out["image_features"], atol=1e-6)
    np.testing.assert_allclose(model.encode_text(TEXTS), out["text_features"], atol=1e-6)


def test_zero_shot_is_the_softmax_of_scaled_cosines(model):
    found = model.zero_shot(IMAGES[:2], TEXTS)
    logits = np.exp(np.asarray(model.params["log_scale"])) * model.encode_image(IMAGES[:2]) @ model.encode_text(TEXTS).T
    expected = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_zero_shot_averages_the_prompts_of_a_class(model):
    classes = {"healthy": ["a healthy eye", "no finding"], "glaucoma": ["glaucoma"]}
    found = model.zero_shot(IMAGES, classes, templates=["{}", "a photograph of {}."])
    rows = []
    for words in classes.values():
        mean = model.encode_text([t for w in words for t in (w, f"a photograph of {w}.")]).mean(0)
        rows.append(mean / np.linalg.norm(mean))
    logits = np.exp(np.asarray(model.params["log_scale"])) * model.encode_image(IMAGES) @ np.stack(rows).T
    np.testing.assert_allclose(found[:, 0], 1 / (1 + np.exp(logits[:, 1] - logits[:, 0])), atol=1e-6)


@pytest.mark.parametrize(
    "classes, templates", [([], ["{}"]), ({"a": []}, ["{}"]), (["a"], []), (["a"], ["x"]), ("a", ["{}"])]
)
def test_zero_shot_mistakes(model, classes, templates):
    with pytest.raises(UserError, match="zero-shot"):
        model.zero_shot(IMAGES[:1], classes, templates)


@pytest.mark.parametrize("pool", ["token", "mean"])
def test_similarity_map_is_the_cosine_of_each_patch(pool):
    objective = dataclasses.replace(OBJECTIVE, image=ViT(16, 8, 16, 1, 2, pool=pool, norm_after_pool=pool == "mean"))
    model = Model(objective, numbers(objective), {"image_size": 16}, TOKENIZER)
    found = model.similarity_map(IMAGES[0], "drusen")
    assert found.shape == (2, 2)
    pixels = np.asarray(Image.fromarray(IMAGES[0]).resize((16, 16), Image.Resampling.BICUBIC))
    x = (pixels[None] / 255 - np.asarray(objective.mean)) / np.asarray(objective.std)
    apply = jax.jit(objective.image.apply)
    tokens = np.asarray(apply({"params": model.params["image"]}, x.astype(np.float32))["tokens"])[0]
    if pool == "mean":  # the final norm, written out
        centered = tokens - tokens.mean(-1, keepdims=True)
        norm = model.params["image"]["norm"]
        tokens = centered / np.sqrt((centered**2).mean(-1, keepdims=True) + 1e-5) * norm["scale"] + norm["bias"]
    patch = tokens[1:][2] @ model.params["project"]["image"]["kernel"]  # row 1, column 0
    word = model.encode_text(["drusen"])[0]
    np.testing.assert_allclose(found[1, 0], patch @ word / np.linalg.norm(patch), atol=1e-5)


def test_mistakes_of_the_caller(model, tmp_path):
    with pytest.raises(UserError, match="takes a list"):
        model.encode_image("eye.png")
    with pytest.raises(UserError, match="takes a list"):
        model.encode_text("glaucoma")
    (tmp_path / "three.png").write_bytes(b"123")
    with pytest.raises(DataError, match=r"three\.png"):
        model.encode_image([tmp_path / "three.png"])
    with pytest.raises(UserError, match="without a tokenizer"):
        dataclasses.replace(model, tokenizer=None).encode_text(["x"])
    with pytest.raises(UserError, match="no such file"):
        load(tmp_path / "absent")


def test_only_a_few_shapes_are_compiled(model):
    from fundax.inference import model as predict

    model.encode_image(IMAGES)
    before = predict.forward._cache_size()
    for n in (1, 3, 4, 5):
        model.encode_image(IMAGES[:n])
    assert predict.forward._cache_size() == before  # 1 and 4 were compiled for the five
