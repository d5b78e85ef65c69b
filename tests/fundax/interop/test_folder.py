"""Folders for other programs: whole or not at all, readable by others, with their record."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from fundax.encoders.clip_text import TextTransformer
from fundax.encoders.vit import ViT
from fundax.interop import folder
from fundax.interop.checkpoint import Checkpoint, preprocessing_of, probe
from fundax.objectives.clip import CLIP, MEAN, STD
from fundax.runtime.workdir import read_json
from fundax.types import UserError

OBJECTIVE = CLIP(ViT(8, 4, 8, 1, 2), TextTransformer(11, 5, 8, 1, 2), embed=6)


def test_a_block_that_fails_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError), folder.fresh_folder(tmp_path / "a" / "out") as temporary:
        (temporary / "half").touch()
        raise RuntimeError
    assert list((tmp_path / "a").iterdir()) == []


def test_an_existing_folder_is_replaced_only_when_asked_and_only_at_the_end(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").touch()
    with pytest.raises(UserError, match="out is not empty"), folder.fresh_folder(out):
        pytest.fail("the block must not run")
    with folder.fresh_folder(out, overwrite=True) as temporary:
        (temporary / "new").touch()
        assert (out / "old").exists()
    assert [path.name for path in out.iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_others_may_read_what_is_written(tmp_path):
    (tmp_path / "plain").touch()
    with folder.fresh_folder(tmp_path / "out") as temporary:
        folder.write_model(
            temporary, "x.safetensors", {"w": np.zeros(2, np.float32)}, Checkpoint(OBJECTIVE, {}, {}), {}
        )
    mode = (tmp_path / "plain").stat().st_mode
    assert all(path.stat().st_mode == mode for path in (tmp_path / "out").iterdir())


def test_record_and_card(tmp_path):
    bundle = Checkpoint(OBJECTIVE, {}, {"image_size": 8}, source={"name": "my-run", "step": 3})
    state = {"w": np.arange(6, dtype=np.float32).reshape(2, 3).T}
    folder.write_model(tmp_path, "x.safetensors", state, bundle, {"logit_bias": -10.0})
    folder.write_card(tmp_path, bundle, "transformers", "print('use')")
    record = json.loads((tmp_path / folder.RECORD).read_text())
    assert record["left_out"] == {"logit_bias": -10.0}
    assert record["objective"]["@"] == "objectives.CLIP"
    assert list(record["tensors_sha256"]) == ["w"]
    np.testing.assert_array_equal(load_file(tmp_path / "x.safetensors")["w"], state["w"])
    card = (tmp_path / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert "# my-run" in card and "| image_size | `8` |" in card and "print('use')" in card


def test_preprocessing_has_defaults_and_agrees_with_the_model():
    assert preprocessing_of(Checkpoint(OBJECTIVE, {}, {})) == {
        "image_size": 8, "mean": list(MEAN), "std": list(STD), "resize": "squash", "interpolation": "bicubic",
    }  # fmt: skip
    with pytest.raises(UserError, match="image_size is 9, but the model takes 8"):
        preprocessing_of(Checkpoint(OBJECTIVE, {}, {"image_size": 9}))
    with pytest.raises(UserError, match=r"preprocessing\.std is \[1, 1, 1\]"):
        preprocessing_of(Checkpoint(OBJECTIVE, {}, {"std": [1, 1, 1]}))


def test_json_files(tmp_path):
    for content, words in (("{", "not JSON"), ("[1]", "expected a JSON object, got list")):
        (tmp_path / "x.json").write_text(content)
        with pytest.raises(UserError, match=rf"x\.json: {words}"):
            read_json(tmp_path / "x.json")
    with pytest.raises(UserError, match="no such file"):
        read_json(tmp_path / "absent.json")


def test_probe_ends_every_text_and_is_the_same_every_time():
    image, text = probe(Checkpoint(OBJECTIVE, {}, {}), count=8)
    assert image.shape == (8, 8, 8, 3) and image.dtype == np.float32
    assert (text.max(1) == 10).all()  # the highest id of the vocabulary closes a text
    np.testing.assert_array_equal(text, probe(Checkpoint(OBJECTIVE, {}, {}), count=8)[1])


def test_digests_are_compared_when_an_export_is_read(tmp_path):
    state = {"w": np.arange(6, dtype=np.float32).reshape(2, 3)}
    folder.write_model(tmp_path, "model.safetensors", state, Checkpoint(OBJECTIVE, {}, {"image_size": 8}), {})
    folder.check_record(tmp_path, state)
    folder.check_record(tmp_path, {"module.backbone.w": state["w"], "other": np.zeros(2)})
    with pytest.raises(UserError, match=r"1 of 1 tensors are not those that were exported, the first is w; copy"):
        folder.check_record(tmp_path, {"w": state["w"] + 1})
    (tmp_path / folder.RECORD).write_text('{"tensors_sha256": {"w": 5}, "objective": {}, "preprocessing": {}}')
    with pytest.raises(UserError, match=r"fundax_export\.json: .*'w'.* not an instance of str"):
        folder.check_record(tmp_path, state)
    (tmp_path / folder.RECORD).write_text('{"objective": {}}')
    with pytest.raises(UserError, match=r"fundax_export\.json: has no preprocessing"):
        folder.read_record(tmp_path)


def test_a_card_holds_names_as_text(tmp_path):
    source = {"name": "<script>x</script>\n# [b](c)", "step": "3` | <img>"}
    folder.write_card(tmp_path, Checkpoint(OBJECTIVE, {}, {"classes": ("a|b`", "<b>")}, source=source), "x", "y")
    card = (tmp_path / "README.md").read_text()
    assert "<script>" not in card and "<img>" not in card and "<b>" not in card
    assert "\n# [b]" not in card and all(line.count("|") == 3 for line in card.splitlines() if line.startswith("| "))
