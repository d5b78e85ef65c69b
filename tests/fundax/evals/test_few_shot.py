"""Few-shot: what is drawn, that more images help, blanks, and features that are computed once."""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fundax.evals import features
from fundax.evals.few_shot import FewShot, draw, probe
from fundax.objectives.adapter import Adapted, ClipAdapter, TipAdapter
from fundax.types import UserError

WIDTH, CLASSES = 8, ("normal", "glaucoma", "cataract")
CENTERS = np.eye(3, WIDTH, dtype=np.float32)


def eyes(n, seed, passes=None):
    """Batches of images around a center per class; the last batch has a padding row."""
    rng = np.random.default_rng(seed)
    label = np.arange(n, dtype=np.int32) % 3
    image = CENTERS[label] + 0.6 * rng.normal(size=(n, WIDTH)).astype(np.float32)

    def data():
        if passes is not None:
            passes.append(seed)
        for at in range(0, n, 10):
            part = slice(at, at + 10)
            valid = np.arange(n)[part] != n - 1
            yield {"image": image[part], "label": label[part], "patient": np.arange(n)[part] // 2, "valid": valid}

    return data


def forward(params, extra, batch):
    out = {"logit_scale": np.float32(20)}
    if "image" in batch:
        x = np.asarray(batch["image"]) * params["scale"]
        out["image_features"] = x / np.linalg.norm(x, axis=1, keepdims=True)
    return out


PARAMS = {"scale": np.float32(1)}


def of(found, method, shots):
    """Probabilities [draws N K] of one method."""
    return found["probabilities"][(found["method"] == method) & (found["shots"] == shots)]


def test_more_images_help():
    text = CENTERS + 0.1
    text /= np.linalg.norm(text, axis=1, keepdims=True)

    def class_features(encode):
        encode({"text": np.zeros((1, 4), np.int32)})
        return text

    evaluate = FewShot(pool=eyes(60, 0), test=eyes(40, 1), classes=CLASSES, class_features=class_features,
                       shots=(1, 8), seeds=2)  # fmt: skip
    found = evaluate(forward, PARAMS, {})
    assert found["zero_shot_0_macro_auc"] > 0.8
    assert found["linear_8_macro_auc"] > found["linear_1_macro_auc"]
    for method in ("clip_adapter", "tip_adapter", "tip_adapter_f"):
        assert found[f"{method}_8_balanced_accuracy"] > 0.6, method
        assert of(found, method, 8).shape == (2, 39, 3)
    rows = found["method"] == "linear"
    assert found["linear_1_macro_auc"] == pytest.approx(found["macro_auc"][rows & (found["shots"] == 1)].mean())
    assert found["linear_1_macro_auc_sd"] == pytest.approx(found["macro_auc"][rows & (found["shots"] == 1)].std(ddof=1))
    again = evaluate(forward, PARAMS, {})
    np.testing.assert_array_equal(of(again, "tip_adapter_f", 8), of(found, "tip_adapter_f", 8))


def test_draws_are_nested_balanced_and_of_different_patients():
    labels, patients = np.arange(60) % 3, np.arange(60) // 6
    rows, note = draw(labels, 3, 4, 0, patients)
    assert note == ""
    assert np.bincount(labels[rows]).tolist() == [4, 4, 4]
    for k in range(3):
        assert len(np.unique(patients[rows[labels[rows] == k]])) == 4
    assert set(draw(labels, 3, 2, 0, patients)[0]) <= set(rows)
    assert set(draw(labels, 3, 4, 1, patients)[0]) != set(rows)
    every, note = draw(labels, 4, 40, 0)
    assert len(every) == 60
    assert note == "class 0 has 20 of 40; class 1 has 20 of 40; class 2 has 20 of 40; class 3 has 0 of 40"


def test_a_class_missing_in_the_pool_or_the_test_is_a_blank():
    def lacking():
        for batch in eyes(30, 0)():
            yield batch | {"valid": batch["valid"] & (batch["label"] != 2)}

    settings = {"classes": CLASSES, "shots": (2,), "seeds": 1}
    found = FewShot(pool=lacking, test=eyes(30, 1), **settings)(forward, PARAMS, {})
    assert found["note"].tolist() == ["class 2 has 0 of 2"]
    assert (of(found, "linear", 2)[..., 2] == 0).all()
    found = FewShot(pool=eyes(30, 0), test=lacking, **settings)(forward, PARAMS, {})
    assert not math.isnan(found["linear_2_balanced_accuracy"])


def test_no_patient_is_in_training_and_test():
    settings = {"classes": CLASSES, "shots": (2,), "seeds": 1, "patient": "patient"}
    with pytest.raises(UserError, match="15 patients are both in the pool and in the test set"):
        FewShot(pool=eyes(30, 0), test=eyes(30, 1), **settings)(forward, PARAMS, {})

    def others():
        for batch in eyes(30, 1)():
            yield batch | {"patient": batch["patient"] + 100}

    found = FewShot(pool=eyes(30, 0), test=others, **settings)(forward, PARAMS, {})
    assert found["patient"].min() == 100
    assert len(found["patient"]) == len(found["labels"]) == 29


def test_features_are_kept_by_weights_and_data(tmp_path):
    passes = []
    take = lambda params, fingerprint: features.extract(  # noqa: E731
        forward, params, {}, eyes(20, 0, passes), ("image_features",), cache=tmp_path, fingerprint=fingerprint
    )
    first = take(PARAMS, "eyes 20 0")
    np.testing.assert_array_equal(take(PARAMS, "eyes 20 0")["image_features"], first["image_features"])
    assert len(passes) == 1
    take({"scale": np.float32(2)}, "eyes 20 0")  # other weights
    take(PARAMS, "eyes 20 1")  # other data
    take(PARAMS, "")  # unknown data: never kept
    assert len(passes) == 4
    for file in tmp_path.iterdir():
        file.write_bytes(b"cut off")
    take(PARAMS, "eyes 20 0")
    assert len(passes) == 5
    assert not list(tmp_path.glob("*.tmp"))


def test_mistakes_are_named():
    with pytest.raises(UserError, match="few-shot method 'knn'; expected some of zero_shot, linear"):
        FewShot(pool=eyes(9, 0), test=eyes(9, 0), classes=CLASSES, methods=("knn",))
    with pytest.raises(UserError, match="expected numbers from 1 up"):
        FewShot(pool=eyes(9, 0), test=eyes(9, 0), classes=CLASSES, shots=(0,))
    with pytest.raises(UserError, match=r"row 2: label 2; expected 0 to 1 \(a, b\)"):
        FewShot(pool=eyes(9, 0), test=eyes(9, 0), classes=("a", "b"))(forward, PARAMS, {})
    with pytest.raises(UserError, match="expected the feature 'visual'"):
        features.extract(forward, PARAMS, {}, eyes(9, 0), ("visual",))
    with pytest.raises(UserError, match="expected also 'mask'"):
        features.extract(forward, PARAMS, {}, eyes(9, 0), ("image_features",), extra_keys=("mask",))
    with pytest.raises(UserError, match="has no rows"):
        features.extract(forward, PARAMS, {}, list, ("image_features",))
    with pytest.raises(UserError, match="not finite"):
        features.extract(forward, {"scale": np.float32("nan")}, {}, eyes(9, 0), ("image_features",))


def test_adapters_by_hand():
    """One dimension more than needed: weights of zero leave the feature; a key that is the image itself adds alpha."""
    extra = {"text": jnp.eye(2), "log_scale": jnp.zeros(())}
    adapter = ClipAdapter(width=2, classes=2, reduction=1)
    params = {name: {"kernel": jnp.zeros((2, 2))} for name in ("fc1", "fc2")}
    batch = {"feature": jnp.array([[0.6, 0.8]]), "label": jnp.array([0])}
    np.testing.assert_allclose(adapter.forward(params, extra, batch)["logits"], [[0.6, 0.8]], atol=1e-6)
    loss = adapter.loss(params, extra, batch, None, None)[0]
    assert float(loss) == pytest.approx(math.log(1 + math.exp(0.2)), rel=1e-6)
    tip = TipAdapter(width=2, classes=2, shots=1, fixed_scale=10.0)
    params, more = {"keys": batch["feature"]}, extra | {"values": jnp.array([[1.0, 0.0]])}
    np.testing.assert_allclose(tip.forward(params, more, batch)["logits"], [[7.0, 8.0]], atol=1e-5)
    assert {key: s.shape for key, s in tip.batch_spec(3).items()} == {"feature": (3, 2), "label": (3,)}


def test_an_adapter_behind_its_model_learns_alone():
    """The features of an image and of the image's features are one; the loss has no gradient but the adapter's."""

    @dataclass(frozen=True)
    class Model:
        def batch_spec(self, batch):
            return {"image": jax.ShapeDtypeStruct((batch, 4), jnp.float32)}

        def init(self, rng, batch):
            return {"scale": jnp.ones(())}, {"mean": jnp.zeros(4)}

        def forward(self, params, extra, batch):
            x = params["scale"] * (batch["image"] if "image" in batch else batch["text"]) - extra["mean"][None]
            return {"image_features": x, "text_features": x, "logit_scale": jnp.float32(2)}

    objective = Adapted(Model(), ClipAdapter(width=4, classes=2))
    params, extra = jax.jit(lambda rng: objective.init(rng, {}))(jax.random.key(0))
    params = objective.with_heads(params, extra, lambda encode: encode({"text": jnp.eye(4)[:2]})["text_features"])
    assert float(params["heads"]["log_scale"]) == pytest.approx(math.log(2))
    image, label = jnp.eye(4)[:2], jnp.array([0, 1])
    one, two = (jax.jit(objective.forward)(params, extra, {key: image}) for key in ("image", "feature"))
    np.testing.assert_array_equal(one["logits"], two["logits"])
    loss = lambda p: objective.loss(p, extra, {"feature": image, "label": label}, None, None)[0]  # noqa: E731
    grads = jax.jit(jax.grad(loss))(params)
    assert all(float(jnp.abs(g).sum()) == 0 for part in ("model", "heads") for g in jax.tree.leaves(grads[part]))
    assert any(float(jnp.abs(g).sum()) > 0 for g in jax.tree.leaves(grads["adapter"]))


def test_the_linear_layer_of_ret_clips_authors_reads_the_probed_feature():
    """Its own feature, which separates the classes here, and no text; a class without images gets what is left."""
    rng = np.random.default_rng(0)
    labels = np.arange(600) % 3  # 37 steps in each of 50 epochs
    rows = {"linear": (4 * CENTERS[labels] + 0.3 * rng.normal(size=(600, WIDTH))).astype(np.float32), "label": labels}
    rows["feature"] = np.zeros_like(rows["linear"])
    few = {name: value[:592] for name, value in rows.items()}
    found = probe(few, 3, None, 0.0, rows, seed=1)
    assert found.shape == (600, 3) and (found.argmax(1) == labels).mean() == 1
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-5)
    np.testing.assert_array_equal(found, probe(few, 3, None, 0.0, rows, seed=1))
    assert (found != probe(few, 3, None, 0.0, rows, seed=2)).any()
