"""The feature pyramid decoder, alone and in a model of masks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fundax.encoders.pyramid import FPN
from fundax.encoders.resnet import ResNet
from fundax.encoders.unetr import UNETR, Linear
from fundax.encoders.vit import vit
from fundax.interop.backbones import backbone
from fundax.objectives.dense import Decoder, Segment
from fundax.types import UserError

KEY, STEP = jax.random.key(0), jnp.int32(0)
TOWER = ResNet(image_size=32, width_first=4, blocks=(1, 1, 1, 1), basic=True)
BATCH = {
    "image": np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3)).astype(np.uint8),
    "mask": (np.arange(2 * 1024).reshape(2, 32, 32) % 3 == 0).astype(np.int32),
}


@pytest.fixture(scope="module")
def model():
    objective = Segment(TOWER, FPN(1, width=4, dropout=0.0, start=-3.0), (), ("disc",))
    return objective, *jax.jit(lambda: objective.init(KEY, {}))()


def test_maps_of_ones_give_the_sum_of_their_projections():
    """Laterals with kernels of 1 sum the channels: 2 + 3 = 5 everywhere, also where a map has an odd side."""
    decoder, image = FPN(1, width=2, dropout=0.0), jnp.zeros((1, 20, 12, 3))
    maps = (jnp.ones((1, 5, 3, 2)), jnp.ones((1, 3, 2, 3)))
    variables = decoder.init(KEY, maps, image)
    ones = {name: {"kernel": jnp.ones_like(x["kernel"]), "bias": x["bias"]} if "lateral" in name else x
            for name, x in variables["params"].items()}  # fmt: skip
    same = jnp.zeros((3, 3, 2, 2)).at[1, 1].set(jnp.eye(2))  # the convolution of the coarse map copies it
    ones["context1"] = {**ones["context1"], "kernel": same, "bias": jnp.zeros(2)}
    _, kept = decoder.apply(
        {**variables, "params": ones}, maps, image, capture_intermediates=True, mutable=["intermediates"]
    )
    found, root = kept["intermediates"], np.sqrt(1 + 1e-5)  # running statistics are 0 and 1
    assert float(found["lateral0"]["__call__"][0].mean()) == 2 and float(found["lateral1"]["__call__"][0].mean()) == 3
    into = jax.tree.leaves(found["merge"]["__call__"])[0]
    kernel, bias = variables["params"]["merge"]["kernel"], variables["params"]["merge"]["bias"]
    expected = jax.nn.relu(((2 + 3 / root) * kernel[..., 0].sum() + bias[0]) / root)
    np.testing.assert_allclose(into[0, 2, 1, 0], expected, rtol=1e-5)  # away from the edges
    assert decoder.apply(variables, maps, image).shape == (1, 20, 12, 1)


def test_a_coarse_pyramid_is_enlarged_and_reads_no_pixels():
    """Stride 4: logits of a map of 5 x 3, each in the middle of its 4 pixels, and interpolated between them."""
    maps, image = (jax.random.normal(KEY, (1, 5, 3, 2)),), jnp.zeros((1, 20, 12, 3))
    decoder = FPN(1, width=2, dropout=0.0, stride=4)
    variables = decoder.init(KEY, maps, image)
    assert set(variables["params"]) == {"lateral0", "merge", "out"}
    out, kept = decoder.apply(variables, maps, image, capture_intermediates=True, mutable=["intermediates"])
    coarse = jax.tree.leaves(kept["intermediates"]["out"])[0]
    assert out.shape == (1, 20, 12, 1) and coarse.shape == (1, 5, 3, 1)
    row = 0.625 * coarse[0, 0, 1] + 0.375 * coarse[0, 0, 2]  # the middle of pixel 7 is 7.5 / 4 - 0.5 = 1.375 cells
    np.testing.assert_allclose(out[0, 0, 7], row, rtol=1e-5)


def test_few_pixels_belong_to_a_structure_at_first(model):
    objective, params, extra = model
    out = jax.jit(objective.forward)(params, extra, BATCH)
    assert out["logits"].shape == (2, 32, 32, 1) and float(out["probability"].mean()) < 0.2


def test_statistics_of_the_encoder_stay_and_those_of_the_decoder_move(model):
    objective, params, extra = model
    (_, (after, _)), gradients = jax.jit(jax.value_and_grad(objective.loss, has_aux=True))(
        params, extra, BATCH, KEY, STEP
    )
    assert set(after) == set(extra) == {"image", "batch_stats"}
    jax.tree.map(np.testing.assert_array_equal, after["image"], extra["image"])
    assert any(
        float(jnp.abs(a - b).max()) > 0
        for a, b in zip(jax.tree.leaves(after["batch_stats"]), jax.tree.leaves(extra["batch_stats"]), strict=True)
    )
    assert all(float(jnp.abs(x).max()) > 0 for x in jax.tree.leaves(gradients["image"]["stage1_unit0"]))


def test_a_convolutional_encoder_gets_a_pyramid():
    fields = Decoder(width=8).fields(backbone("resnet-tiny", image_size=32, feature="pooled").backbone, 2)
    assert isinstance(fields["decoder"], FPN) and fields["blocks"] == ()


@pytest.mark.parametrize(
    "image, decoder, message",
    [
        (TOWER, UNETR(1, 16), "UNETR reads the blocks of a ViT; a ResNet needs an FPN"),
        (TOWER, Linear(1, 16), "Linear reads the blocks of a ViT"),
        (vit("smoke"), FPN(1), "a ViT needs a UNETR or Linear"),
    ],
)
def test_parts_that_do_not_fit(image, decoder, message):
    with pytest.raises(UserError, match=message):
        Segment(image, decoder, (0,), ("disc",)).init(KEY, {})
