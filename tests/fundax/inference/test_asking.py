"""Asking a model: every form of an image, one clear line for wrong ones, encoders alone, and answers in files."""

import io
import json

import numpy as np
import pytest
from PIL import Image

import fundax
import launch
from data_pipelines.language import tokenizers
from data_pipelines.records import DataError
from fundax.encoders.backbone import Encoder
from fundax.encoders.clip_text import TextTransformer
from fundax.encoders.resnet import ResNet
from fundax.encoders.vit import ViT, dino_vit
from fundax.inference.model import Model
from fundax.interop import dinov2, huggingface, keymap
from fundax.interop.checkpoint import Checkpoint
from fundax.objectives.clip import CLIP
from fundax.params import unflatten
from fundax.types import UserError

TOKENIZER = tokenizers.bundled(context=8)
OBJECTIVE = CLIP(ViT(16, 8, 16, 1, 2), TextTransformer(TOKENIZER.vocab_size, 8, 16, 1, 2), embed=6)
EYES = np.random.default_rng(0).integers(0, 256, (3, 20, 30, 3), dtype=np.uint8)


def numbers(objective):
    rng = np.random.default_rng(0)
    shapes = keymap.shapes_of(objective)
    return unflatten({path: 0.3 * rng.standard_normal(shape, np.float32) for path, shape in shapes.items()})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("asking") / "model"
    huggingface.write_folder(Checkpoint(OBJECTIVE, numbers(OBJECTIVE), {}, TOKENIZER), path)
    Image.fromarray(EYES[0]).save(path.parent / "eye.png")
    return path


@pytest.fixture(scope="module")
def model(folder):
    return fundax.load(folder, batch=4)


def test_every_form_of_an_image(model, folder):
    """Four images in a batch, so that one shape is compiled."""
    path = folder.parent / "eye.png"
    with Image.open(path) as opened, path.open("rb") as file:
        found = model.encode_image(iter([opened, file, path.read_bytes(), EYES[0]]))
    np.testing.assert_array_equal(found, found[:1].repeat(4, axis=0))
    np.testing.assert_allclose(model.encode_image(EYES), model.encode_image(list(EYES)), atol=1e-6)
    assert model.preprocess(path).shape == (16, 16, 3) and model.encode_image([]).shape == (0, 6)


@pytest.mark.parametrize(
    "images, message",
    [
        (EYES[0], r"one array \(20, 30, 3\): write \[image\]"),
        (Image.fromarray(EYES[0]), "a list, not one Image"),
        (io.BytesIO(b"x"), "a list, not one BytesIO"),
        (None, "a list of images, not NoneType"),
        ([None], "image 0: .*not NoneType"),
        ([EYES[0], np.zeros((4, 4, 7), np.uint8)], "image 1: "),
    ],
)
def test_wrong_images_are_one_line(model, images, message):
    with pytest.raises((UserError, DataError), match=message) as error:
        model.encode_image(images)
    assert "\n" not in str(error.value)


def test_wrong_texts_and_settings_are_one_line(model, folder):
    for texts, message in (([None], "text 0 is None"), (["a", 3], "text 1 is 3"), (5, "a list of texts, not int")):
        with pytest.raises(UserError, match=message):
            model.encode_text(texts)
    with pytest.raises(UserError, match="'a' is named twice"):
        model.zero_shot(EYES, ["a", "b", "a"])
    with pytest.raises(UserError, match="batch is -1; expected at least 1"):
        fundax.load(folder, batch=-1)
    with pytest.raises(UserError, match="feature is 'left'; a CLIP has pooled, mean, features"):
        model.encode_image(EYES, "left")


def test_similarity_knowledge_and_flairs_calling_form(model):
    words = ["glaucoma", "normal"]
    found = model.similarity(EYES, words)
    np.testing.assert_allclose(found, model.encode_image(EYES) @ model.encode_text(words).T, atol=1e-6)
    probabilities, logits = model(EYES[0], words)
    scale = np.exp(np.asarray(model.params["log_scale"]))
    np.testing.assert_allclose(logits, scale * found[:1], rtol=1e-5)
    np.testing.assert_allclose(probabilities, model.zero_shot(EYES[:1], words), atol=1e-6)
    described = model.zero_shot(EYES, words, knowledge=True)
    assert described.shape == (3, 2) and not np.allclose(described, model.zero_shot(EYES, words))
    assert model.modality == "CFP" and model.card["objective"] == "CLIP" and model.card["parameters"] > 1000


def test_an_encoder_gives_tokens_and_attention(tmp_path):
    objective = Encoder(dino_vit("S/16").clone(image_size=16, patch=8, width=8, depth=1, heads=1))
    dinov2.write_folder(Checkpoint(objective, numbers(objective), {"image_size": 16}), tmp_path / "encoder")
    encoder = fundax.load(tmp_path / "encoder", batch=4)
    tokens = encoder.tokens(EYES)
    assert tokens["class_token"].shape == (3, 8) and tokens["patches"].shape == (3, 2, 2, 8)
    np.testing.assert_allclose(encoder.encode_image(EYES), tokens["class_token"], atol=1e-6)
    np.testing.assert_allclose(encoder.encode_image(EYES, "mean"), tokens["patches"].mean((1, 2)), atol=1e-6)
    assert encoder.attention(EYES)["rollout"].shape == (3, 2, 2)
    with pytest.raises(UserError, match=r"\(Encoder\) encodes images and takes no texts"):
        encoder.encode_text(["x"])
    plain = Model(Encoder(ResNet(16)), {}, {"image_size": 16}, None)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="attention is that of a ViT"):
        plain.attention(EYES)


def test_predict_writes_json_and_csv_into_new_folders(folder, capsys):
    image = str(folder.parent / "eye.png")
    asked = ["predict", str(folder), "--image", image, "--classes", "normal, glaucoma"]
    out = folder.parent / "new" / "answers.json"
    assert launch.main([*asked, "--out", str(out)]) == 0
    (row,) = json.loads(out.read_text())
    assert row["image"] == image and row["normal"] + row["glaucoma"] == pytest.approx(1, abs=2e-4)
    assert launch.main([*asked, "--out", str(out.with_suffix(".csv")), "--knowledge"]) == 0
    assert out.with_suffix(".csv").read_text().splitlines()[0] == "image,normal,glaucoma"
    for path, message in ((out, "already exists"), (out.with_suffix(".xlsx"), "ends in .csv or .json")):
        assert launch.main([*asked, "--out", str(path)]) == 2
        assert message in capsys.readouterr().err
