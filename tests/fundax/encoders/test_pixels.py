import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance

from fundax.encoders.clip_text import TextTransformer
from fundax.encoders.pixels import brightened, contrasted, jittered
from fundax.encoders.vit import ViT
from fundax.objectives.clip import CLIP


@pytest.mark.parametrize("factor", [0.8, 1.0, 1.2])
@pytest.mark.parametrize(("ours", "theirs"), [(brightened, "Brightness"), (contrasted, "Contrast")])
def test_each_change_is_pillows_but_for_its_rounding(ours, theirs, factor):
    image = np.random.default_rng(0).integers(0, 256, (2, 7, 9, 3), dtype=np.uint8)
    made = np.asarray(ours(jnp.asarray(image, jnp.float32), jnp.full((2, 1, 1, 1), factor)))
    for one, pixels in zip(made, image, strict=True):
        wanted = np.asarray(getattr(ImageEnhance, theirs)(Image.fromarray(pixels)).enhance(factor), np.float32)
        assert np.abs(one - wanted).max() <= 1


def test_grey_of_100_at_contrast_and_brightness_by_hand():
    image = jnp.asarray([[[[50.0] * 3, [150.0] * 3]]])
    assert np.allclose(np.asarray(contrasted(image, jnp.full((1, 1, 1, 1), 1.2)))[0, 0, :, 0], (40, 160), atol=1e-4)
    assert np.allclose(np.asarray(brightened(image, jnp.full((1, 1, 1, 1), 2.0)))[0, 0, :, 0], (100, 255), atol=1e-4)


def test_rows_draw_their_own_numbers_within_the_span():
    image = jnp.full((64, 2, 2, 3), 100, jnp.uint8)
    made = np.asarray(jittered(image, jax.random.key(1), 0.2, 0.2))[:, 0, 0, 0]
    assert (
        made.min() >= 80 and made.max() <= 120 and len(np.unique(made)) == 64
    )  # flat images: contrast changes nothing
    assert np.array_equal(np.asarray(jittered(image, jax.random.key(2), 0.0, 0.0)), np.asarray(image, np.float32))


def test_clip_jitters_what_it_learns_from_and_nothing_else():
    model = CLIP(ViT(16, 8, 16, 1, 2), TextTransformer(20, 4, 16, 1, 2), embed=16, jitter=(0.2, 0.2))
    image = jax.random.randint(jax.random.key(0), (2, 16, 16, 3), 0, 256).astype(jnp.uint8)
    batch = {"image": image, "text": jnp.ones((2, 4), jnp.int32)}
    params, extra = jax.jit(model.init)(jax.random.key(1), batch)
    still = jax.jit(model.forward)(params, extra, batch)["image_features"]
    encode = jax.jit(model.encode)
    moved = [encode(params, extra, batch, jax.random.key(k), jnp.int32(0))["image_features"] for k in (1, 1, 2)]
    assert np.array_equal(moved[0], moved[1])
    assert not np.allclose(moved[0], moved[2]) and not np.allclose(moved[0], still)
