"""The masked decoder's parts: patches and back, the pixel loss by hand, what a reconstruction keeps."""

import jax
import jax.numpy as jnp
import numpy as np

from fundax.encoders.autoencoder import MaskedDecoder, hidden_patches, pixel_loss, reconstruct, unpatch
from fundax.encoders.vit import patches

IMAGE = jax.random.normal(jax.random.key(0), (2, 4, 4, 3))
KEPT = jnp.array([[3, 0], [1, 2]])


def test_unpatch_is_the_inverse_of_patches():
    np.testing.assert_array_equal(unpatch(patches(IMAGE, 2), 2), IMAGE)


def test_hidden_patches():
    np.testing.assert_array_equal(hidden_patches(KEPT, 4), [[0, 1, 1, 0], [1, 0, 0, 1]])


def test_pixel_loss_by_hand():
    """Predicting 0 for a normalised patch of 12 numbers costs its variance, (n - 1) / n = 11/12."""
    np.testing.assert_allclose(pixel_loss(jnp.zeros((2, 4, 12)), IMAGE, KEPT, 2), [11 / 12] * 2, rtol=1e-4)
    target = np.asarray(patches(IMAGE, 2))
    perfect = (target - target.mean(-1, keepdims=True)) / target.std(-1, keepdims=True, ddof=1)
    np.testing.assert_allclose(pixel_loss(perfect, IMAGE, KEPT, 2), [0, 0], atol=1e-6)
    wrong_where_visible = np.where(np.asarray(hidden_patches(KEPT, 4))[:, :, None] > 0, perfect, 100)
    np.testing.assert_allclose(pixel_loss(wrong_where_visible, IMAGE, KEPT, 2), [0, 0], atol=1e-6)


def test_reconstruct_keeps_visible_patches_and_each_patchs_mean():
    image = reconstruct(jnp.zeros((2, 4, 12)), IMAGE, KEPT, 2)
    before, after = np.asarray(patches(IMAGE, 2)), np.asarray(patches(image, 2))
    np.testing.assert_array_equal(after[0, [0, 3]], before[0, [0, 3]])
    expected = np.repeat(before[0, 1].mean(), 12)  # a prediction of 0 is the flat patch
    np.testing.assert_allclose(after[0, 1], expected, atol=1e-6)


def test_decoder_puts_tokens_back_where_they_were():
    decoder = MaskedDecoder(patch=2, count=4, width=8, depth=1, heads=2)
    tokens = jax.random.normal(jax.random.key(1), (2, 3, 6))
    params = jax.jit(decoder.init)(jax.random.key(0), tokens, KEPT)
    run = jax.jit(decoder.apply)
    out = run(params, tokens, KEPT)
    assert out.shape == (2, 4, 12)
    assert out.dtype == jnp.float32
    swapped = run(params, tokens[:, jnp.array([0, 2, 1])], KEPT[:, ::-1])  # the same tokens, named in another order
    np.testing.assert_allclose(out, swapped, atol=1e-5)
