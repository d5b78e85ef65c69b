"""The codebook by hand, gradients straight through, dead codes revived, pictures of what is rebuilt."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fundax.encoders.autoencoder import ImageDecoder, ImageEncoder
from fundax.evals.reconstruction import rebuilt
from fundax.objectives.vector_quantize import VectorQuantize, grid_means
from fundax.results.finished import draw_run
from fundax.runtime import serialize
from fundax.runtime.mesh import make_mesh, shard_batch
from fundax.runtime.workdir import write_arrays
from fundax.types import UserError


@pytest.fixture(scope="module")
def started():
    objective = VectorQuantize(ImageEncoder((4, 4), 3), ImageDecoder((4, 4)), image_size=16, codes=8)
    image = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), np.uint8)
    params, extra = jax.jit(objective.init)(jax.random.key(0), {"image": image})
    return objective, {"image": image}, params, extra


def test_shapes_and_the_nearest_code(started):
    objective, batch, params, extra = started
    out = jax.jit(objective.forward)(params, extra, batch)
    assert out["codes"].shape == (4, 4, 4) and out["rebuilt"].shape == (4, 16, 16, 3)
    assert out["appearance"].shape == (4, objective.appearance) == (4, 48)
    np.testing.assert_allclose(np.linalg.norm(out["appearance"], axis=1), 1, rtol=1e-5)
    z, index, quantized = jax.jit(objective._quantized)(params, extra, batch["image"])
    book, flat = np.asarray(extra["codebook"]), np.asarray(z).reshape(-1, 3)
    nearest = np.square(flat[:, None] - book[None]).sum(2).argmin(1)
    np.testing.assert_array_equal(np.asarray(index).ravel(), nearest)
    np.testing.assert_array_equal(np.asarray(quantized).reshape(-1, 3), book[nearest])
    assert serialize.from_json(serialize.to_json(objective)) == objective


def test_a_step_of_the_codebook_by_hand(started):
    objective = started[0]
    still = VectorQuantize(objective.encoder, objective.decoder, 16, codes=2, decay=0.5, dead=0.0)
    extra = {"codebook": jnp.ones((2, 3)), "count": jnp.array([2.0, 4.0]), "sum": jnp.ones((2, 3))}
    vectors = jnp.arange(9.0).reshape(3, 3)
    new, used = jax.jit(still.update_codebook)(extra, vectors, jnp.array([0, 0, 1]), jax.random.key(0))
    np.testing.assert_allclose(new["count"], [2.0, 2.5])  # half the old count, half the new
    np.testing.assert_allclose(new["sum"], [[2, 3, 4], [3.5, 4, 4.5]])
    np.testing.assert_allclose(new["codebook"], new["sum"] / new["count"][:, None])
    np.testing.assert_allclose(used["perplexity"], np.exp(-(2 / 3 * np.log(2 / 3) + 1 / 3 * np.log(1 / 3))), rtol=1e-6)


def test_dead_codes_come_back_as_vectors_of_the_batch(started):
    objective, batch, params, extra = started
    step = jax.jit(jax.value_and_grad(objective.loss, has_aux=True))
    (loss, (new, metrics)), grads = step(params, extra, batch, jax.random.key(1), jnp.zeros((), jnp.int32))
    assert np.isfinite(loss) and metrics["codes_alive"] < 1
    vectors = np.asarray(jax.jit(objective._quantized)(params, extra, batch["image"])[0]).reshape(-1, 3)
    chosen = np.bincount(np.asarray(jax.jit(objective.forward)(params, extra, batch)["codes"]).ravel(), minlength=8)
    dead = 0.01 * chosen < objective.dead * len(vectors) / 8
    assert dead.any()
    apart = np.square(np.asarray(new["codebook"])[dead][:, None] - vectors[None]).sum(2).min(1)
    np.testing.assert_allclose(apart, 0, atol=1e-8)
    assert all(np.asarray(leaf).any() for leaf in jax.tree.leaves(grads["encoder"]["conv_in"]))  # straight through


def test_the_codebook_is_that_of_the_global_batch(started):
    objective, batch, params, extra = started
    step = jax.jit(objective.loss)
    loss, (new, _) = step(params, extra, batch, jax.random.key(1), jnp.zeros((), jnp.int32))
    mesh = make_mesh((4, 1))
    with jax.set_mesh(mesh):
        there, (book, _) = step(params, extra, shard_batch(batch, mesh), jax.random.key(1), jnp.zeros((), jnp.int32))
    np.testing.assert_allclose(there, loss, rtol=1e-5)
    for name in new:
        np.testing.assert_allclose(book[name], new[name], rtol=1e-5, atol=1e-5)


def test_grid_means_by_hand():
    fields = jnp.arange(16.0).reshape(1, 4, 4, 1)
    means = np.array([2.5, 4.5, 10.5, 12.5])
    np.testing.assert_allclose(grid_means(fields, 2)[0], means / np.linalg.norm(means), rtol=1e-6)
    with pytest.raises(UserError, match="3 x 3 regions"):
        grid_means(fields, 3)
    with pytest.raises(UserError, match="a multiple of 16"):
        VectorQuantize(ImageEncoder((4, 4), 3), ImageDecoder((4, 4)), image_size=24)


def test_the_eval_and_its_picture(started, tmp_path):
    objective, batch, params, extra = started
    two = [batch | {"valid": np.array([True] * 4)}, batch | {"valid": np.array([True, False, False, False])}]
    evaluate = rebuilt(lambda: iter(two), shown=5)
    forward = jax.jit(objective.forward)
    out = evaluate(lambda p, e, b: jax.device_get(forward(p, e, b)), params, extra)
    assert out["pictures"].shape == out["reconstruction"].shape == (5, 16, 16, 3)
    np.testing.assert_array_equal(out["pictures"][4], batch["image"][0])
    assert 0 < out["error"] < 1 and 1 <= out["codes_used"] <= 8
    write_arrays(tmp_path, "rebuilt", out.arrays())
    assert [path.name for path in draw_run(tmp_path)] == ["rebuilt_pictures.png"]
    with pytest.raises(UserError, match="no rows"):
        rebuilt(lambda: iter([]))(lambda p, e, b: {}, params, extra)
