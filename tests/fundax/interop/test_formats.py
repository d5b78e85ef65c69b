"""The table of formats; models whose formats are PyTorch files: export, import, and a log of what is left out."""

import json
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from fundax.encoders.backbone import Encoder
from fundax.encoders.bert import BERT
from fundax.encoders.report_decoder import ReportDecoder
from fundax.encoders.resnet import ResNet
from fundax.encoders.unetr import UNETR, Linear
from fundax.encoders.vit import dino_vit
from fundax.interop import all_formats, export, export_names, import_checkpoint, load
from fundax.interop.checkpoint import always
from fundax.interop.weights import SUFFIXES
from fundax.objectives.clip import CLIP
from fundax.objectives.dense import Landmark, Segment
from fundax.objectives.flair import FLAIR, POOL_LAYERS
from fundax.objectives.ibot import IBOT
from fundax.objectives.keepfit import KeepFIT
from fundax.objectives.keepfit_reference import V2
from fundax.objectives.report import Report
from fundax.params import flatten
from fundax.runtime.checkpoint import Checkpoints
from fundax.runtime.serialize import to_json
from fundax.runtime.workdir import write_json
from fundax.types import UserError

TEXT = BERT(13, 6, 8, 2, 2, 16, pool="unmasked_mean", pool_layers=POOL_LAYERS)
RESNET = ResNet(32, 4, (1, 1, 1, 1))
DECODER = ReportDecoder(13, context=5, width=8, depth=1, heads=4, hidden=8)
DINO = dino_vit("B/16").clone(image_size=32, patch=16, width=8, depth=4, heads=1)
KEEPFIT = KeepFIT(FLAIR(RESNET, TEXT, embed=4, context=6), replace(V2, lam=1.0), caption=DECODER, appearance=1)
MODELS = {
    "flair": (KEEPFIT, "flair", {"caption", "reference"}),
    "report": (Report(RESNET, DECODER, findings=3), "ffa_captioner", {"findings"}),
    "segment": (Segment(DINO, UNETR(2, 16, 4), (0, 1, 2, 3), ("disc",)), "visionfm", set()),
    "landmark": (Landmark(DINO, Linear(2, 16), (0, 1, 2, 3), ("disc", "fovea")), "visionfm", set()),
}


def a_run(path, objective):
    batch = {key: np.zeros(spec.shape, spec.dtype) for key, spec in objective.batch_spec(1).items()}
    shapes = jax.eval_shape(objective.init, jax.random.key(0), batch)
    rng = np.random.default_rng(0)
    params, extra = jax.tree.map(lambda x: np.abs(rng.standard_normal(x.shape)).astype(x.dtype), shapes)
    path.mkdir()
    write_json(path / "config.json", {"objective": to_json(objective)})
    write_json(path / "preprocessing.json", {"image_size": objective.image.image_size, "classes": ["disc"]})
    with Checkpoints(path) as checkpoints:
        checkpoints.save(2, {"params": params, "extra": extra, "opt": {}}, {}, {})
    return params, extra


@pytest.mark.parametrize("name", MODELS)
def test_out_and_in_again(tmp_path, name):
    objective, to, left_out = MODELS[name]
    params, extra = a_run(tmp_path / "run", objective)
    line = export(tmp_path / "run", to, tmp_path / "out")
    assert "parameters read back bit for bit" in line
    assert all(part in line for part in left_out) and ("left out" in line) == bool(left_out)
    record = json.loads((tmp_path / "out" / "fundax_export.json").read_text())
    assert {path.split("/")[0] for path in record["left_out"]} == left_out
    again = load(tmp_path / "out")
    assert type(again.objective) is type(objective) and again.params.keys() == params.keys() - left_out
    for ours, theirs in ((params, again.params), (extra, again.extra)):
        found = flatten(theirs)
        for path, leaf in flatten({key: ours[key] for key in theirs}).items():
            np.testing.assert_array_equal(found[path], leaf, err_msg=path)
    assert again.preprocessing["classes"] == ["disc"]
    import_checkpoint(tmp_path / "out", tmp_path / "imported")
    assert load(tmp_path / "imported").objective == again.objective


def test_the_table():
    assert {"open_clip", "huggingface", "timm", "ret_clip", "flair", "visionfm", "bert"} <= set(export_names())
    for one in all_formats():
        assert one.write is None or ("FOLDER" in one.usage and Path(one.files[0]).suffix in SUFFIXES)
        assert one.holds or one.write is None  # encoders of other programs are only read
        assert not one.configured or len(one.files) == 2
    # `export --to NAME` means one format for every kind of model, or for each of its architectures
    pairs = [(one.name, kind) for one in all_formats() for kind in one.holds]
    several = {pair for pair in pairs if pairs.count(pair) > 1}
    assert all(one.fits is not always for one in all_formats() for kind in one.holds if (one.name, kind) in several)
    assert several == {("huggingface", kind) for kind in (CLIP, Encoder, IBOT)}


def test_images_of_another_normalisation_do_not_go_into_flairs_format(tmp_path):
    a_run(tmp_path / "run", replace(KEEPFIT.base, mean=(0.5, 0.5, 0.5)))
    with pytest.raises(UserError, match="FLAIR divides images by 255 and nothing more"):
        export(tmp_path / "run", "flair", tmp_path / "out")
    assert not (tmp_path / "out").exists()
