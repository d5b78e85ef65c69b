"""What an image looks like: by a run of the autoencoder, by a ViT's tokens, and where there is neither."""

from functools import partial

import jax
import numpy as np
import pytest

from fundax.encoders.autoencoder import ImageDecoder, ImageEncoder
from fundax.encoders.bert import BERT
from fundax.encoders.resnet import ResNet
from fundax.encoders.vit import ViT
from fundax.inference.appearance import appearance, appearance_width, looking
from fundax.interop.initial import warm_start
from fundax.objectives.flair import FLAIR
from fundax.objectives.masked_text import MaskedText
from fundax.objectives.vector_quantize import VectorQuantize
from fundax.runtime import serialize
from fundax.runtime.checkpoint import Checkpoints
from fundax.runtime.workdir import write_json
from fundax.types import UserError

TEXT = BERT(vocab=11, context=6, width=8, depth=1, heads=2, hidden=16, pool="mean")


def a_run(objective, folder):
    """A folder as training leaves it, with fresh parameters."""
    batch = {name: np.ones(x.shape, x.dtype) for name, x in objective.batch_spec(1).items()}
    params, extra = jax.device_get(jax.jit(objective.init)(jax.random.key(0), batch))
    folder.mkdir()
    write_json(folder / "config.json", {"objective": serialize.to_json(objective)})
    with Checkpoints(folder) as kept:
        kept.save(1, {"params": params, "extra": extra, "opt": {}}, {}, {})
    return params, extra


def test_an_autoencoder_looks(tmp_path):
    objective = VectorQuantize(ImageEncoder((4, 4), 3), ImageDecoder((4, 4)), image_size=16, codes=8)
    params, extra = a_run(objective, tmp_path / "vq")
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)
    found = looking(tmp_path / "vq")(images)
    expected = jax.jit(objective.forward)(params, extra, {"image": images})["appearance"]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert found.shape[1] == appearance_width(tmp_path / "vq") == 48
    large = images.repeat(2, 1).repeat(2, 2)
    assert looking(tmp_path / "vq")(large).shape == (2, 48)


def test_a_vit_looks_with_its_patches():
    objective = FLAIR(ViT(16, 2, 8, 1, 2), TEXT, embed=4, context=6)
    batch = {name: np.ones(x.shape, x.dtype) for name, x in objective.batch_spec(1).items()}
    params, _ = jax.jit(objective.init)(jax.random.key(0), batch)
    images = np.zeros((2, 16, 16, 3), np.uint8)
    images[0, :4, :4] = 255  # the first of the 4 x 4 fields
    found = np.asarray(jax.jit(partial(appearance, objective))(params, {}, images)).reshape(2, 16, 8)
    np.testing.assert_allclose(np.linalg.norm(found.reshape(2, -1), axis=1), 1, rtol=1e-5)
    apart = np.abs(found[0] - found[1]).sum(1)
    assert apart[0] == apart.max()


def test_a_model_of_neither_kind_says_so(tmp_path):
    a_run(FLAIR(ResNet(32, 4, (1, 1)), TEXT, embed=4, context=6), tmp_path / "resnet")
    with pytest.raises(UserError, match="a FLAIR without a ViT"):
        appearance_width(tmp_path / "resnet")
    with pytest.raises(UserError, match="the checkpoint has no head; it has"):
        warm_start(tmp_path / "resnet", MaskedText(TEXT, 6), ("head",)).init_from[0]({})


def test_a_tower_goes_from_run_to_run(tmp_path):
    params, _ = a_run(MaskedText(TEXT, 6), tmp_path / "text")
    fresh = {"text": jax.tree.map(np.zeros_like, params["text"]), "image": {"a": np.zeros(2)}}
    filled = warm_start(tmp_path / "text", MaskedText(TEXT, 6), ("text",)).init_from[0](fresh)
    jax.tree.map(np.testing.assert_array_equal, filled["text"], params["text"])
    assert filled["image"] is fresh["image"]
    fresh["text"]["embed_norm"]["bias"] = np.zeros(3)
    with pytest.raises(UserError, match=r"'text/embed_norm/bias' has the shape \(.*\), expected \(3,\)"):
        warm_start(tmp_path / "text", MaskedText(TEXT, 6), ("text",)).init_from[0](fresh)
