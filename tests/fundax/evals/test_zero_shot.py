"""Zero-shot on features made by hand: the text of class k is the k-th axis, an image is its own pixels."""

import numpy as np
import pytest
from scipy.special import softmax

from fundax.evals.zero_shot import class_features, class_rows, parity_scores, zero_shot
from fundax.types import UserError

CLASSES = ["normal", "glaucoma", "macular hole"]
TEXTS = np.eye(3, dtype=np.float32)


def forward(params, extra, batch):
    out = {"logit_scale": np.float32(2.0)}
    if "image" in batch:
        out["image_features"] = np.asarray(batch["image"], np.float32)[:, 0, 0]
    if "text" in batch:
        out["text_features"] = TEXTS[batch["text"][:, 0]]
    return out


def batches(features, labels, **more):
    image = np.asarray(features, np.float32)[:, None, None]  # [B 1 1 3]
    return lambda: iter([{"image": image, "label": np.asarray(labels, np.int32), **more}])


PROMPTS = np.arange(3, dtype=np.int32)[:, None, None]
# Rows: right, wrong (second is higher), right, right. Glaucoma's logits are 0, 1.2, 2, .4: one pair of four is wrong.
FEATURES = [[1, 0, 0], [0.8, 0.6, 0], [0, 1, 0], [0.98, 0.2, 0]]
LABELS = [0, 1, 1, 0]


def test_numbers_by_hand():
    result = zero_shot(batches(FEATURES, LABELS), CLASSES, PROMPTS)(forward, {}, {})
    np.testing.assert_allclose(result["logits"], 2 * np.array(FEATURES), rtol=1e-6)
    assert result["accuracy"] == 0.75
    assert result["recall/normal"] == 1.0
    assert result["recall/glaucoma"] == 0.5
    assert result["macro_accuracy"] == 0.75
    assert result["auc/normal"] == 1.0  # 2, 1.96 above 1.6, 0
    assert result["auc/glaucoma"] == 1.0  # 1.2, 2 above 0, .4
    assert result["macro_auc"] == 1.0
    np.testing.assert_array_equal(result["labels"], LABELS)
    assert list(result["classes"]) == CLASSES
    assert list(result["count"]) == [2, 2, 0]
    np.testing.assert_allclose(result["probabilities"].sum(axis=1), 1, rtol=1e-6)


def test_auc_and_ap_by_hand():
    logits = np.array([[0.9, 0.0], [0.5, 0.0], [0.7, 0.0], [0.1, 0.0]])
    rows = class_rows(logits, np.array([0, 0, 1, 1]), ["a", "b"])
    # Positives .9, .5 and negatives .7, .1: three of four pairs are in order; precision 1 at the first, 2/3 at the third.
    assert rows["auc"][0] == 0.75
    assert rows["ap"][0] == pytest.approx((1 + 2 / 3) / 2)
    assert rows["auc"][1] == 0.5


def test_absent_class_is_a_blank_with_its_reason():
    result = zero_shot(batches(FEATURES, LABELS), CLASSES, PROMPTS)(forward, {}, {})
    assert not any("macular hole" in key for key in result)
    assert np.isnan(result["auc"][2])
    assert result["note"][2] == "absent from the evaluation set"
    assert all(np.isfinite(value) for value in result.values() if isinstance(value, float))


def test_a_single_class_has_a_recall_and_no_auc():
    result = zero_shot(batches(FEATURES, [0, 0, 0, 0]), CLASSES, PROMPTS)(forward, {}, {})
    assert result["macro_accuracy"] == 0.75
    assert "macro_auc" not in result
    assert "only class" in result["note"][0]


def test_prompt_ensemble_is_the_normalised_mean_of_unit_features():
    lists = [np.array([[0], [0], [1]]), np.array([[1]]), np.array([[2], [0]])]  # P differs by class
    features = class_features(lambda batch: forward({}, {}, batch), lists, text_batch=4)
    np.testing.assert_allclose(features[0], np.array([2, 1, 0]) / 5**0.5, rtol=1e-6)
    np.testing.assert_allclose(features[1], [0, 1, 0])
    np.testing.assert_allclose(features[2], np.array([1, 0, 1]) / 2**0.5, rtol=1e-6)


def test_text_batches_have_one_shape():
    shapes = []

    def encode(batch):
        shapes.append(batch["text"].shape)
        return forward({}, {}, batch)

    class_features(encode, [np.array([[0], [1], [2]])] * 3, text_batch=4)
    assert shapes == [(4, 1)] * 3


def test_padding_rows_do_not_count():
    padded = batches([*FEATURES, [np.nan] * 3], [*LABELS, 99], valid=np.array([True] * 4 + [False]))
    result = zero_shot(padded, CLASSES, PROMPTS)(forward, {}, {})
    plain = zero_shot(batches(FEATURES, LABELS), CLASSES, PROMPTS)(forward, {}, {})
    np.testing.assert_array_equal(result["logits"], plain["logits"])
    assert result["macro_auc"] == plain["macro_auc"]


