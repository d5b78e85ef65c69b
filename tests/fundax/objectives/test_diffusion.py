"""Diffusion's loss, average and samples on 8 small eyes; the schedules and samplers are tested in losses/test_diffusion."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from data_pipelines.synthetic.sources import Eyes
from fundax.encoders.unet import UNet, waves
from fundax.interop import keymap
from fundax.losses import diffusion as noising
from fundax.objectives.diffusion import Diffusion, pixels
from fundax.optim import ema_update
from fundax.params import unflatten
from fundax.types import UserError

TINY = UNet(8, (1,), (1,), (False,))
PLAIN = Diffusion(TINY, 8)
FULL = Diffusion(
    TINY.clone(attention=(True,), heads=2, condition=6, low=True), 8, low_size=4, modalities=2, findings=3, min_snr=5.0
)
IMAGES = np.stack([Eyes(8, size=16)[i].views[0].image[::2, ::2] for i in range(8)])
BATCH = {"image": IMAGES, "modality": np.arange(8, dtype=np.int32) % 2, "findings": np.eye(8, 3, dtype=np.float32)}


@pytest.fixture(scope="module")
def trained():
    """Params, extra and losses after 120 steps on the same 8 images."""
    params, extra = jax.jit(PLAIN.init)(jax.random.key(0), BATCH)
    optimizer = optax.adam(5e-3)

    @jax.jit
    def step(carry, number):
        params, extra, opt = carry
        rng = jax.random.fold_in(jax.random.key(1), number)
        value = jax.value_and_grad(PLAIN.loss, has_aux=True)
        (loss, (extra, _)), grads = value(params, extra, {"image": IMAGES}, rng, number)
        updates, opt = optimizer.update(grads, opt, params)
        return (optax.apply_updates(params, updates), extra, opt), loss

    carry, losses = (params, extra, jax.jit(optimizer.init)(params)), []
    for number in range(120):
        carry, loss = step(carry, jnp.int32(number))
        losses.append(float(loss))
    return carry[0], carry[1], losses


def test_the_loss_falls(trained):
    losses = trained[2]
    np.testing.assert_allclose(losses[0], 1.0, atol=0.1)  # a fresh U-Net says 0, and noise has variance 1
    assert np.mean(losses[-20:]) < 0.5


def test_samples_are_those_of_their_seeds(trained):
    extra = trained[1]
    draw = jax.jit(lambda seeds, sampler: PLAIN.sample(extra, {"seed": seeds}, 5, sampler), static_argnums=1)
    first, again, other = (np.asarray(draw(jnp.array(s, jnp.int32), "ddim")) for s in ([3, 4], [3, 4], [4, 5]))
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(first[1], other[0])
    assert first.dtype == np.uint8 and first.shape == (2, 8, 8, 3) and (first[0] != first[1]).any()
    with pytest.raises(UserError, match="expected ddim or ddpm"):
        PLAIN.sample(extra, {"seed": jnp.arange(1)}, 5, "euler")
    with pytest.raises(UserError, match="takes no low-resolution image"):
        PLAIN.sample(extra, {"seed": jnp.arange(1), "low": IMAGES})


def test_a_model_of_velocity_loses_the_error_of_velocity(trained):
    params, extra, _ = trained
    model = dataclasses.replace(PLAIN, predicts="velocity")
    blank = jax.tree.map(jnp.zeros_like, params)  # a U-Net that answers 0
    loss, (_, metrics) = jax.jit(model.loss)(blank, extra, {"image": IMAGES}, jax.random.key(0), jnp.int32(0))
    keys = jax.random.split(jax.random.key(0), 5)  # the draws of loss()
    time = jax.random.uniform(keys[0], (len(IMAGES),), maxval=noising.LAST)
    alpha, sigma = (x[:, None, None, None] for x in noising.signal_and_noise(noising.cosine_logsnr(time)))
    noise = jax.random.normal(keys[1], IMAGES.shape)
    velocity = alpha * noise - sigma * pixels(IMAGES)
    np.testing.assert_allclose(loss, (velocity**2).mean(), rtol=1e-4)
    np.testing.assert_allclose(metrics["noise_error"], ((alpha * velocity) ** 2).mean(), rtol=1e-4)


def test_the_average_follows(trained):
    params, extra, _ = trained
    kernel = lambda tree: np.asarray(tree["unet"]["first"]["kernel"])  # noqa: E731
    moved = jax.jit(ema_update)(extra["average"], params, 0.25)
    np.testing.assert_allclose(kernel(moved), 0.25 * kernel(extra["average"]) + 0.75 * kernel(params), atol=1e-6)
    # 0 at the first step, then at most (1 + step) / (10 + step), then 0.999
    np.testing.assert_allclose(
        [PLAIN.momentum_at(s) for s in (0, 1, 10, 10**5)], [0, 2 / 11, 11 / 20, 0.999], rtol=1e-6
    )


def test_a_conditioned_super_resolution_stage():
    assert FULL.condition_width == 6 and set(FULL.batch_spec(1)) == {"image", "modality", "findings"}
    rng = np.random.default_rng(0)
    shapes = keymap.shapes_of(FULL)
    params = unflatten({path: 0.2 * rng.standard_normal(shape, np.float32) for path, shape in shapes.items()})
    extra = {"average": params}
    run = jax.jit(FULL.loss)
    loss, (_, metrics) = run(params, extra, BATCH, jax.random.key(0), jnp.int32(0))
    assert 0 < float(loss) < float(metrics["noise_error"]), "min-SNR only takes weight away"
    other = run(params, extra, BATCH | {"findings": 1 - BATCH["findings"]}, jax.random.key(0), jnp.int32(0))[0]
    assert float(other) != float(loss)
    drawn = {
        "low": IMAGES[:, ::2, ::2][:2],
        "seed": np.arange(2),
        **{k: BATCH[k][:2] for k in ("modality", "findings")},
    }
    draw = jax.jit(lambda batch: FULL.sample(extra, batch, 2, guidance=3.0))
    free = drawn | {"findings": np.zeros((2, 3), np.float32)}
    assert (np.asarray(draw(drawn)) != np.asarray(draw(free))).any()
    with pytest.raises(UserError, match="conditioned on 'findings'"):
        FULL._condition({"modality": np.zeros(2, np.int32)})


def test_the_low_resolution_image_is_the_mean_of_its_pixels():
    clean = pixels(IMAGES)
    lowered, level = jax.jit(FULL._low)(clean, jax.random.key(0), jnp.full(8, 0.0))
    np.testing.assert_allclose(level, -np.log(np.expm1(1e-4)), rtol=1e-4)  # SNR 10,000: noise of 0.01
    np.testing.assert_allclose(lowered[:, 0, 0], np.asarray(clean)[:, :2, :2].mean((1, 2)), atol=0.06)
    np.testing.assert_allclose(lowered[:, 0, 0], lowered[:, 1, 1], atol=0.1)


def test_condition_is_modality_findings_and_a_one():
    row = np.asarray(FULL._condition(BATCH))[1]
    np.testing.assert_array_equal(row, [0, 1, 0, 1, 0, 1])


def test_noise_levels_differ():
    np.testing.assert_allclose(waves(jnp.zeros(1))[0], [0.0] * 16 + [1.0] * 16)
    far = waves(jnp.array([-12.0, -11.0, 8.0]))
    assert np.abs(far[0] - far[1]).max() > 0.4


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: Diffusion(TINY, 8, low_size=3), "not a multiple"),
        (lambda: Diffusion(TINY, 8, low_size=4), "needs low=True"),
        (lambda: dataclasses.replace(PLAIN, findings=3), "condition=4"),
        (lambda: UNet(8, (1, 2), (1,))._check(jnp.zeros((1, 8, 8, 3)), None, None), "one entry for each level"),
        (lambda: TINY._check(jnp.zeros((1, 7, 6, 3)), None, None), "multiples of 2"),
        (lambda: TINY._check(jnp.zeros((1, 8, 8, 3)), jnp.zeros((1, 2)), None), "condition is of width 2"),
    ],
)
def test_mistakes_are_named(wrong, message):
    with pytest.raises(UserError, match=message):
        wrong()


def test_published_sizes():
    shapes = jax.eval_shape(
        Diffusion(UNet(256, (1, 2, 3, 4), (3,) * 4, (False, True, True, True), heads=8), 64).init,
        jax.random.key(0),
        {},
    )[0]
    count = sum(x.size for x in jax.tree.leaves(shapes))
    assert 3e8 < count < 6e8
    assert shapes["unet"]["down_3_attention"]["attention"]["qkv"]["kernel"].shape == (1024, 3, 1024)
