"""Task sets: written and read back, opened as an encoder and as each task, and what is refused."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest

import fundax
from fundax.encoders.backbone import Backbone
from fundax.encoders.heads import MLPHead
from fundax.encoders.pyramid import FPN
from fundax.encoders.resnet import ResNet
from fundax.interop import load
from fundax.interop.checkpoint import Checkpoint
from fundax.interop.task_set import read_about, read_task_set, write_task_set
from fundax.objectives.classify import Classify
from fundax.objectives.dense import Landmark
from fundax.objectives.ensemble import ensemble, stacked
from fundax.types import UserError

TOWER = ResNet(image_size=32, width_first=4, blocks=(1, 1, 1, 1), basic=True)
PHOTOGRAPH = np.random.default_rng(0).integers(0, 256, (40, 60, 3)).astype(np.uint8)
FACTS = {"modality": "CFP", "title": "a question", "sure": 0.9, "usual": 2.0}


def of(objective, key, shared):
    """An ensemble of two heads on one encoder, with arrays that fp16 holds exactly."""
    states = [objective.init(jax.random.key(key + k), {}) for k in range(2)]
    for params, extra in states:
        params["image"], extra["image"] = shared
    params, extra = jax.tree.map(np.asarray, stacked(states, True))
    params, extra = jax.tree.map(lambda x: x.astype(np.float16).astype(np.float32), (params, extra))
    facts = {"image_size": 32, "resize": "squash", "interpolation": "bilinear"}
    return Checkpoint(ensemble(objective, 2, True), params, facts, extra=extra)


@pytest.fixture(scope="module")
def models():
    probe = Classify(
        Backbone(TOWER, feature="pooled"), MLPHead(3, 1, standardized=True, epsilon=1e-12), classes=("a", "b", "c")
    )
    params, extra = probe.init(jax.random.key(7), {})
    shared = params["image"], extra["image"]
    marks = Landmark(TOWER, FPN(2, width=4, stride=4), (), ("fovea", "disc"), frozen=True)
    return {"grade": of(probe, 0, shared), "landmarks": of(marks, 10, shared)}


@pytest.fixture(scope="module")
def folder(models, tmp_path_factory):
    out = tmp_path_factory.mktemp("sets") / "small"
    line = write_task_set(
        out, models, {"grade": FACTS, "landmarks": {**FACTS, "sure": {"fovea": 0.1, "disc": 0.1}}}, "# Card"
    )
    assert line.startswith(f"{out}: grade, landmarks; ")
    return out


def test_tasks_are_read_back_bit_for_bit(models, folder):
    found = read_task_set(folder)
    assert set(found) == set(models) == set(read_about(folder))
    for name, model in models.items():
        assert found[name].objective == model.objective
        jax.tree.map(np.testing.assert_array_equal, found[name].params, model.params)
        jax.tree.map(np.testing.assert_array_equal, found[name].extra, model.extra)
    assert (folder / "README.md").read_text() == "# Card"


def test_the_encoder_is_stored_once_and_opens_alone(models, folder):
    encoder = load(folder)
    assert type(encoder.objective).__name__ == "Encoder" and encoder.preprocessing["image_size"] == 32
    jax.tree.map(np.testing.assert_array_equal, encoder.params["image"], models["grade"].params["image"])
    expected = models["grade"].objective.tower.features(
        models["grade"].params, models["grade"].extra, {"image": PHOTOGRAPH[None, :32, :32]}
    )[0]
    model = fundax.load(folder)
    np.testing.assert_allclose(model.encode_image([PHOTOGRAPH[:32, :32]]), expected, rtol=1e-4, atol=1e-6)


def test_a_task_opens_by_its_path(models, folder):
    task = load(folder / "landmarks")
    assert task.objective == models["landmarks"].objective and task.source["name"] == "small/landmarks"
    with pytest.raises(UserError, match="there is no task 'vessels'; expected one of grade, landmarks"):
        load(folder / "vessels")


def test_what_is_refused(models, folder, tmp_path):
    params = models["grade"].params
    blank = {**params, "image": jax.tree.map(np.zeros_like, params["image"])}
    other = replace(models["grade"], params=blank)
    with pytest.raises(UserError, match="other: its encoder differs from that of grade"):
        write_task_set(tmp_path / "x", {"grade": models["grade"], "other": other}, {"grade": {}, "other": {}}, "")
    assert not (tmp_path / "x").exists()
    with pytest.raises(UserError, match="is not empty"):
        write_task_set(folder, models, {name: {} for name in models}, "")
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for name in ("model.json", "model.safetensors"):
        (damaged / name).write_bytes((folder / name).read_bytes())
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-5] ^= 1
    (damaged / "model.safetensors").write_bytes(bytes(weights))
    with pytest.raises(UserError, match="is not what model"):
        load(damaged)
    config = json.loads((folder / "model.json").read_text())
    (damaged / "model.json").write_text(json.dumps({**config, "version": 2}))
    with pytest.raises(UserError, match="version 2; this fundax reads version 1"):
        load(damaged)
