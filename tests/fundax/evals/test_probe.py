"""The probe learns what is linear, ranks by hand-checked numbers, and never lets the test set choose."""

import numpy as np
import pytest

from fundax.evals.probe import Probe, macro_auc_ap
from fundax.types import UserError

RNG = np.random.default_rng(0)
TRUTH = RNG.normal(size=(6, 3)).astype(np.float32)


def forward(params, extra, batch):
    assert "label" not in batch
    return {"visual": batch["image"] * params["gain"]}


def split(n, seed, batch=16, flip=False):
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(n, 6)).astype(np.float32)
    labels = (features @ TRUTH > 0).astype(np.float32)

    def batches():
        for start in range(0, n, batch):
            rows = np.arange(start, start + batch)
            valid = rows < n
            rows = np.minimum(rows, n - 1)
            label = 1 - labels[rows] if flip else labels[rows]
            yield {"image": features[rows], "label": label, "valid": valid}

    return batches


def test_macro_auc_ap_by_hand():
    labels = np.array([[0, 1, 0], [0, 0, 0], [1, 1, 0], [1, 0, 0]], np.float32)
    scores = np.array([[0.1, 4, 1], [0.4, 3, 2], [0.35, 2, 3], [0.8, 1, 4]], np.float32)
    # label 0: 3 of 4 pairs in order; precision at its positives 1 and 2/3, so .5*1 + .5*2/3
    # label 1: 1/2... pairs (4>3, 4>1, 2<3, 2>1) = 3 of 4; precisions 1 and 2/3. label 2 has no positive.
    result = macro_auc_ap(labels, scores)
    assert result == pytest.approx({"macro_auc": 0.75, "macro_ap": 5 / 6, "labels_used": 2.0})
    with pytest.raises(UserError, match="nothing to rank"):
        macro_auc_ap(labels[:, 2:], scores[:, 2:])


def test_probe_learns_linear_labels_and_reports_arrays():
    probe = Probe(
        train=split(200, 1),
        valid=split(50, 2),
        test=split(41, 3),
        feature="visual",
        epochs=30,
        batch=32,
        learning_rate=0.03,
    )
    result = probe(forward, {"gain": 1.0}, {})
    assert result["macro_auc"] > 0.97
    assert result["test_macro_auc"] > 0.95
    assert result["logits"].shape == result["labels"].shape == (41, 3)  # padding rows are gone
    assert probe(forward, {"gain": 1.0}, {})["epoch"] == result["epoch"]
    assert probe(forward, {"gain": 0.0}, {})["macro_auc"] == pytest.approx(0.5)


def test_the_test_set_never_chooses_the_epoch():
    settings = {"train": split(64, 1), "valid": split(30, 2), "feature": "visual", "epochs": 8}
    kind = Probe(**settings, test=split(30, 4))(forward, {"gain": 1.0}, {})
    hostile = Probe(**settings, test=split(30, 4, flip=True))(forward, {"gain": 1.0}, {})
    assert kind["epoch"] == hostile["epoch"]
    assert hostile["test_macro_auc"] == pytest.approx(1 - kind["test_macro_auc"])


def test_a_first_step_by_hand():
    """One row, one label: Adam's first step moves every weight up by the learning rate."""
    from fundax.evals.probe import _train_epochs

    start = {"kernel": np.full((1, 1), 0.2, np.float32), "bias": np.full((1,), 0.1, np.float32)}
    row, one = np.ones((1, 1), np.float32), np.ones((1, 1), np.float32)
    path = _train_epochs(start, row, one, np.zeros((1, 1, 1), np.int32), 1e-3)
    assert float(path["kernel"][0, 0, 0]) == pytest.approx(0.201, abs=1e-6)
    assert float(path["bias"][0, 0]) == pytest.approx(0.101, abs=1e-6)


def test_bad_input_is_named():
    def probe(train, feature="visual"):
        return Probe(train=train, valid=split(4, 1), feature=feature)(forward, {"gain": 1.0}, {})

    with pytest.raises(UserError, match="the model gives visual; expected the feature 'nope'"):
        probe(split(4, 0), "nope")
    labels = {"image": np.zeros((2, 6), np.float32), "label": np.array([0, 1])}
    with pytest.raises(UserError, match=r"labels \[B K\] of 0 and 1, got shape \(2,\)"):
        probe(lambda: iter([labels]))
    with pytest.raises(UserError, match="the data set has no rows"):
        probe(lambda: iter([]))
