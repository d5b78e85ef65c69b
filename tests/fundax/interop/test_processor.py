"""Folders of transformers: photographs are resized, cropped and normalised as their image processor says."""

import json
import logging

import numpy as np
import pytest

from data_pipelines.transforms.steps import preprocess
from fundax.encoders.clip_text import TextTransformer
from fundax.encoders.vit import ViT
from fundax.inference.model import load
from fundax.interop import huggingface, import_checkpoint, keymap, processor
from fundax.interop.checkpoint import Checkpoint
from fundax.interop.read import read_run
from fundax.objectives.clip import CLIP
from fundax.params import unflatten
from fundax.types import UserError

OBJECTIVE = CLIP(ViT(32, 8, 16, 1, 2), TextTransformer(40, 8, 16, 1, 2), embed=4)
ROWS, COLUMNS = np.mgrid[:60, :90]
PICTURE = np.stack([4 * ROWS, 2 * COLUMNS, (ROWS * COLUMNS) % 251], -1).astype(np.uint8)
# As save_pretrained of transformers 5.24 writes it into processor_config.json.
SAVED = {
    "crop_size": {"height": 32, "width": 32}, "do_center_crop": True, "do_convert_rgb": True, "do_normalize": True,
    "do_rescale": True, "do_resize": True, "image_mean": [0.485, 0.456, 0.406],
    "image_processor_type": "CLIPImageProcessor", "image_std": [0.229, 0.224, 0.225], "resample": 3,
    "rescale_factor": 0.00392156862745098, "size": {"shortest_edge": 32},
}  # fmt: skip
CHANGES = {
    "shortest edge": {},
    "shortest edge, smaller crop": {"size": {"shortest_edge": 37}},
    "shortest edge, odd crop": {"size": {"shortest_edge": 34}},
    "squash": {"size": {"height": 32, "width": 32}, "do_center_crop": False},
    "squash and crop": {"size": {"height": 35, "width": 35}},
    "not normalised": {"do_normalize": False},
    "not rescaled": {"do_rescale": False},
    "from -1 to 1": {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 2},
    "old form": {"size": 32, "crop_size": 32},
}
# Image features of PICTURE by transformers' CLIPModel and CLIPImageProcessorPil; see test_stored_numbers.
FEATURES = {
    "shortest edge": [-0.24127549, 0.03313239, 0.72809452, 0.64075482],
    "shortest edge, smaller crop": [-0.24268235, 0.01943409, 0.72994357, 0.63867819],
    "shortest edge, odd crop": [-0.23952135, 0.01793559, 0.73240030, 0.63710105],
    "squash": [-0.23785034, 0.00988649, 0.74272770, 0.62584746],
    "squash and crop": [-0.23851687, 0.02240593, 0.73984104, 0.62868357],
    "not normalised": [-0.26146147, -0.00241800, 0.73634803, 0.62403816],
    "not rescaled": [-0.26245201, -0.00103310, 0.73593354, 0.62411505],
    "from -1 to 1": [-0.22660010, 0.01232037, 0.73963076, 0.63359839],
    "old form": [-0.24127549, 0.03313239, 0.72809452, 0.64075482],
}


def numbers():
    rng = np.random.default_rng(0)
    shapes = keymap.shapes_of(OBJECTIVE)
    return unflatten({path: 0.3 * rng.standard_normal(shape, np.float32) for path, shape in shapes.items()})


@pytest.fixture
def folder(tmp_path):
    """A CLIPModel's folder without any processor."""
    huggingface.write_folder(Checkpoint(OBJECTIVE, numbers(), {}), tmp_path / "model")
    (tmp_path / "model" / processor.FILE).unlink()
    (tmp_path / "model" / "fundax_export.json").unlink()
    return tmp_path / "model"


def saved(folder, name, **changes):
    settings = SAVED | changes
    nested = {"image_processor": settings, "processor_class": "CLIPProcessor"}
    (folder / name).write_text(json.dumps(nested if name == processor.NEW_FILE else settings))
    return settings


