"""Runs and exports from before the modules moved open, compute what they computed, and train on.

old_runs/README.md says how the files were made. Each archive comes with an .npz of the outputs of the code of that time.
"""

import json
import re
import tarfile
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

from fundax.encoders.backbone import Encoder
from fundax.inference import labels
from fundax.inference import model as predict
from fundax.interop.exchange import export
from fundax.interop.read import load, read_objective
from fundax.objectives.diffusion import Diffusion
from fundax.objectives.ibot import IBOT
from fundax.optim import adamw, constant
from fundax.recipe import Intervals, Recipe
from fundax.runtime.checkpoint import load_params
from fundax.train.loop import fit

HERE = Path(__file__).parent / "old_runs"
RUNS, EXPORTS = (
    sorted(path.name.split(".")[0] for path in (HERE / kind).glob("*.tar.xz")) for kind in ("workdirs", "exports")
)
OLD_NAME = re.compile(r'"(fundax(?:\.[a-z_0-9]+)+:\w+)"')
NO_RECORD = {"ret_clip", "retfound", "visionfm"}  # a PyTorch file without a record of ours
TOLERANCE = 1e-5  # of the largest number of an array, or of 1


def open_run(path):
    """(objective, params, extra) of a run at its latest step, which was the default when its outputs were computed."""
    return read_objective(path), *load_params(path, "latest")


def open_export(path):
    """(objective, params, extra) of an exported folder."""
    model = load(path)
    return model.objective, model.params, dict(model.extra)


