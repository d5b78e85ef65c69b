"""The zero-shot table of MM-Fundus-CLIP's main_clip_zero.py, from its stub encoders' features."""

import numpy as np
import pytest

from fundax.evals import zero_shot

pytestmark = pytest.mark.vectors("openclip")


@pytest.fixture
def stored(golden):
    with np.load(golden / "openclip" / "zeroshot_metrics.npz", allow_pickle=False) as arrays:
        return dict(arrays)


def _unit(features):
    return (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)


def _evaluate(stored, parity, batch=16):
    image, text = _unit(stored["image_features_raw"]), _unit(stored["text_features_raw"])
    n, k = len(image), len(text)

    def forward(params, extra, batch):
        out = {"logit_scale": np.exp(stored["log_scale"])}
        if "image" in batch:
            out["image_features"] = image[batch["image"][:, 0, 0, 0]]
        if "text" in batch:
            out["text_features"] = text[batch["text"][:, 0]]
        return out

    def data():
        for at in range(0, n, batch):
            rows = np.minimum(np.arange(at, at + batch), n - 1)
            pixels = np.zeros((batch, 2, 2, 3), np.int32) + rows[:, None, None, None]
            yield {"image": pixels, "label": stored["labels"][rows], "valid": np.arange(at, at + batch) < n}

    classes = [str(name) for name in stored["label_names"][:k]]
    prompts = np.arange(k, dtype=np.int32)[:, None, None]  # [K 1 1]
    return zero_shot.zero_shot(data, classes, prompts, parity=parity)(forward, {}, {})


def test_rows_from_the_originals_scores(stored):
    rows = zero_shot.parity_rows(stored["probs"], stored["labels"])
    for name, ours in (("acc", "recall"), ("auc", "auc"), ("aupr", "ap")):
        np.testing.assert_allclose(rows[ours], stored[name][:-1], rtol=0, atol=1e-12, err_msg=name)


def test_parity_from_the_features(stored):
    result = _evaluate(stored, parity=True)
    np.testing.assert_allclose(result["probabilities"], stored["probs"], rtol=0, atol=2e-7)
    for name, ours, macro in (
        ("acc", "recall", "macro_accuracy"),
        ("auc", "auc", "macro_auc"),
        ("aupr", "ap", "macro_ap"),
    ):
        np.testing.assert_allclose(result[ours], stored[name][:-1], rtol=0, atol=1e-12, err_msg=name)
        assert result[macro] == pytest.approx(stored[name][-1], abs=1e-12)


def test_raw_logits_do_better_than_saturated_scores(stored):
    result, original = _evaluate(stored, parity=False), _evaluate(stored, parity=True)
    assert result["macro_auc"] > original["macro_auc"]
    absent = result["count"] == 0
    assert np.isnan(result["auc"][absent]).all()
    assert (original["auc"][absent] == -1).all()
