"""Communication read back from programs whose communication is known."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from fundax.roofline.collectives import BETWEEN, _groups, collectives


@pytest.fixture(scope="module")
def mesh():
    return jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)


def compiled(mesh, function, *arguments):
    with jax.set_mesh(mesh):
        return collectives(jax.jit(function).lower(*arguments).compile().as_text(), mesh)


def rows(mesh, *shape, spec):
    return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, spec))


def test_a_sum_over_the_data_axis(mesh):
    """16 rows of 32 floats summed over 4 devices: an all-reduce of 128 bytes, of which 2 x 3/4 leave each device."""
    (only,) = compiled(mesh, lambda x: x.sum(0), rows(mesh, 16, 32, spec=P("data")))
    assert (only.kind, only.axes, only.count, only.moved, only.group) == ("all-reduce", ("data",), 1, 192, 4)


def test_a_loop_counts_its_turns(mesh):
    def ring(x):
        order = [(i, (i + 1) % 4) for i in range(4)]
        turn = lambda x: jax.lax.fori_loop(0, 5, lambda _, x: jax.lax.ppermute(x, "data", order) * 2.0, x)  # noqa: E731
        return jax.shard_map(turn, in_specs=P("data"), out_specs=P("data"))(x)

    found = compiled(mesh, ring, rows(mesh, 16, 32, spec=P("data")))
    assert [(c.kind, c.axes, c.count, c.moved) for c in found] == [("collective-permute", ("data",), 5, 5 * 4 * 32 * 4)]


def test_a_gather_over_the_model_axis(mesh):
    def gather(x):
        return 2 * jax.lax.with_sharding_constraint(x, P())

    (only,) = compiled(mesh, gather, rows(mesh, 16, 32, spec=P(None, "model")))
    assert (only.kind, only.axes, only.moved) == ("all-gather", ("model",), 16 * 32 * 4 // 2)


def test_both_spellings_of_groups():
    np.testing.assert_array_equal(_groups("replica_groups={{0,2},{1,3}}", 4), [[0, 2], [1, 3]])
    np.testing.assert_array_equal(_groups("replica_groups=[2,2]<=[4]", 4), [[0, 1], [2, 3]])
    np.testing.assert_array_equal(_groups("replica_groups=[2,2]<=[2,2]T(1,0)", 4), [[0, 2], [1, 3]])
    named = "replica_groups=mesh['a'=1,'b'=2,'c'=4], device_ids=([4,2]T(1,0)) {'b'}"
    np.testing.assert_array_equal(_groups(named, 8), [[0, 1], [2, 3], [4, 5], [6, 7]])
    np.testing.assert_array_equal(_groups("replica_groups=mesh['a'=2,'b'=2] {'a'}", 4), [[0, 2], [1, 3]])


def test_what_goes_to_other_slices_is_counted_apart():
    @dataclass(frozen=True)
    class Device:
        id: int
        slice_index: int

    devices = np.empty(8, object)
    devices[:] = [Device(k, k // 4) for k in range(8)]
    mesh = Mesh(devices.reshape(4, 2, 1), ("data", "fsdp", "model"))
    hlo = "\n".join(
        (
            "ENTRY %main (p: f32[16,64]) -> f32[32,64] {",
            "  %gather = f32[64,64]{1,0} all-gather(%p), replica_groups={{0,1},{2,3}}, dimensions={1}",
            "  %reduce = f32[8]{0} all-reduce(%p), replica_groups={{0,2},{1,3}}, to_apply=%add",
            "  %send = (f32[16,64]{1,0:T(8,128)}, u32[], token[]) send(%p, %token), channel_id=2, is_host_transfer=true, "
            'frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime"}',
            "}",
        )
    )
    found = {one.kind: (one.axes, one.group, one.moved) for one in collectives(hlo, mesh)}
    assert found["all-gather"] == (("fsdp",), 2, 64 * 64 * 4 // 2)
    assert found["all-reduce"] == (("data",), 2, 32)
    assert found[BETWEEN] == (("data",), 2, 16 * 64 * 4)
