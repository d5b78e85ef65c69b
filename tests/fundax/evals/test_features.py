"""Features taken once: batches are arithmetic of (seed, step), classes take turns, the last batch is padded."""

import jax.numpy as jnp
import numpy as np
import pytest

from fundax.evals.features import Epochs, Frozen, extract, once
from fundax.metrics.calibration import calibration_error
from fundax.metrics.classification import by_horizon
from fundax.types import UserError


class Double:
    """Its feature is twice the image's mean plus a parameter."""

    def batch_spec(self, batch):
        return {}

    def init(self, rng, batch):
        return {"image": jnp.zeros(1)}, {}

    def forward(self, params, extra, batch):
        return {"feature": 2.0 * batch["image"].mean((1, 2, 3))[:, None] + params["image"][None]}


def rows():
    return {"feature": np.arange(7, dtype=np.float32)[:, None], "label": np.array([0, 0, 0, 0, 1, 1, -1])}


def test_features_are_those_of_the_filled_encoder():
    taken = []

    def data():
        taken.append(1)
        images = np.ones((2, 4, 4, 3), np.float32) * np.array([1, 5])[:, None, None, None]
        yield {"image": images, "label": np.array([3, 4]), "valid": np.array([True, False])}

    read = Frozen(Double(), (lambda params: params | {"image": np.ones(1, np.float32)},)).rows(data, ("label",))
    assert not taken
    assert read()["feature"].tolist() == [[3.0]] and read()["label"].tolist() == [3] and len(taken) == 1


def test_every_row_once_an_epoch_whatever_the_processes():
    whole = Epochs(rows, 7, seed=3)()
    epochs = [next(whole)["feature"][:, 0] for _ in range(2)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs) and not (epochs[0] == epochs[1]).all()
    alone = Epochs(rows, 4, seed=3)(0, 1)
    halves = [Epochs(rows, 4, seed=3)(k, 2) for k in range(2)]
    for _ in range(3):
        both = np.concatenate([next(half)["feature"] for half in halves])
        np.testing.assert_array_equal(next(alone)["feature"], both)
    later = Epochs(rows, 4, seed=3)()
    later.set_state(alone.get_state())
    np.testing.assert_array_equal(next(alone)["feature"], next(later)["feature"])
    with pytest.raises(UserError, match="does not divide"):
        Epochs(rows, 3)(0, 2)


def test_classes_take_turns():
    found = next(Epochs(rows, 12, balanced="label")())
    assert found["label"].tolist() == [0, 1] * 6
    assert sorted(found["feature"][::2, 0])[:4] == [0, 0, 1, 1] or len(set(found["feature"][:8:2, 0])) == 4
    with pytest.raises(UserError, match="several labels"):
        next(Epochs(lambda: {"feature": np.zeros((2, 1)), "label": np.zeros((2, 3))}, 2, balanced="label")())


def test_a_pass_pads_its_last_batch():
    found = list(once(rows, 5)())
    assert [batch["valid"].sum() for batch in found] == [5, 2] and found[1]["feature"][:, 0].tolist() == [5, 6, 6, 6, 6]


def test_horizons_by_hand():
    labels, p = np.array([0, 1, 0, 1, 1]), np.array([0.2, 0.8, 0.6, 0.6, 0.1])
    found = by_horizon(labels, p, np.array([10, 10, 90, 90, 90]), 2)
    assert found["band_from"].tolist() == [10, 90] and found["band_rows"].tolist() == [2, 3]
    assert found["band_auc"].tolist() == [1.0, 0.25] and found["band_f1"].tolist() == [1.0, 0.5]
    np.testing.assert_allclose(found["band_brier"], [0.04, (0.36 + 0.16 + 0.81) / 3])
    alone = by_horizon(np.zeros(3, int), np.full(3, 0.3), np.arange(3), 1)
    assert np.isnan(alone["band_auc"][0]) and alone["band_note"][0] == "no row progressed"
    assert calibration_error(labels[:4], p[:4], bins=10).value == pytest.approx((0.2 + 0.2 + 2 * 0.1) / 4)


def test_a_damaged_cache_is_computed_again(tmp_path, caplog):
    data = lambda: [{"image": np.arange(12.0).reshape(3, 2, 2, 1)}]  # noqa: E731
    params = {"image": jnp.zeros(1)}
    how = {"extra_keys": (), "cache": tmp_path, "fingerprint": "x"}
    read = lambda: extract(Double().forward, params, {}, data, ("feature",), **how)["feature"]  # noqa: E731
    first = read()
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    damages = [
        whole[: len(whole) // 2],
        whole[:-5],
        b"",
        whole[:60] + b"\xff" * 40 + whole[100:],
        b"PK\x03\x04" + whole[30:],
    ]
    for damaged in damages:
        file.write_bytes(damaged)
        caplog.clear()
        np.testing.assert_array_equal(read(), first)
        assert "features are computed again" in caplog.text
    np.testing.assert_array_equal(read(), first)
