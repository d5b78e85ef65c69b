"""VisionFM's config: the published values, one modality or all, and what it says to mistakes; nothing is trained."""

from pathlib import Path

import jax
import pytest

from benchmarks.visionfm_probe import hrf, idrid, kermany
from data_pipelines.records import MODALITIES, DataError
from fundax.config import load
from fundax.objectives.ibot import Temperature
from fundax.types import UserError

CONFIG = Path(__file__).parents[2] / "configs" / "visionfm.py"


def test_published_values():
    recipe, _ = load(CONFIG)
    method = recipe.objective
    assert (method.image.width, method.image.depth, method.image.patch, method.image.image_size) == (768, 12, 16, 224)
    assert (method.head.prototypes, method.head.hidden, method.head.bottleneck, method.head.shared) == (
        8192,
        2048,
        256,
        True,
    )
    assert method.token_temperature == Temperature(0.07, 0.04, 30) and method.patch_temperature == Temperature(
        0.04, 0.07, 30
    )
    assert method.image.drop_path == 0.1 and method.momentum == (0.996, 1.0) and method.local_crops == 0
    assert recipe.steps == 400 * method.epoch_steps and (method.centering, method.koleo) == ("mean", 0.0)
    assert len(method.mean) == len(MODALITIES)
    params, extra = jax.eval_shape(
        lambda: method.init(
            jax.random.key(0), {k: jax.numpy.zeros(s.shape, s.dtype) for k, s in method.batch_spec(1).items()}
        )
    )
    encoder = sum(leaf.size for leaf in jax.tree.leaves(extra["teacher"]["image"]))
    assert encoder == 85_798_656  # ViT-B/16 without a classifier
    assert params["head"]["last_layer"]["kernel"].shape == (256, 8192)


def test_one_modality_has_its_own_normalisation_and_no_modality_key():
    recipe, _ = load(CONFIG, ["--preset", "laptop", "--modalities", "oct", "--patients", "100"])
    assert recipe.objective.mean == ((0.21091926, 0.21091926, 0.21091919),)
    assert "modality" not in recipe.objective.batch_spec(2) and list(recipe.evals) == ["probe_oct"]
    assert recipe.preprocessing["modalities"] == ("OCT",)


def test_options_of_dinov2():
    recipe, _ = load(
        CONFIG, ["--preset", "laptop", "--patients", "32", "--heads", "split", "--koleo", "0.2", "--mask", "random"]
    )
    assert recipe.objective.head.split and recipe.objective.koleo == 0.2
    unshared, _ = load(CONFIG, ["--preset", "laptop", "--patients", "32", "--heads", "unshared", "--centering", "mean"])
    assert not unshared.objective.head.shared and unshared.objective.centering == "mean"


@pytest.mark.parametrize(
    ("argv", "kind", "message"),
    [
        (["--modalities", "xray"], DataError, "modality 'xray' is not one of CFP"),
        (["--data", "nowhere.csv"], DataError, r"nowhere\.csv: no such file"),
        (["--data", "synthetic", "--modalities", "mri"], DataError, "no images of MRI"),
        (["--size", "B/17"], UserError, "size is 'B/17'; expected one of"),
        (["--koleos", "1"], UserError, "did you mean --koleo"),
    ],
)
def test_mistakes_are_named(argv, kind, message):
    with pytest.raises(kind, match=message):
        load(CONFIG, argv)


def test_real_probes_keep_equal_photographs_and_patients_together(shared_data):
    rows, _ = idrid(shared_data)
    same = [row["patient"] for row in rows if row["image"].name in ("IDRiD_079.jpg", "IDRiD_279.jpg")]
    assert len(same) == 2 and len(set(same)) == 1 and {row["label"] for row in rows} == {0, 1}
    assert {row["label"] for row in hrf(shared_data)[0]} == {0, 1, 2}
    scans, names = kermany(shared_data)
    assert all(row["image"].name.startswith(names[row["label"]]) for row in scans)
    assert len({row["patient"] for row in scans}) < len(scans)
