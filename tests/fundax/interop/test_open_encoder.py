"""Decoders on encoders that were learnt before: which parameters come along, at which size, by whose normalisation."""

import jax
import numpy as np
import pytest

from fundax.encoders.backbone import Encoder
from fundax.encoders.unetr import Linear
from fundax.encoders.vit import dino_vit
from fundax.interop import encoder as encoder_layout
from fundax.interop import open_encoder
from fundax.interop.weights import write_safetensors
from fundax.objectives.dense import Segment
from fundax.types import UserError


def tower(side=32, patch=8):
    return dino_vit("Ti/16").clone(image_size=side, patch=patch, width=64, depth=4, heads=1)


def values(shapes):
    return jax.tree.map(lambda x: np.random.default_rng(x.size).standard_normal(x.shape, np.float32), shapes)


@pytest.fixture
def run(monkeypatch):
    """A pretraining of two modalities at 32 pixels, in place of a folder."""
    encoder = Encoder(tower(), ((0.1,) * 3, (0.2,) * 3), ((1.0,) * 3, (2.0,) * 3))
    params = values(jax.eval_shape(lambda: encoder.init(jax.random.key(0), encoder_batch()))[0])
    monkeypatch.setattr(open_encoder, "is_run", lambda path: True)
    monkeypatch.setattr(open_encoder, "read_objective", lambda path: encoder)
    monkeypatch.setattr(open_encoder, "load_params", lambda path, checkpoint: (params, {}))
    return params


def encoder_batch():
    return {"image": np.zeros((1, 32, 32, 3), np.uint8)}


def test_a_run_at_another_size(run):
    found = open_encoder.open_encoder("run", 64, row=1)
    assert found.mean == (0.2,) * 3 and found.std == (2.0,) * 3 and found.tower.image_size == 64
    fresh = {"image": {}, "decoder": {"out": {"kernel": np.zeros((4, 1))}}}
    filled = found.init_from[0](fresh)
    assert filled["image"]["position"].shape == (65, 64) and filled["decoder"] is fresh["decoder"]
    np.testing.assert_array_equal(filled["image"]["position"][0], run["image"]["position"][0])
    np.testing.assert_array_equal(
        filled["image"]["block_3"]["norm1"]["scale"], run["image"]["block_3"]["norm1"]["scale"]
    )
    with pytest.raises(UserError, match="patches of 8 pixels, which do not fill an image of 30"):
        open_encoder.open_encoder("run", 30)


def test_a_decoder_that_fits_comes_along(run):
    kernel = np.ones((4, 1), np.float32)
    run["decoder"] = {"out": {"kernel": kernel}}
    fill = open_encoder.open_encoder("run", 32).init_from[0]
    assert fill({"image": {}, "decoder": {"out": {"kernel": 0 * kernel}}})["decoder"]["out"]["kernel"] is kernel
    assert fill({"image": {}, "decoder": {"out": {"kernel": np.zeros((4, 2))}}})["decoder"]["out"]["kernel"].shape == (
        4,
        2,
    )


def test_a_file_of_another_program(tmp_path):
    params = {
        "image": values(jax.eval_shape(lambda: tower().init(jax.random.key(0), np.zeros((1, 32, 32, 3))))["params"])
    }
    write_safetensors(encoder_layout.from_fundax(Encoder(tower()), params), tmp_path / "vit.safetensors")
    found = open_encoder.open_encoder(tmp_path / "vit.safetensors", 32, (((0.5,) * 3,), ((0.25,) * 3,)))
    assert found.mean == (0.5,) * 3 and found.tower.depth == 4 and found.tower.patch == 8
    objective = Segment(found.tower, Linear(1, 8), (0, 1, 2, 3), ("disc",))
    fresh = jax.eval_shape(lambda: objective.init(jax.random.key(0), {}))[0]
    filled = found.init_from[0](fresh)
    assert jax.tree.map(np.shape, filled) == jax.tree.map(np.shape, fresh)


def test_names_of_new_encoders():
    assert open_encoder.new_encoder("B/16", 512).tower.patches == 32**2
    with pytest.raises(UserError, match="encoder is 'huge'; expected one of mini, small"):
        open_encoder.new_encoder("huge", 64)
