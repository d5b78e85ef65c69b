"""The ring against the plain losses on global arrays, on one device and on a mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from fundax.losses import contrastive, ring

B, E = 256, 32


def l2_normalize(x):
    return jnp.float32(x / np.linalg.norm(x, axis=-1, keepdims=True))


@pytest.fixture(scope="module")
def pair():
    rng = np.random.default_rng(0)
    image = rng.standard_normal((B, E))
    return l2_normalize(image), l2_normalize(image + 1.5 * rng.standard_normal((B, E)))


def mesh(data, model):
    return jax.make_mesh((data, model), ("data", "model"), axis_types=(AxisType.Auto,) * 2)


def agree(ours, oracle, arguments, meshes=((4, 2),)):
    """Loss to 1e-6, every gradient to 1e-5 of its maximum."""
    wanted, wanted_gradients = jax.jit(jax.value_and_grad(oracle, range(len(arguments))))(*arguments)
    step = jax.jit(jax.value_and_grad(ours, range(len(arguments))))
    results = [step(*arguments)]
    for shape in meshes:
        with jax.set_mesh(mesh(*shape)):
            results.append(jax.jit(jax.value_and_grad(ours, range(len(arguments))))(*arguments))
    for loss, gradients in results:
        np.testing.assert_allclose(loss, wanted, rtol=1e-6, atol=1e-6)
        for got, want in zip(gradients, wanted_gradients, strict=True):
            np.testing.assert_allclose(got, want, atol=1e-5 * float(jnp.abs(want).max()))


@pytest.mark.parametrize("present", [False, True])
@pytest.mark.parametrize("grouped", [False, True])
def test_softmax(pair, grouped, present):
    rng = np.random.default_rng(1)
    there = jnp.asarray(rng.random(B) < 0.7) if present else None
    group = jnp.asarray(rng.integers(0, 40, B), jnp.int32) if grouped else None
    targets = contrastive.matching_targets(group) if grouped else None
    agree(
        lambda i, t, s: ring.softmax(i, t, s, group=group, present=there, rows=16),
        lambda i, t, s: contrastive.softmax_contrastive(i, t, s, mask=there, targets=targets),
        (*pair, jnp.float32(20.0)),
    )


@pytest.mark.parametrize("grouped", [False, True])
def test_sigmoid(pair, grouped):
    group = jnp.asarray(np.random.default_rng(2).integers(0, 40, B), jnp.int32) if grouped else None
    targets = contrastive.matching_targets(group) if grouped else None
    agree(
        lambda i, t, s, b: ring.sigmoid(i, t, s, b, group=group, rows=16),
        lambda i, t, s, b: contrastive.sigmoid_contrastive(i, t, s, b, targets=targets),
        (*pair, jnp.float32(10.0), jnp.float32(-10.0)),
    )


def test_full_size_at_the_highest_scale():
    """Batch 2,048 on eight devices, logit scale 100: where a fixed maximum would underflow."""
    rng = np.random.default_rng(3)
    image = rng.standard_normal((2048, 64))
    image, text = l2_normalize(image), l2_normalize(image + 3 * rng.standard_normal((2048, 64)))
    agree(ring.softmax, contrastive.softmax_contrastive, (image, text, jnp.float32(100.0)), meshes=((8, 1),))


def test_three_pairs_share_one_ring(pair):
    image, text = pair
    images, texts = jnp.stack([image, -image, image[::-1]]), jnp.stack([text, text[::-1], text])
    scales = jnp.float32([5.0, 10.0, 20.0])
    alone = jax.jit(contrastive.softmax_contrastive)
    one_by_one = [alone(i, t, s) for i, t, s in zip(images, texts, scales, strict=True)]
    with jax.set_mesh(mesh(4, 2)):
        together = jax.jit(ring.softmax_pairs)(images, texts, scales)
    np.testing.assert_allclose(together, jnp.stack(one_by_one), rtol=1e-6)


def test_by_hand():
    """Two orthogonal pairs at scale ln 3: every row is log(1 + 1/3)."""
    eye = jnp.eye(2, dtype=jnp.float32)
    np.testing.assert_allclose(jax.jit(ring.softmax)(eye, eye, jnp.log(3.0)), np.log(4 / 3), rtol=1e-6)
    # sigmoid: matches log(1 + 1/3), the others log 2, both twice, over B = 2
    loss = jax.jit(ring.sigmoid)(eye, eye, jnp.log(3.0), jnp.float32(0.0))
    np.testing.assert_allclose(loss, np.log(4 / 3) + np.log(2), rtol=1e-6)


def test_memory_is_linear_in_the_batch():
    """Compiled, never run: batch 65,536, width 512, eight devices; the naive losses take 4,224 MiB."""
    on = mesh(8, 1)
    rows = jax.ShapeDtypeStruct((65536, 512), jnp.float32, sharding=NamedSharding(on, PartitionSpec("data")))
    number = jax.ShapeDtypeStruct((), jnp.float32)
    for loss, arguments, limit in ((ring.softmax, (number,), 150), (ring.sigmoid, (number, number), 300)):
        with jax.set_mesh(on):
            step = jax.jit(jax.value_and_grad(loss, (0, 1, 2))).lower(rows, rows, *arguments).compile()
        analysis = step.memory_analysis()
        assert analysis is not None and analysis.temp_size_in_bytes < limit * 2**20


def test_the_model_axis_takes_part():
    """Compiled on (2, 4): a device holds what it holds on (8, 1), and a copy of its rows of the replicated features."""
    rows = lambda on: jax.ShapeDtypeStruct((65536, 512), jnp.float32, sharding=NamedSharding(on, PartitionSpec("data")))  # noqa: E731
    taken = {}
    for shape in ((8, 1), (2, 4)):
        with jax.set_mesh(on := mesh(*shape)):
            number = jax.ShapeDtypeStruct((), jnp.float32)
            step = jax.jit(jax.value_and_grad(ring.softmax, (0, 1, 2))).lower(rows(on), rows(on), number).compile()
            taken[shape] = step.memory_analysis().temp_size_in_bytes, ring.make_ring(65536).devices
    assert taken[2, 4][0] <= taken[8, 1][0] + 65536 // 8 * 512 * 4 + 2**16 and taken[2, 4][1] == 8


def test_a_batch_that_does_not_divide():
    with jax.set_mesh(mesh(2, 4)):
        assert ring.make_ring(12).axes == ("data",)  # not by 8, but by 2: the model axis repeats the ring
    with jax.set_mesh(mesh(8, 1)), pytest.raises(ValueError, match="12 does not divide among 8"):
        ring.make_ring(12)
