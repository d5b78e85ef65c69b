"""Attention maps on photographs: shares by hand, shapes of every kind of run, and clear words for runs without a ViT."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from PIL import Image

from data_pipelines.language import tokenizers
from data_pipelines.records import DataError
from fundax.encoders.backbone import normalized, tower_of
from fundax.encoders.clip_text import TextTransformer
from fundax.encoders.heads import IBOTHead
from fundax.encoders.resnet import ResNet
from fundax.encoders.vit import ViT
from fundax.inference.explain import class_attention, explain, inside, over_photograph, overlay, read_looker, top_mass
from fundax.interop import keymap
from fundax.objectives.clip import CLIP
from fundax.objectives.ibot import IBOT
from fundax.params import unflatten
from fundax.runtime import serialize
from fundax.runtime.checkpoint import Checkpoints
from fundax.types import UserError

TOKENIZER = tokenizers.bundled(context=8)
TOWER = ViT(16, 8, 16, 1, 2)
WORDS = TextTransformer(TOKENIZER.vocab_size, 8, 16, 1, 2)
OBJECTIVE = CLIP(TOWER, WORDS, embed=6)
STUDENT = ViT(16, 8, 16, 1, 2, mask_token=True, any_size=True, pre_norm=False)
TEACHER = IBOT(
    STUDENT, IBOTHead(4, hidden=8, bottleneck=4), 10, 5, mean=((0.1,) * 3, (0.5,) * 3), std=((0.2,) * 3,) * 2
)


def numbers(shapes, seed=0):
    rng = np.random.default_rng(seed)
    return unflatten({path: 0.3 * rng.standard_normal(shape, np.float32) for path, shape in shapes.items()})


def save(folder, objective, states, resize="squash"):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"objective": serialize.to_json(objective)}))
    (folder / "preprocessing.json").write_text(json.dumps({"image_size": 16, "resize": resize}))
    with Checkpoints(folder, keep=5) as kept:
        for step, (params, extra) in states.items():
            kept.save(step, {"params": params, "extra": extra, "opt": {}}, {}, {})
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    states = {step: (numbers(keymap.shapes_of(OBJECTIVE), step), {}) for step in (0, 7)}
    return save(tmp_path_factory.mktemp("explain") / "run", OBJECTIVE, states)


@pytest.fixture
def photograph(tmp_path):
    path = tmp_path / "eye.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)).save(path)
    return path


def test_top_mass_by_hand():
    np.testing.assert_array_equal(top_mass(np.array([[0.5, 0.2], [0.25, 0.05]]), 0.6), [[True, False], [True, False]])
    assert top_mass(np.full((2, 2), 0.25), 1.0).all()


def test_inside_by_hand():
    attention, mask = np.array([[0.1, 0.2], [0.3, 0.4]], np.float32), np.array([[False, False], [False, True]])
    np.testing.assert_allclose(inside(attention, mask), (0.4, 0.25), rtol=1e-6)
    field = np.array([[False, True], [False, True]])
    np.testing.assert_allclose(inside(attention, mask, field), (0.4 / 0.6, 0.5), rtol=1e-6)
    with pytest.raises(UserError, match="field of view"):
        inside(attention, mask, np.zeros_like(mask))


def test_maps_lie_where_the_model_looked():
    grid = np.array([[1, 0], [0, 0]], np.float32)
    plain = over_photograph(grid, 4, 6, smooth=False)
    np.testing.assert_array_equal(plain, np.outer([1, 1, 0, 0], [1, 1, 1, 0, 0, 0]))
    middle = over_photograph(grid, 2, 4, {"resize": "shortest"}, smooth=False)  # a 2 x 2 square in the middle was seen
    np.testing.assert_array_equal(middle, [[0, 1, 0, 0], [0, 0, 0, 0]])
    padded = over_photograph(grid, 2, 4, {"resize": "longest"}, smooth=False)  # rows 0 and 3 of 4 were padding
    np.testing.assert_array_equal(padded, [[1, 1, 0, 0], [0, 0, 0, 0]])
    assert over_photograph(grid, 40, 60).shape == (40, 60)


def test_overlay_brightens_what_is_looked_at():
    black = np.zeros((4, 4, 3), np.uint8)
    drawn = overlay(black, np.array([[0.9, 0.1], [0.1, 0.1]], np.float32)).astype(int).sum(-1)
    assert drawn[0, 0] > 2 * drawn[3, 3] and drawn.shape == (4, 4)


def test_class_attention_sums_to_one_without_the_class_token():
    params = numbers(keymap.shapes_of(OBJECTIVE))["image"]
    out = jax.jit(lambda image: class_attention(TOWER, params, image))(np.zeros((1, 16, 16, 3), np.float32))
    assert out["heads"].shape == (1, 2, 2, 2) and out["mean"].shape == out["rollout"].shape == (1, 2, 2)
    assert (np.asarray(out["heads"].sum((2, 3))) < 1).all()
    # one block: half of the class token stays, the rest is spread as the mean over heads
    np.testing.assert_allclose(out["rollout"], out["mean"] / 2, rtol=1e-5)


def test_explain_writes_overlays_of_the_photographs_size(run, photograph, tmp_path):
    written = explain(run, [photograph, photograph], tmp_path / "out", checkpoints="all", mass=0.6)
    names = {path.name for path in written}
    assert {"eye_0_mean.png", "eye_0_rollout.png", "eye_0_head2.png", "eye_0.png", "eye_0_strip.png"} <= names
    assert all(path.exists() for path in written) and len(written) == 12
    with Image.open(tmp_path / "out" / "eye_1_mean.png") as picture:
        assert picture.size == (60, 40)
    assert json.loads((tmp_path / "out" / "explain.json").read_text())["steps"] == [0, 7]


def test_a_self_distilled_run_shows_its_teacher(tmp_path):
    params, extra = jax.eval_shape(TEACHER.init, jax.random.key(0), TEACHER.batch_spec(1))
    arrays = jax.tree.map(lambda x: np.full(x.shape, 0.1, x.dtype), (params, extra))
    folder = save(tmp_path / "ibot", TEACHER, {3: arrays})
    looker = read_looker(folder, modality="FFA")
    assert looker.row == 1 and looker.step == 3 and "mask_token" in looker.params
    white = np.full((1, 2, 2, 3), 255, np.uint8)
    np.testing.assert_allclose(normalized(TEACHER, white, 1), np.full((1, 2, 2, 3), 2.5), rtol=1e-6)
    assert looker.look(white[0])["mean"].shape == (2, 2)


def test_runs_without_a_vit_and_other_mistakes(run, photograph, tmp_path):
    with pytest.raises(UserError, match="its image encoder is a ResNet"):
        tower_of(dataclasses.replace(OBJECTIVE, image=ResNet(32)), {}, {})
    with pytest.raises(UserError, match="no class token"):
        tower_of(CLIP(TOWER.clone(class_token=False, pool="mean"), WORDS, embed=6), {}, {})
    with pytest.raises(UserError, match="not a run of fundax"):
        explain(tmp_path, [photograph], tmp_path / "out")
    with pytest.raises(UserError, match=r"best, latest or one of \[0, 7\]"):
        explain(run, [photograph], tmp_path / "out", checkpoints="3")
    with pytest.raises(UserError, match="mass is 0"):
        explain(run, [photograph], tmp_path / "out", mass=0)
    with pytest.raises(UserError, match="no photograph"):
        explain(run, [], tmp_path / "out")
    with pytest.raises(DataError, match="no such image file"):
        explain(run, [tmp_path / "absent.png"], tmp_path / "out")
    assert not (tmp_path / "out").exists()