def unpacked(kind, name, folder):
    with tarfile.open(HERE / kind / f"{name}.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder / name


def expected(kind, name):
    with np.load(HERE / kind / f"{name}.npz") as arrays:
        return dict(arrays)


NEW = {"0/points_refined"}  # outputs that older versions did not have


def same(found, wanted):
    assert found.keys() - NEW == wanted.keys()
    for name, value in wanted.items():
        assert found[name].dtype == value.dtype, name
        if value.dtype.kind == "f":
            bound = TOLERANCE * max(1.0, float(np.abs(value).max()))
            np.testing.assert_allclose(found[name], value, rtol=0, atol=bound, err_msg=name)
        else:
            np.testing.assert_array_equal(found[name], value, err_msg=name)


# ------------------------------------------------------------------------------------- batches by formula


def vocabulary(objective):
    holder = next((getattr(objective, name) for name in ("text", "decoder") if hasattr(objective, name)), None)
    return getattr(holder, "vocab", 0)


def tokens(shape, vocab):
    """Ids of texts that begin with vocab - 2, end with vocab - 1 and are filled up with 0."""
    row, column = np.indices(shape)
    length = np.maximum(shape[1] - 2 * row, 3)
    ids = 1 + (5 * row + 3 * column + row * column) % (vocab - 3)
    ids = np.where(column == 0, vocab - 2, np.where(column == length - 1, vocab - 1, ids))
    return np.where(column < length, ids, 0).astype(np.int32)


def label(objective, shape, dtype):
    """i32 [B] of 0 and 1; f32 [B K] of 0 and 1, where the first `grades` columns hold a single 1."""
    if dtype == np.int32:
        return (np.arange(shape[0]) % 2).astype(np.int32)
    row, column = np.indices(shape)
    found, grades = (row + column) % 2, getattr(objective, "grades", 0)
    return np.where(column < grades, column == row, found).astype(np.float32)


def array(objective, key, shape, dtype):
    flat = np.arange(np.prod(shape)).reshape(shape)
    name = key.removeprefix("elite/")
    flat = flat + 5 * (name != key) + 3 * (name == "right")
    if name == "label":
        return label(objective, shape, dtype)
    if name in ("text", "original"):
        found = tokens(shape, vocabulary(objective))
        return found + (name == "original") * (found == 5)
    if name == "mask":
        classes = 2 if len(shape) == 4 else max(2, objective.decoder.outputs)
        return (flat // 5 % classes).astype(dtype)
    by_name = {
        "category": flat // 2,
        "modality": flat % 2,
        "status": flat % 3 - 1,
        "findings": flat % 2,
        "points": flat % 7 + 0.5,
        "days": 30.0 * (flat + 1),
        "hidden": flat % 8 % 4 == 1,
        "masked": flat % 3 == 1,
        "left_present": flat % 3 != 1,
        "right_present": flat % 3 != 2,
        "present": flat >= 0,
    }
    if name in by_name:
        return by_name[name].astype(dtype)
    if dtype == np.uint8:
        return ((37 * flat + flat // 7 * 11 + flat // 48) % 251).astype(np.uint8)
    return ((17 * flat % 31) / 31 - 0.5).astype(dtype)


def batch_of(objective, rows=3):
    shapes = objective.batch_spec(rows).items()
    batch = {key: array(objective, key, shape.shape, np.dtype(shape.dtype)) for key, shape in shapes}
    return batch | ({"modality": np.arange(rows, dtype=np.int32) % 2} if isinstance(objective, Encoder) else {})


def questions(objective, batch):
    """The batches that `forward` is asked for: training's, and those that only prediction has."""
    if isinstance(objective, IBOT):
        return [{"image": batch["global"][:, 0]} | {k: batch[k] for k in ("modality",) if k in batch}]
    if hasattr(objective, "model"):  # an adapter behind a model: features or images
        spec = objective.model.batch_spec(3)["image"]
        return [batch, {"image": array(objective, "image", spec.shape, np.uint8)}]
    if hasattr(objective, "beams"):  # a report that is given, and one that is written
        return [batch, {"image": batch["image"]}]
    return [batch]


def outputs(objective, params, extra):
    """Every output of `forward`, and the loss where the objective has one that draws no noise."""

    if hasattr(objective, "model"):
        extra = {"model": {}} | extra  # a checkpoint holds no empty part, here that of a model without batch statistics

    def run(params, extra, batch):
        asked = [objective.forward(params, extra, question) for question in questions(objective, batch)]
        found = {f"{i}/{name}": value for i, one in enumerate(asked) for name, value in one.items()}
        if not isinstance(objective, Encoder | Diffusion):
            found["loss"] = objective.loss(params, extra, batch, jax.random.key(0), np.int32(0))[0]
        return found

    return {name: np.asarray(value) for name, value in jax.jit(run)(params, extra, batch_of(objective)).items()}


# --------------------------------------------------------------------------------------------------- tests


def old_names(folder):
    """The "module:name" strings of the objective that a run or an export keeps."""
    file = next(folder / name for name in ("fundax_export.json", "config.json") if (folder / name).is_file())
    return set(OLD_NAME.findall(json.dumps(json.loads(file.read_text())["objective"])))


@pytest.mark.parametrize("name", RUNS)
def test_an_old_run_opens_and_computes_the_same(name, tmp_path):
    folder = unpacked("workdirs", name, tmp_path)
    assert any(old.startswith("fundax.objectives.") for old in old_names(folder))
    same(outputs(*open_run(folder)), expected("workdirs", name))


@pytest.mark.parametrize("name", EXPORTS)
def test_an_old_export_opens_and_computes_the_same(name, tmp_path):
    if name in NO_RECORD:
        pytest.importorskip("torch", reason="torch, an extra, reads PyTorch files")
    folder = unpacked("exports", name, tmp_path)
    if name not in NO_RECORD:
        assert any(old.startswith("fundax.objectives.") for old in old_names(folder))
    same(outputs(*open_export(folder)), expected("exports", name))


def test_the_runs_hold_every_name_that_a_run_could(tmp_path):
    found = set()
    for name in RUNS:
        found |= old_names(unpacked("workdirs", name, tmp_path))
    assert found == set((HERE / "names.txt").read_text().split())


@pytest.mark.parametrize(
    "kind, name", [("workdirs", "clip_softmax"), ("exports", "clip_huggingface"), ("exports", "open_clip")]
)
def test_an_old_model_predicts_the_same(kind, name, tmp_path):
    same(predicted(unpacked(kind, name, tmp_path)), expected(".", "predicted"))


def predicted(folder):
    model = predict.load(folder)
    flat = np.arange(20 * 24 * 3).reshape(20, 24, 3)
    images = [((5 * flat + flat // 72 * shift) % 256).astype(np.uint8) for shift in (3, 7)]
    words = ["optic disc", "drusen and hard exudates"]
    return {
        "image": model.encode_image(images),
        "text": model.encode_text(words),
        "zero_shot": model.zero_shot(images, words),
    }


def test_extra_state_without_arrays_is_put_back(tmp_path):
    model = load(unpacked("workdirs", "adapted_clip", tmp_path))  # CLIP has no batch statistics
    (answer,) = labels.predictions(model, [np.zeros((20, 24, 3), np.uint8)], 0)
    assert answer.shape == (3,) and np.isclose(answer.sum(), 1)


def test_an_old_run_is_exported_as_before(tmp_path):
    export(unpacked("workdirs", "clip_softmax", tmp_path), "huggingface", tmp_path / "out")
    same(predicted(tmp_path / "out"), expected(".", "predicted"))


class Batches:
    """Batch g by formula, another for each g; the position is g."""

    def __init__(self, objective, batch):
        self.batch, self.step = batch_of(objective, batch), 0

    def __iter__(self):
        return self

    def __next__(self):
        self.step += 1
        return {key: np.roll(value, self.step, axis=-1) for key, value in self.batch.items()}

    def get_state(self):
        return {"step": self.step}

    def set_state(self, state):
        self.step = state["step"]


def recipe(objective, steps):
    """What the run `resume` was trained with for 3 steps."""
    return Recipe(
        objective=objective,
        train=lambda shard, shards: Batches(objective, 8),
        optimizer=optax.chain(optax.clip_by_global_norm(1.0), adamw(constant(0.01), weight_decay=0.1)),
        steps=steps,
        batch=8,
        intervals=Intervals(log=1, save=3, eval=0),
        mesh=(1, 1),
    )


def leaves(state):
    """Parameters by path, as arrays of an .npz."""
    found = jax.tree_util.tree_leaves_with_path(state.params)
    return {"/".join(str(key.key) for key in path): np.asarray(leaf) for path, leaf in found}


def test_training_goes_on_from_an_old_run(tmp_path):
    folder = unpacked("workdirs", "resume", tmp_path)
    before = (folder / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in before] == [1, 2, 3]
    state = fit(recipe(open_run(folder)[0], 5), folder)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert int(state.step) == 5 and [row["step"] for row in rows] == [1, 2, 3, 4, 5]
    assert sorted(int(path.name) for path in (folder / "checkpoints").glob("[0-9]*")) == [3, 5]
    # The gradient of the keys' bias is 0: softmax does not change if all logits of a query do. Adam divides its rounding errors
    # by their own size, so that bias moves by the learning rate in directions that mean nothing.
    same(without_key_bias(leaves(state)), without_key_bias(expected(".", "resumed")))


def without_key_bias(found):
    return {name: np.delete(x, 1, axis=-2) if name.endswith("qkv/bias") else x for name, x in found.items()}
