"""Probabilities per eye and patient from both eyes, one eye, one photograph; and a RET-CLIP folder out and in again."""

import jax
import numpy as np
import pytest
from PIL import Image

import launch
from data_pipelines.language import tokenizers
from data_pipelines.language.prompts import language_of, prompts
from fundax.encoders.bert import BERT
from fundax.encoders.vit import ViT
from fundax.inference.eyes import predict_eyes
from fundax.inference.model import Model, load
from fundax.interop import exchange, read
from fundax.interop import ret_clip as interop
from fundax.interop.checkpoint import Checkpoint
from fundax.objectives.ret_clip import RetCLIP
from fundax.types import UserError

TOKENIZER = tokenizers.bundled(24)
SMALL = RetCLIP(
    image=ViT(image_size=16, patch=8, width=32, depth=1, heads=2),
    text=BERT(TOKENIZER.vocab_size, context=32, width=32, depth=1, heads=2, hidden=32),
    embed=16,
    context=24,
)
CLASSES = ("glaucoma", "正常眼底", "cataract")


@pytest.fixture(scope="module")
def model():
    batch = {key: np.zeros(s.shape, s.dtype) for key, s in SMALL.batch_spec(1).items()}
    params = jax.jit(SMALL.init)(jax.random.key(0), batch)[0]
    return Model(SMALL, params, {"image_size": 16, "resize": "squash"}, TOKENIZER)


@pytest.fixture(scope="module")
def eyes(tmp_path_factory):
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("eyes")
    for side in ("left", "right"):
        Image.fromarray(rng.integers(0, 255, (20, 24, 3), np.uint8)).save(folder / f"{side}.png")
    return folder / "left.png", folder / "right.png"


def test_language_and_prompts():
    assert language_of("黄斑水肿") == "zh"
    assert language_of("DR II期") == "zh"
    assert language_of("glaucoma") == "en"
    assert prompts("青光眼", "left")[0] == "左眼：青光眼。"
    assert prompts("drusen", "patient")[0] == "Both eyes: drusen."
    assert all("双眼" in prompt for prompt in prompts("青光眼", "patient"))


def test_both_eyes(model, eyes):
    found = predict_eyes(model, CLASSES, left=eyes[0], right=eyes[1])
    assert set(found.probabilities) == {"left", "right", "patient"}
    for level in found.probabilities.values():
        assert level.sum() == pytest.approx(1, abs=1e-5)
    assert found.note == ""
    table = found.table()
    assert [column.header for column in table.columns] == ["condition", "left eye", "right eye", "patient"]
    first = next(iter(table.columns[0].cells))
    assert first == CLASSES[int(found.probabilities["patient"].argmax())]


def test_a_probability_from_the_features(model, eyes):
    found = predict_eyes(model, CLASSES, left=eyes[0])
    from data_pipelines.images.decode import load as read
    from data_pipelines.transforms.steps import preprocess

    image = preprocess(read(eyes[0]), model.preprocessing)[None]
    tokens = [TOKENIZER(prompts(name, "left")) for name in CLASSES]
    forward = jax.jit(SMALL.forward)
    eye = forward(model.params, {}, {"left": image})
    heads = [np.asarray(forward(model.params, {}, {"text": t})["text_features_left"]).mean(0) for t in tokens]
    logits = np.array([h / np.linalg.norm(h) for h in heads]) @ np.asarray(eye["left_features"])[0] * 90
    expected = np.exp(logits - logits.max())
    np.testing.assert_allclose(found.probabilities["left"], expected / expected.sum(), atol=1e-4)


def test_one_eye_and_an_eye_of_unknown_side(model, eyes):
    left = predict_eyes(model, CLASSES, left=eyes[0])
    assert set(left.probabilities) == {"left", "patient"}
    assert left.note == "only the left eye was given: the patient column takes it for both eyes"
    twice = predict_eyes(model, CLASSES, left=eyes[0], right=eyes[0])
    np.testing.assert_allclose(left.probabilities["patient"], twice.probabilities["patient"], atol=1e-5)
    photo = predict_eyes(model, CLASSES, image=eyes[0])
    assert set(photo.probabilities) == {"patient"}
    np.testing.assert_allclose(photo.probabilities["patient"], twice.probabilities["patient"], atol=1e-5)


def test_mistakes_are_named(model, eyes):
    with pytest.raises(UserError, match="give --left and --right"):
        predict_eyes(model, CLASSES)
    with pytest.raises(UserError, match="give --left and --right"):
        predict_eyes(model, CLASSES, left=eyes[0], image=eyes[1])
    with pytest.raises(UserError, match="at least two different classes, got drusen"):
        predict_eyes(model, ["drusen"], left=eyes[0])


def test_a_folder_written_read_and_predicted_from_the_command_line(model, eyes, tmp_path, capsys):
    bundle = Checkpoint(SMALL, jax.tree.map(np.asarray, model.params), {"image_size": 16}, TOKENIZER)
    interop.write_folder(bundle, tmp_path / "out")
    again = read.load(tmp_path / "out")
    assert again.objective == SMALL
    assert exchange.digest_of(again.params) == exchange.digest_of(bundle.params)
    exchange.import_checkpoint(tmp_path / "out", tmp_path / "run")
    reread = load(tmp_path / "run")
    assert reread.objective == SMALL
    found = predict_eyes(reread, CLASSES, left=eyes[0]).probabilities["left"]
    np.testing.assert_allclose(found, predict_eyes(model, CLASSES, left=eyes[0]).probabilities["left"], atol=1e-6)
    arguments = ["predict", str(tmp_path / "run"), "--left", str(eyes[0]), "--classes", "[/nope], drusen [small]"]
    assert launch.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "left eye" in printed and "[/nope]" in printed and "drusen [small]" in printed
    assert "only the left eye was given" in printed
    assert launch.main([*arguments[:-1], "glaucoma"]) == 2
    assert "at least two different classes" in capsys.readouterr().err
