"""The decoders of maps beyond the original's sizes: other patches and depths, dropout, what is refused (see test_golden)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fundax.encoders.unetr import UNETR, Enlarge, decoder_blocks, drop_channels
from fundax.interop import unetr as layout
from fundax.types import UserError


def test_which_blocks_are_read():
    assert decoder_blocks(12) == (3, 5, 7, 11) and decoder_blocks(24) == (5, 11, 17, 23)
    assert decoder_blocks(4) == (0, 1, 2, 3) and decoder_blocks(6) == (0, 2, 3, 5)
    with pytest.raises(UserError, match="reads 4 blocks, and the encoder has 3"):
        decoder_blocks(3)


@pytest.mark.parametrize(("patch", "side"), [(4, 32), (8, 32), (14, 28), (16, 32), (32, 64)])
def test_any_patch_gives_the_images_own_size(patch, side):
    module = UNETR(2, patch, 4)
    tokens = (jax.ShapeDtypeStruct((2, (side // patch) ** 2 + 1, 6), jnp.float32),) * 4
    image = jax.ShapeDtypeStruct((2, side, side, 3), jnp.float32)
    out, _ = jax.eval_shape(lambda z, x: module.init_with_output(jax.random.key(0), z, x), tokens, image)
    assert out.shape == (2, side, side, 2) and out.dtype == jnp.float32


def test_the_published_size():
    """Spec 2.3: 1,991,217 trainable numbers at a width of 768 and one output."""
    shapes = layout.shapes(UNETR(1), 768)
    assert sum(int(np.prod(v)) for k, v in shapes.items() if k.startswith("params")) == 1_991_217


def test_enlarging_by_hand():
    kernel = jnp.arange(4.0).reshape(1, 2, 2, 1)
    variables = {"params": {"kernel": kernel, "bias": jnp.ones(1)}}
    out = Enlarge(1, 2).apply(variables, jnp.array([1.0, 10.0]).reshape(1, 1, 2, 1))
    np.testing.assert_array_equal(out[0, ..., 0], [[1, 2, 1, 11], [3, 4, 21, 31]])


def test_dropout_takes_whole_channels():
    dropped = np.asarray(jax.jit(drop_channels, static_argnums=2)(jnp.ones((4, 3, 3, 8)), jax.random.key(0), 0.5))
    assert set(np.unique(dropped)) == {0.0, 2.0} and (dropped == dropped[:, :1, :1]).all()
    assert 0.3 < (dropped > 0).mean() < 0.7


def test_what_does_not_fit_is_refused():
    tokens, image = jnp.zeros((1, 5, 6)), jnp.zeros((1, 16, 16, 3))
    with pytest.raises(UserError, match="reads 4 blocks, got 3"):
        UNETR(1, 8, 4).init(jax.random.key(0), (tokens,) * 3, image)
    with pytest.raises(UserError, match="7 tokens for a grid of 2 x 2"):
        UNETR(1, 8, 4).init(jax.random.key(0), (jnp.zeros((1, 7, 6)),) * 4, image)
    with pytest.raises(UserError, match="is for a patch of 16, this one is for 8"):
        layout.write(UNETR(1, 8), {}, {})
