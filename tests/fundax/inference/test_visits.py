"""Predictions for a visit with named views: per view, eye and visit, with what was not given."""

import jax
import numpy as np
import pytest

from data_pipelines.language import bundled
from fundax.inference import visits
from fundax.inference.model import Model
from fundax.objectives.visit import visit
from fundax.types import UserError


@pytest.fixture(scope="module")
def model() -> Model:
    words = bundled(16)
    objective = visit("smoke", ("CFP", "OCT", "OCTA"), vocab=words.vocab_size, context=16)
    batch = {name: np.zeros(one.shape, one.dtype) for name, one in objective.batch_spec(1).items()}
    params, extra = objective.init(jax.random.key(0), batch)
    side = objective.image.image_size
    return Model(objective, params, {"image_size": side}, words, extra=extra)


def image(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (40, 40, 3), np.uint8)


CLASSES = ("normal", "glaucoma")


def test_answers_for_views_eyes_and_the_visit(model):
    found = visits.predict_visit(model, {"cfp_left": image(0), "OCT_OS": image(1), "octa_right": image(2)}, CLASSES)
    assert list(found.probabilities) == ["visit", "left eye", "right eye", "CFP_left", "OCT_left", "OCTA_right"]
    for one in found.probabilities.values():
        np.testing.assert_allclose(one.sum(), 1, rtol=1e-5)
    assert found.missing == ("CFP_right", "OCT_right", "OCTA_left")
    np.testing.assert_allclose(found.probabilities["right eye"], found.probabilities["OCTA_right"], rtol=1e-5)
    assert "not given: CFP_right, OCT_right, OCTA_left" in str(found.table().caption)
    alone = visits.predict_visit(model, {"cfp_left": image(0)}, CLASSES)
    np.testing.assert_allclose(alone.probabilities["visit"], found.probabilities["CFP_left"], rtol=1e-5)


@pytest.mark.parametrize(
    ("views", "classes", "message"),
    [
        ({"ffa_left": 0}, CLASSES, "ffa_left is not a view of this model; expected such as cfp_left, oct_left"),
        ({}, CLASSES, "0 views; expected 1 to 8"),
        ({"cfp_left": 0}, ("normal",), "at least two different classes"),
    ],
)
def test_mistakes(model, views, classes, message):
    with pytest.raises(UserError, match=message):
        visits.predict_visit(model, dict.fromkeys(views, image(0)), classes)
