"""A report from the command line: the file that answers is found by the model, mistakes are one line."""

import itertools

import jax
import numpy as np
import pytest
from PIL import Image

import launch
from data_pipelines.language import tokenizers
from fundax.encoders.report_decoder import ReportDecoder
from fundax.encoders.vit import ViT
from fundax.inference.dispatch import PREDICTORS, predictor_of
from fundax.objectives.report import Report
from fundax.runtime import serialize
from fundax.runtime.checkpoint import Checkpoints
from fundax.runtime.workdir import write_json
from fundax.types import UserError

TOKENIZER = tokenizers.bundled(9)
IDS = {"bos": TOKENIZER.start, "eos": TOKENIZER.end, "pad": TOKENIZER.pad}
SMALL = Report(ViT(8, 8, 8, 1, 2), ReportDecoder(TOKENIZER.vocab_size, 8, 8, 1, 2, 8, **IDS))


def save(folder, objective, params):
    folder.mkdir()
    write_json(folder / "config.json", {"objective": serialize.to_json(objective)})
    write_json(folder / "preprocessing.json", {"image_size": 8, "resize": "squash"})
    TOKENIZER.save(folder / "tokenizer")
    with Checkpoints(folder) as kept:
        kept.save(0, {"params": params, "extra": {}, "opt": {}}, {}, {})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run that always writes "macular oedema": the head's biases make it, whatever the image."""
    folder = tmp_path_factory.mktemp("report")
    batch = {key: np.zeros(s.shape, s.dtype) for key, s in SMALL.batch_spec(1).items()}
    shapes = jax.eval_shape(SMALL.init, jax.random.key(0), batch)[0]
    params = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), shapes)
    tokens = TOKENIZER(["macular oedema"])[0]
    params["decoder"]["word"][tokens[:-1][tokens[:-1] > 0], np.arange(np.sum(tokens[:-1] > 0))] = 1
    params["decoder"]["decoder_norm"]["scale"] += 1
    for k, (word, following) in enumerate(itertools.pairwise(tokens)):
        if word and following:
            params["decoder"]["head"]["kernel"][k, following] = 9
    save(folder / "run", SMALL, params)
    Image.fromarray(np.full((12, 10, 3), 99, np.uint8)).save(folder / "a.png")
    return folder


def test_the_report_of_an_image(folder, capsys):
    assert launch.main(["predict", str(folder / "run"), "--image", str(folder / "a.png")]) == 0
    assert capsys.readouterr().out == "macular oedema\nfindings: macular oedema\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--image"),
        (["--image", "nowhere.png"], "nowhere.png"),
        (["--left", "a.png"], "--image"),
        (["--image", "a.png", "--beams", "0"], "--beams 0"),
    ],
)
def test_mistakes_are_one_line(folder, arguments, message, capsys):
    arguments = [str(folder / a) if a == "a.png" else a for a in arguments]
    assert launch.main(["predict", str(folder / "run"), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_help_is_that_of_the_model(folder, capsys):
    with pytest.raises(SystemExit, match="0"):
        launch.main(["predict", str(folder / "run"), "--help"])
    assert "--beams" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        launch.main(["predict"])


def test_a_model_that_predicts_nothing_is_named(tmp_path):
    save(tmp_path / "run", SMALL.decoder, {})
    with pytest.raises(UserError, match="holds ReportDecoder; predict answers for RetCLIP, Report"):
        predictor_of(tmp_path / "run")
    for module in PREDICTORS:
        assert module.OBJECTIVE and module.add_arguments.__doc__ and module.run.__doc__
