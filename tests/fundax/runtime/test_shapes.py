"""JSON files of a run, and .npz files: other types, deep nesting and bombs are one clear error that names the file."""

import json
import zipfile

import numpy as np
import pytest

from fundax.runtime import serialize
from fundax.runtime.arrays import read_arrays
from fundax.runtime.shapes import Config, Preprocessing
from fundax.runtime.workdir import read_json
from fundax.types import UserError


@pytest.mark.parametrize(
    ("form", "value", "message"),
    [
        (Config, {"argv": "--smoke"}, "argv"),
        (Config, {"data": {"sources": [{"rows": "many"}]}}, "rows"),
        (Config, {"data": {"sources": 5}}, "sources"),
        (Config, {"history": [{"step": None}]}, "step"),
        (Config, {"objective": []}, "objective"),
        (Preprocessing, {"image_size": "8"}, "image_size"),
        (Preprocessing, {"mean": [1, "a", 2]}, "mean"),
        (Preprocessing, {"classes": "ab"}, "classes"),
        (Preprocessing, {"classes": ["\ud800"]}, "lone surrogate"),
    ],
)
def test_values_of_other_types_are_named(tmp_path, form, value, message):
    (tmp_path / "x.json").write_text(json.dumps(value))
    with pytest.raises(UserError, match=rf"x\.json: .*{message}") as caught:
        read_json(tmp_path / "x.json", form)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("depth", [65, 900, 100_000])
def test_deep_nesting_is_an_error(tmp_path, depth):
    (tmp_path / "x.json").write_text('{"args": ' + '{"a": ' * depth + "1" + "}" * depth + "}")
    with pytest.raises(UserError, match=r"x\.json: (nested more than 64|not JSON)"):
        read_json(tmp_path / "x.json", Config)


def test_keys_of_other_versions_pass(tmp_path):
    value = {"new": [1], "data": {"sources": [{"name": "a", "also": 1}]}, "argv": ["a"], "objective": None}
    (tmp_path / "x.json").write_text(json.dumps(value))
    assert read_json(tmp_path / "x.json", Config) == value


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("image", 5, "image: int"), ("embed", "8", "embed: str"), ("embed", 2**40, "is not a size of any model"),
        ("mean", {"@tuple": [1, 2, "x"]}, "mean"), ("image", {"@dtype": "object"}, "not a dtype"),
    ],
)  # fmt: skip
def test_fields_of_an_objective_have_their_types(field, value, message):
    image = {"@": "encoders.ViT", "image_size": 16, "patch": 8, "width": 32, "depth": 1, "heads": 2}
    text = {"@": "encoders.TextTransformer", "vocab": 16, "context": 6, "width": 32, "depth": 1, "heads": 2}
    objective = {"@": "objectives.CLIP", "image": image, "text": text, "embed": 8}
    serialize.from_json(objective)
    with pytest.raises(UserError, match=message):
        serialize.from_json(objective | {field: value})


def test_an_archive_that_unpacks_to_far_more_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for k in range(300):
            archive.writestr(f"{k}.npy", bytes(2**20))
    with pytest.raises(UserError, match=r"x\.npz: cannot be read.*unpack to 314,572,800"):
        read_arrays(tmp_path / "x.npz")


def test_damaged_archives_are_one_line(tmp_path):
    path = tmp_path / "x.npz"
    np.savez_compressed(path, a=np.arange(50), b=np.ones(3, np.float32))
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    for _ in range(150):
        damaged = bytearray(whole)
        damaged[rng.integers(len(damaged))] = rng.integers(256)
        path.write_bytes(bytes(damaged))
        try:
            read_arrays(path)
        except UserError as error:
            assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
