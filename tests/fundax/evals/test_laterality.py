"""Two heads and hand-made features: which eye is called diseased, and which patients are asked about."""

import numpy as np
import pytest

from fundax.evals.laterality import Laterality
from fundax.types import UserError

HEALTHY, ILL = [1.0, 0.0], [0.0, 1.0]
WORDS = {1: HEALTHY, 2: ILL}  # a prompt's id -> its feature


def forward(params, extra, batch):
    if "text" in batch:
        features = np.array([WORDS[int(row[0])] for row in batch["text"]], np.float32)
        return {"text_features_left": features, "text_features_right": features[:, ::-1] * [1, 1]}
    scales = {"logit_scale_left": np.float32(2), "logit_scale_right": np.float32(3)}
    return {"left_features": batch["left"], "right_features": batch["right"], **scales}


def batch(left, right, label_left, label_right, valid=None):
    arrays = {"left": np.array(left, np.float32), "right": np.array(right, np.float32)}
    arrays |= {"label_left": np.array(label_left), "label_right": np.array(label_right)}
    return arrays if valid is None else arrays | {"valid": np.array(valid)}


def laterality(*batches):
    prompts = [np.array([[1]]), np.array([[2]])]
    # the right head's text features are mirrored by `forward`, so its prompts are given the other way round
    return Laterality(data=lambda: iter(batches), prompts={"left": prompts, "right": prompts[::-1]})


def test_margin_and_accuracy_by_hand():
    eval_ = laterality(
        batch([ILL, HEALTHY], [HEALTHY, HEALTHY], [3, 0], [0, 0]),  # left diseased, seen; both healthy: not asked
        batch([HEALTHY, ILL, ILL], [ILL, ILL, HEALTHY], [0, 2, 1], [5, 0, -1], [True, True, True]),
        batch([ILL], [HEALTHY], [1], [0], [False]),  # padding
    )
    result = eval_(forward, {}, {})
    # log P(healthy): left eye ill, scale 2: -log(1 + e^2); right eye healthy, scale 3: -log(1 + e^-3)
    first = -np.log1p(np.exp(-3)) + np.log1p(np.exp(2))
    np.testing.assert_allclose(result["margin"][0], first, rtol=1e-5)
    assert result["diseased_left"].tolist() == [True, False, True]
    # patient 2: right diseased and seen; patient 3: left diseased, but the right eye looks ill too (scale 3 > 2)
    assert result["patients"] == 3
    assert result["accuracy"] == pytest.approx(2 / 3)


def test_no_patient_to_ask_about():
    with pytest.raises(UserError, match="no patient has one healthy and one diseased eye"):
        laterality(batch([ILL], [ILL], [1], [1]))(forward, {}, {})
