"""A photograph looks to every reader of a model as it did in the model's training, whatever its shape."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from data_pipelines.language import tokenizers
from data_pipelines.transforms.flair import Canvas
from data_pipelines.transforms.steps import preprocess
from fundax.config import load as load_config
from fundax.encoders.backbone import preprocessing
from fundax.encoders.vit import ViT
from fundax.inference.explain import over_photograph, read_looker
from fundax.inference.labels import predicted
from fundax.inference.model import load
from fundax.interop import backbone, export
from fundax.interop import load as load_checkpoint
from fundax.interop.read import read_run
from fundax.objectives.clip import clip
from fundax.objectives.flair import FLAIR, flair, text_encoder
from fundax.objectives.keepfit import KeepFIT
from fundax.objectives.keepfit_reference import V1
from fundax.recipe import Recipe
from fundax.runtime.checkpoint import Checkpoints
from fundax.runtime.workdir import write_json
from fundax.train.loop import fit
from fundax.train.stored import describe

CONFIGS = Path(__file__).parents[3] / "configs"
WORDS = tokenizers.bundled(32)
BASE = flair("smoke", vocab=WORDS.vocab_size, context=32)
SEEING = FLAIR(ViT(32, 8, 16, 1, 2), text_encoder("smoke", WORDS.vocab_size), embed=16, context=32)
MODELS = {"flair": BASE, "keepfit": KeepFIT(BASE, V1, appearance=1)}
CANVAS = {"resize": "canvas", "interpolation": "bilinear", "mean": [0, 0, 0], "std": [1, 1, 1], "image_size": 32}
WIDE = np.random.default_rng(3).integers(0, 256, (60, 90, 3), dtype=np.uint8)


def a_run(folder, objective, tokenizer=WORDS):
    """A run of `objective` with random weights, in the form that training leaves."""
    recipe = Recipe(objective=objective, train=None, optimizer=None, steps=1, batch=2, tokenizer=tokenizer)
    describe(recipe, folder)
    batch = jax.tree.map(lambda s: np.ones(s.shape, s.dtype), objective.batch_spec(2))
    params, extra = objective.init(jax.random.key(0), batch)
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(1, {"params": params, "extra": extra, "opt": {}}, {}, {})
    return folder


@pytest.fixture(scope="module", params=list(MODELS))
def run(request, tmp_path_factory):
    return a_run(tmp_path_factory.mktemp("runs") / request.param, MODELS[request.param])


def on_canvas(photograph, size=32):
    return Canvas(size)({"image": photograph}, np.random.default_rng(0))["image"]


def plain(facts):
    """As JSON has it, one row of means for all modalities."""
    facts = json.loads(json.dumps({name: facts[name] for name in CANVAS}))
    return {
        name: value[0] if isinstance(value, list) and isinstance(value[0], list) else value
        for name, value in facts.items()
    }


def test_the_objective_says_how_it_is_shown_photographs(run):
    assert plain(preprocessing(read_run(run).objective)) == CANVAS
    assert plain(json.loads((run / "preprocessing.json").read_text())) == CANVAS
    assert plain(read_run(run).preprocessing) == CANVAS
    found = backbone(run)
    assert plain(found.preprocessing) == CANVAS
    assert found.backbone.mean == ((0, 0, 0),) and found.backbone.std == ((1, 1, 1),)


def test_a_wide_photograph_is_shown_on_the_canvas_of_training(run):
    model, image = load(run), on_canvas(WIDE)
    assert (image[21:] == 0).all() and image[:21].any()  # 60 x 90 to 21 x 32
    np.testing.assert_array_equal(preprocess(WIDE, model.preprocessing), image)
    expected = model.objective.forward(model.params, model.extra, {"image": image[None]})["image_features"]
    np.testing.assert_allclose(model.encode_image([WIDE]), expected, atol=1e-6)
    squashed = np.asarray(Image.fromarray(WIDE).resize((32, 32), Image.Resampling.BICUBIC))
    assert np.abs(model.encode_image([squashed]) - expected).max() > 1e-3  # the features can tell


def test_a_real_photograph_is_shown_on_the_canvas_of_training(run, shared_data):
    photograph = np.asarray(Image.open(next((shared_data / "idrid").rglob("*.jpg"))).convert("RGB"))
    assert photograph.shape[0] != photograph.shape[1]
    model, image = load(run), on_canvas(photograph)
    expected = model.objective.forward(model.params, model.extra, {"image": image[None]})["image_features"]
    np.testing.assert_allclose(model.encode_image([photograph]), expected, atol=1e-6)


@pytest.mark.parametrize("config", ["linear_probe", "finetune", "regression", "zero_shot", "few_shot", "clip_adapter"])
def test_every_config_that_starts_from_it_shows_the_same(run, config):
    recipe, _ = load_config(CONFIGS / f"{config}.py", ["--smoke", "--init", str(run)])
    assert plain(recipe.preprocessing) == CANVAS
    assert plain(preprocessing(recipe.objective)) | {"resize": "canvas", "interpolation": "bilinear"} == CANVAS


def test_a_probe_predicts_as_it_was_trained(run, tmp_path):
    recipe, _ = load_config(CONFIGS / "linear_probe.py", ["--smoke", "--init", str(run)])
    fit(recipe, tmp_path)
    model, image = read_run(tmp_path), on_canvas(WIDE)
    Image.fromarray(WIDE).save(tmp_path / "wide.png")
    batch = {"image": image[None], "modality": np.zeros(1, np.int32)}
    expected = model.objective.forward(model.params, model.extra, batch)["probabilities"][0]
    np.testing.assert_allclose(predicted(model, tmp_path / "wide.png"), expected, atol=1e-6)


def test_an_export_is_read_with_the_canvas(run, tmp_path):
    export(run, "flair", tmp_path / "out")
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "flair.pth").write_bytes((tmp_path / "out" / "flair.pth").read_bytes())
    assert plain(load_checkpoint(tmp_path / "out").preprocessing) == CANVAS
    bare = plain(preprocessing(load_checkpoint(tmp_path / "bare").objective))
    assert bare == CANVAS | {"image_size": 512}  # which no shape of a ResNet shows


def test_runs_from_before_the_rule_had_a_name_are_read_with_it(run, tmp_path):
    old = a_run(tmp_path / "old", read_run(run).objective)
    write_json(old / "preprocessing.json", CANVAS | {"resize": "squash"})
    assert plain(load(old).preprocessing) == CANVAS and plain(backbone(old).preprocessing) == CANVAS


def test_a_map_lies_on_what_the_model_saw(tmp_path):
    looker = read_looker(a_run(tmp_path / "vit", SEEING))
    assert looker.preprocessing["resize"] == "canvas"
    grid = np.zeros((4, 4), np.float32)
    grid[0, 3] = 1  # the upper right patch: of 60 x 90, columns 68 to 90 and rows 0 to 22
    drawn = over_photograph(grid, 60, 90, looker.preprocessing, smooth=False)
    assert drawn[:22, 68:].all() and not drawn[23:].any() and not drawn[:, :67].any()
    cut = {"resize": "shortest", "resize_to": 64, "image_size": 32}  # the model saw the middle 30 x 30
    drawn = over_photograph(np.ones((4, 4), np.float32), 60, 90, cut)
    assert drawn[15:45, 30:60].all() and drawn.sum() == 900


def test_no_other_model_changes():
    assert preprocessing(clip("smoke"))["resize"] == "squash"
