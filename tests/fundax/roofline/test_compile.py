"""What compiling says of a step, by hand: memory, roofline, verdicts. No TPU and no libtpu are needed here."""

import sys

import jax
import pytest
from jax.sharding import PartitionSpec as P
from rich.console import Console
from tiny_objective import recipe

from fundax.roofline import compile as aot
from fundax.roofline.collectives import Collective
from fundax.runtime.chips import CHIPS, GIB
from fundax.types import UserError


def report(**fields):
    given = {
        "topology": "v5e:2x2", "chip": CHIPS["v5e"], "mesh": {"data": 4, "fsdp": 1, "model": 1}, "batch": 8, "images": 16,
        "parameters": 10, "trained": 10, "state": 2 * GIB, "arguments": 3 * GIB, "temporaries": 4 * GIB, "communication": (),
        "model_flops": int(4 * 197e12), "done_flops": int(6 * 197e12), "moved": 0, "seconds_to_compile": 1.0,
    }  # fmt: skip
    return aot.CompiledStep(**(given | fields))


def printed(report):
    console = Console(width=200)
    with console.capture() as printed_text:
        console.print(aot.tables(report))
    return printed_text.get()


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
    with console.capture() as printed_text:
        console.print(table)
    assert "params/head/kernel" in printed_text.get() and "fsdp" in printed_text.get() and "whole" in printed_text.get()


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
    from fundax.train.state import abstract_state

    assert abstract_state(recipe(), mesh).params["head"]["kernel"].sharding.spec == P("fsdp", None)


def test_ideal_bytes_by_hand():
    rows = {"split": jax.ShapeDtypeStruct((8, 4), "float32"), "whole": jax.ShapeDtypeStruct((4,), "float32")}

    def ideal(shape, spec):
        mesh, _ = aot.target(recipe(mesh=shape), None)
        specs = {"split": spec, "whole": P()}
        return aot.ideal_bytes(
            {k: x.update(sharding=jax.sharding.NamedSharding(mesh, specs[k])) for k, x in rows.items()}, mesh
        )

    assert ideal((8, 1, 1), P()) == 2 * 7 / 8 * (8 * 4 * 4 + 16)  # one all-reduce of all gradients
    assert ideal((1, 8, 1), P("fsdp", None)) == 3 * 7 * (4 * 4) + 2 * 7 / 8 * 16  # two gathers, one scatter
    assert ideal((2, 4, 1), P("fsdp", None)) == 3 * 3 * 32 + 2 / 2 * 32 + 2 * 7 / 8 * 16


def test_more_than_twice_the_ideal_is_a_warning():
    sent = (Collective("all-reduce", ("data",), 1, 5 * 2**20, 4),)
    assert "WARNING" not in printed(report(communication=sent, ideal=3 * 2**20))
    printed_text = " ".join(printed(report(communication=sent, ideal=2 * 2**20)).split())
    assert "Sent per device: 5.0 MiB; at best 2.0 MiB. WARNING: more than twice the best" in printed_text
    many = report(communication=sent, ideal=2**20, mesh={"data": 2, "fsdp": 1, "model": 2})
    assert "WARNING" not in printed(many)


def test_search_ranks_what_fits_and_compiles_the_promising_ones_only(monkeypatch):
    from fundax.roofline import search as searching

    compiled = []

    def step(given, topology, compiling=True):
        mesh, remat = given
        if compiling:
            compiled.append((mesh, remat))
        data, fsdp, model = map(int, mesh.split(","))
        fits = fsdp == 4 or remat == "full"
        return report(
            mesh={"data": data, "fsdp": fsdp, "model": model}, done_flops=int((6 + (remat == "full")) * 197e12),
            temporaries=(4 if fits else 40) * GIB if compiling else None, ideal=model * 2**30,
        )  # fmt: skip

    def recipe_of(mesh, remat):
        if remat == "dots":
            raise UserError("no such choice")
        return Given((mesh, remat))

    class Given(tuple):
        accumulate = 2

    monkeypatch.setattr(searching, "target", lambda given, topology: (type("Mesh", (), {"size": 4}), CHIPS["v5e"]))
    monkeypatch.setattr(searching, "compile_step", step)
    found = searching.search(recipe_of, "v5e:2x2", 3)
    assert [(one.mesh, one.remat) for one in found] == [("1,4,1", "none"), ("1,4,1", "full"), ("2,2,1", "full")]
    assert ("4,1,1", "none") in compiled and len(compiled) < 12  # of six meshes with two choices each
    assert found[0].largest == 8 * int((0.95 * 16 - 3) / 4)  # a multiple of 4 rows x 2 micro-batches
    assert set(searching.meshes_of(4)) == {"4,1,1", "2,2,1", "1,4,1", "2,1,2", "1,2,2", "1,1,4"}
    console = Console(width=160)
    with console.capture() as printed_text:
        console.print(searching.search_table(found, "v5e:2x2"))
    assert "1,4,1" in printed_text.get() and "largest --batch" in printed_text.get()
