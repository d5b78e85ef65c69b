"""What compiling says of a step, by hand: memory, roofline, verdicts. No TPU and no libtpu are needed here."""

import sys

import jax
import pytest
from jax.sharding import PartitionSpec as P
from rich.console import Console
from tiny_objective import recipe

from fundax.roofline import compile as aot
from fundax.roofline.chips import CHIPS, GIB
from fundax.roofline.collectives import Collective
from fundax.types import UserError


def report(**fields):
    given = {
        "topology": "v5e:2x2", "chip": CHIPS["v5e"], "mesh": {"data": 4, "fsdp": 1, "model": 1}, "batch": 8, "images": 16,
        "parameters": 10, "state": 2 * GIB, "arguments": 3 * GIB, "temporaries": 4 * GIB, "communication": (),
        "model_flops": int(4 * 197e12), "done_flops": int(6 * 197e12), "moved": 0, "seconds_to_compile": 1.0,
    }  # fmt: skip
    return aot.CompiledStep(**(given | fields))


def printed(report):
    console = Console(width=200)
    with console.capture() as said:
        console.print(aot.tables(report))
    return said.get()


def test_the_roofline_by_hand():
    """A second of model FLOPs on each of 4 chips, half as much again by remat; 819 GB of memory traffic; 100 GB on links."""
    moved = int(4 * (819e9 - 2 * 2 * GIB))
    wires = (Collective("all-reduce", ("data",), 2, int(100e9), 4),)
    found = report(moved=moved, communication=wires)
    seconds = found.roofline()
    assert seconds == {
        "compute": pytest.approx(1.5),
        "memory": pytest.approx(1.0, rel=1e-6),
        "interconnect": pytest.approx(0.5),
    }
    assert found.mfu(1.5) == pytest.approx(2 / 3)
    text = printed(found)
    assert "1,500 ms, MFU 67 %, 3 images/s/chip" in text and "3,000 ms, MFU 33 %" in text
    assert "7.00 GiB of 16.0 GiB (44 %)" in text and "fits" in text


def test_verdicts():
    assert report().fits is True
    assert report(temporaries=14 * GIB).fits is False
    refused = report(temporaries=None, refused="Ran out of memory: used 66 of 15.75G")
    assert refused.fits is False and refused.roofline() == {} and "does not fit: Ran out" in printed(refused)
    counted = report(temporaries=None)
    assert (
        counted.fits is None
        and set(counted.roofline()) == {"compute", "memory"}
        and "nothing was compiled" in printed(counted)
    )
    assert report(temporaries=None, arguments=17 * GIB).fits is False
    unknown = report(chip=None)
    assert unknown.fits is None and "memory limit and speed are" in printed(unknown)


def test_the_train_step_as_it_is_compiled_here():
    """Least squares of 4 numbers on 8 devices: 3 products of 8 rows; parameters, both moments and counts of 4 bytes."""
    found = aot.compile_step(recipe(mesh=(4, 2)))
    assert found.mesh == {"data": 4, "fsdp": 1, "model": 2} and found.devices == 8 and found.chip is None
    assert found.model_flops == 3 * 2 * 8 * 4 and found.parameters == 5 and found.fits is None
    # step, seen; kernel and bias with two moments each; a count of Adam's and one of the schedule's
    assert found.state == 4 * (2 + 3 * 5 + found_counts())
    assert found.arguments >= found.state and "data" in {a for c in found.communication for a in c.axes}


def found_counts():
    return sum(x.ndim == 0 for x in jax.tree.leaves(jax.eval_shape(recipe().optimizer.init, {"k": jax.numpy.ones(1)})))


def test_a_known_chip_gets_a_verdict_and_speed(monkeypatch):
    monkeypatch.setattr(aot, "chip_of", lambda kind: CHIPS["v5e"])
    found = aot.compile_step(recipe())
    assert found.fits is True and set(found.roofline()) == {"compute", "memory", "interconnect"}


def test_counting_compiles_nothing(monkeypatch):
    monkeypatch.setattr(aot, "_compile", lambda *_: pytest.fail("compiled"))
    found = aot.compile_step(recipe(mesh=(4, 2)), compiling=False)
    assert found.temporaries is None and found.model_flops == 3 * 2 * 8 * 4
    assert found.arguments == found.state + 2 * 5 * 4  # and two of the batch's 8 rows, of 5 numbers


def test_shardings_are_printed():
    mesh, _ = aot.target(recipe(mesh=(2, 2, 2)), None)
    table = aot.shardings_table(recipe(), mesh)
    console = Console(width=160)
    with console.capture() as said:
        console.print(table)
    assert "params/head/kernel" in said.get() and "fsdp" in said.get() and "whole" in said.get()


def test_mistakes(monkeypatch):
    with pytest.raises(UserError, match="chip 'v99'"):
        aot.target(recipe(), "v99:4x4")
    with pytest.raises(UserError, match="run the command on the GPUs"):
        aot.target(recipe(), "H100:8")
    monkeypatch.setitem(sys.modules, "libtpu", None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[tpu\]'"):
        aot.target(recipe(), "v5e:4x4")
    with pytest.raises(UserError, match="8 does not divide over 3 devices"):
        aot.compile_step(recipe(mesh=(3, 1)))


def test_spec_of_a_state_is_what_the_mesh_says():
    mesh, _ = aot.target(recipe(mesh=(1, 4, 1)), None)
    from fundax.train import abstract_state

    assert abstract_state(recipe(), mesh).params["head"]["kernel"].sharding.spec == P("fsdp", None)