@pytest.mark.parametrize("name", [processor.FILE, processor.NEW_FILE])
@pytest.mark.parametrize("case", CHANGES)
def test_features_are_transformers_own(folder, name, case):
    saved(folder, name, **CHANGES[case])
    np.testing.assert_allclose(load(folder).encode_image([PICTURE])[0], FEATURES[case], atol=1e-5)


@pytest.mark.parametrize("case", CHANGES)
def test_stored_numbers(folder, case):
    torch = pytest.importorskip("torch", reason="compares with transformers' CLIPModel")
    from transformers import AutoModel
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    settings = saved(folder, processor.FILE, **CHANGES[case])
    pixels = CLIPImageProcessorPil.from_dict(settings)(PICTURE, return_tensors="pt")["pixel_values"].float()
    program = AutoModel.from_pretrained(str(folder), dtype=torch.float32).eval()
    with torch.no_grad():
        ids = torch.tensor([[1, 39]])
        found = program(pixel_values=pixels, input_ids=ids).image_embeds[0].numpy()
    np.testing.assert_allclose(found, FEATURES[case], atol=1e-6)


def test_the_new_file_wins_over_the_old_one(folder):
    saved(folder, processor.FILE, image_mean=[0.1] * 3)
    saved(folder, processor.NEW_FILE)
    assert load(folder).preprocessing["mean"] == SAVED["image_mean"]
    (folder / processor.NEW_FILE).write_text('{"processor_class": "CLIPProcessor"}')  # of transformers 4
    assert load(folder).preprocessing["mean"] == [0.1] * 3


def test_the_crop_is_where_transformers_cuts(folder):
    saved(folder, processor.FILE)
    tall = np.zeros((90, 61, 3), np.uint8)
    tall[:] = np.arange(90)[:, None, None]
    seen = preprocess(tall, load(folder).preprocessing)  # 47 x 32, of which rows 7 to 39 remain
    np.testing.assert_allclose(seen[[0, -1], 0, 0], [(7.5 * 90 / 47) - 0.5, (38.5 * 90 / 47) - 0.5], atol=1)


def test_where_nothing_says_one_line_does(folder, caplog, tmp_path):
    with caplog.at_level(logging.WARNING):
        model = load(folder)
        load(folder)
    assert model.preprocessing["resize"] == "shortest" and len(caplog.records) == 1
    assert "assumed: CLIP's mean and deviation, the shortest edge and a centre crop" in caplog.text
    caplog.clear()
    shown = {"resize": "squash", "mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
    import_checkpoint(folder, tmp_path / "run", shown=shown)
    stored = read_run(tmp_path / "run")
    assert not caplog.records and stored.objective.mean == (0.5,) * 3
    assert stored.preprocessing["resize"] == "squash" and list(stored.preprocessing["std"]) == [0.25] * 3
    with pytest.raises(UserError, match="expected squash, shortest, longest, canvas"):
        import_checkpoint(folder, tmp_path / "other", shown={"resize": "pad"})
    with pytest.raises(UserError, match="three numbers"):
        import_checkpoint(folder, tmp_path / "other", shown={"mean": (0.5,)})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"do_resize": False}, "does not resize"),
        ({"size": {"shortest_edge": 32}, "do_center_crop": False}, "crops nothing"),
        ({"size": {"shortest_edge": 32, "longest_edge": 40}}, "expected a shortest edge or a square"),
        ({"size": {"height": 32, "width": 40}}, "expected a shortest edge or a square"),
        ({"crop_size": {"height": 32, "width": 30}}, "expected a square"),
        ({"resample": 5}, "resizes by hamming"),
        ({"resample": 9}, "in its settings"),
        ({"image_mean": None}, "in its settings"),
        ({"crop_size": 28}, "image_size is 28, but the model takes 32"),
    ],
)
def test_settings_without_a_counterpart_are_named(folder, changes, words):
    saved(folder, processor.NEW_FILE, **changes)
    with pytest.raises(UserError, match=words):
        load(folder)
