"""Scores of visits by hand: a model whose features are the class of the image."""

import numpy as np
import pytest

from fundax.evals.visits import VisitScores
from fundax.types import UserError

NAMES = ("CFP", "OCT")
N, K = 40, 4


def batches(labels=True):
    """Visits with a CFP of both eyes, and for every second visit an OCT of the left eye; the left eye has the disease."""
    rng = np.random.default_rng(0)
    label = np.arange(N) % K
    row = np.concatenate([np.repeat(np.arange(N), 2), np.arange(0, N, 2), [-1, -1]])
    modality = np.concatenate([np.zeros(2 * N), np.ones(N // 2), [0, 0]]).astype(np.int32)
    eye = np.concatenate([np.tile([0, 1], N), np.zeros(N // 2), [0, 0]]).astype(np.int32)
    slot = np.concatenate([np.tile([0, 1], N), np.full(N // 2, 2), [0, 0]]).astype(np.int32)
    # the pixels of an image say its patient, its class, and how well the class is seen: not at all in a CFP of the right eye
    seen = np.where(modality == 1, 5.0, np.where(eye == 0, 1.0, 0.0)) * (row >= 0)
    images = np.stack([row, np.where(row >= 0, label[row], 0), seen], 1).astype(np.float32)
    kinds = {"row": row.astype(np.int32), "slot": slot, "view_modality": modality, "view_eye": eye}
    yield kinds | {
        "images": images, "texts": np.stack([np.arange(N), label], 1).astype(np.float32),
        "text_at": np.where(np.arange(N) < 30, np.arange(N), -1), "valid": np.arange(N) < N - 1,
        "label": label if labels else 0 * label - 1, "label_left": label, "label_right": 0 * label,
        "patient": np.arange(N), "noise": rng.normal(size=N),
    }  # fmt: skip


def feature(about, seen=1.0):
    """f32 [n K + N]: one-hot of the class times `seen`, and one-hot of the patient."""
    patient, label = about[:, 0].astype(int), about[:, 1].astype(int)
    out = np.zeros((len(about), K + N), np.float32)
    out[np.arange(len(about)), label] = seen
    out[np.arange(len(about)), K + np.maximum(patient, 0)] = 0.5
    return out


def forward(params, extra, batch):
    if "text" in batch:  # a prompt of class k is [k]
        heads = np.zeros((len(batch["text"]), K + N), np.float32)
        heads[np.arange(len(heads)), batch["text"][:, 0]] = 1
        return {"text_features": heads}
    raw = batch["view_raw"] if "view_raw" in batch else feature(batch["images"], batch["images"][:, 2])
    rows, there = len(batch["valid"]), batch["row"] >= 0
    visit, eyes = np.zeros((rows, K + N), np.float32), np.zeros((rows, 2, K + N), np.float32)
    np.add.at(visit, batch["row"][there], raw[there])
    np.add.at(eyes, (batch["row"][there], batch["view_eye"][there]), raw[there])
    out = {"view_raw": raw, "view_features": raw, "image_features": visit, "eye_features": eyes}
    return out | ({"text_features": feature(batch["texts"])} if "texts" in batch else {})


def scores(**fields):
    prompts = [np.array([[k]]) for k in range(K)]
    given = {"data": batches, "classes": list("abcd"), "prompts": prompts, "modalities": NAMES, "resamples": 50}
    return VisitScores(**given | fields)(forward, {}, {})


def test_every_subset_and_single_view():
    found = scores()
    assert found["macro_auc"] == 1 and found["visits"] == N - 1
    assert found["macro_auc/CFP left"] == found["macro_auc/OCT left"] == found["macro_auc/CFP+OCT"] == 1
    assert found["macro_auc/CFP right"] == 0.5
    assert found["best_single_view"] == 1 and found["gain_over_best_single_view"] == 0
    table = dict(
        zip(
            found["table_views"],
            zip(found["table_visits"], found["table_gain_of_the_visit_value"], strict=True),
            strict=True,
        )
    )
    assert table == {
        "CFP": (39, 0.0), "OCT": (20, 0.0), "CFP+OCT": (39, 0.0),
        "CFP left": (39, 0.0), "CFP right": (39, 0.5), "OCT left": (20, 0.0),
    }  # fmt: skip


def test_retrieval_against_chance():
    found = scores()
    assert found["R@10/OCT to CFP"] == 1 and found["lift/OCT to CFP"] == 2  # 20 eyes have both
    assert found["R@10/CFP left to right"] == 1 and found["lift/CFP left to right"] == 3.9
    assert found["R@10/report to visit"] == 1 and found["lift/report to visit"] == 3
    assert found["cross_modal_R@10"] == 1


def test_without_classes_or_labels():
    assert "macro_auc" not in scores(classes=(), prompts=[])
    with pytest.raises(UserError, match="no labelled visit"):
        scores(data=lambda: batches(labels=False))