def test_order_of_rows_does_not_matter():
    shuffled = [2, 0, 3, 1]
    data = batches([FEATURES[i] for i in shuffled], [LABELS[i] for i in shuffled])
    first, second = (zero_shot(one, CLASSES, PROMPTS)(forward, {}, {}) for one in (batches(FEATURES, LABELS), data))
    assert {k: v for k, v in first.items() if isinstance(v, float)} == {
        k: v for k, v in second.items() if isinstance(v, float)
    }


def test_logit_bias_is_added():
    def biased(params, extra, batch):
        return forward(params, extra, batch) | {"logit_bias": np.float32(-1.0)}

    result = zero_shot(batches(FEATURES, LABELS), CLASSES, PROMPTS)(biased, {}, {})
    np.testing.assert_allclose(result["logits"], 2 * np.array(FEATURES) - 1, rtol=1e-6)


def test_parity_ties_go_to_the_first_class():
    # Both sigmoids are exactly 1 in float32, so the second class, twenty times as likely, loses.
    scores = parity_scores(np.array([[17.5, 20.5, -200.0]]))
    assert scores[0, 0] == scores[0, 1]
    assert scores.argmax() == 0
    np.testing.assert_allclose(scores[0, 2], 1 / (1 + 2 * np.e), rtol=1e-6)
    assert softmax([[17.5, 20.5, -200.0]], axis=1).argmax() == 1


def test_parity_leaves_out_classes_of_recall_0():
    data = batches([[1, 0, 0], [1, 0, 0.1]], [0, 1])
    assert zero_shot(data, CLASSES, PROMPTS)(forward, {}, {})["macro_accuracy"] == 0.5
    result = zero_shot(data, CLASSES, PROMPTS, parity=True)(forward, {}, {})
    assert result["macro_accuracy"] == 1.0
    assert result["auc/macular hole"] == -1


@pytest.mark.parametrize(
    ("features", "labels", "more", "message"),
    [
        ([[1, 0, 0], [np.nan, 0, 0]], [0, 1], {}, "image_features of rows 1 are not finite"),
        ([[1, 0, 0], [np.inf, 0, 0]], [0, 1], {"index": np.array([40, 41])}, "rows 41 are not finite"),
        ([[1, 0, 0]], [3], {}, r"row 0: label 3; expected 0 to 2 \(normal, glaucoma, macular hole\)"),
        ([[1, 0, 0]], [-1], {}, "has no labelled row"),
        ([[1, 0, 0]], [0], {"valid": np.array([False])}, "has no labelled row"),
        ([[1, 0, 0]], [[0, 1, 0]], {}, "expected one class index per row"),
    ],
)
def test_bad_input_is_named(features, labels, more, message):
    with pytest.raises(UserError, match=message):
        zero_shot(batches(features, labels, **more), CLASSES, PROMPTS)(forward, {}, {})


def test_prompts_must_fit_the_classes():
    with pytest.raises(UserError, match="prompts for 2 classes; expected 3: normal, glaucoma, macular hole"):
        zero_shot(batches(FEATURES, LABELS), CLASSES, PROMPTS[:2])
    with pytest.raises(UserError, match="'glaucoma' has no prompt"):
        zero_shot(batches(FEATURES, LABELS), CLASSES, [PROMPTS[0], np.zeros((0, 1), np.int32), PROMPTS[2]])


def test_broken_text_features_and_missing_labels_are_named():
    def broken(params, extra, batch):
        return forward(params, extra, batch) | ({"text_features": np.full((64, 3), np.nan)} if "text" in batch else {})

    with pytest.raises(UserError, match="text_features of prompt 0 are not finite"):
        zero_shot(batches(FEATURES, LABELS), CLASSES, PROMPTS)(broken, {}, {})
    with pytest.raises(UserError, match="batches have image; expected also 'label'"):
        zero_shot(lambda: iter([{"image": np.zeros((1, 1, 1, 3))}]), CLASSES, PROMPTS)(forward, {}, {})


def test_rows_patients_and_telling_pictures_are_kept():
    pictures = np.zeros((3, 8, 8, 3), np.uint8) + np.arange(3, dtype=np.uint8)[:, None, None, None]
    one = {
        "features": np.array([[1, 0, 0], [0, 1, 0], [1, 0, 0]], np.float32), "label": np.array([0, 1, 1]),
        "valid": np.array([True, True, True]), "index": np.array([5, 6, 7]), "group": np.array([1, 1, 2]), "image": pictures,
    }  # fmt: skip

    def seen(params, extra, batch):
        out = {"logit_scale": np.float32(5)}
        if "features" in batch:
            return out | {"image_features": batch["features"]}
        return out | forward(params, extra, batch)

    found = zero_shot(lambda: iter([one]), CLASSES, PROMPTS, inputs=("features",))(seen, {}, {})
    assert found["index"].tolist() == [5, 6, 7]
    assert found["patient"].tolist() == [1, 1, 2]
    assert found["pictures"].shape[1:] == (96, 96, 3)
    wrong = found["picture_row"][np.char.startswith(found["picture_kind"], "wrong")]
    assert set(wrong) == {2}
