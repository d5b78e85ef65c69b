"""Pickles of strangers: small ones that ask for all memory or all time are refused before they are loaded."""

import io
import pickle
import random
import time

import pytest

from data_pipelines.files.pickles import ROW, WEIGHTS, check, plain_tuple
from data_pipelines.records import DataError


def shared(depth):
    """A tuple of two references to a tuple of two references ...: few bytes, 2 ** depth values."""
    value = ("a", "b")
    for _ in range(depth):
        value = (value, value)
    return value


HOSTILE = {
    "2^40 values": pickle.dumps(shared(40)),
    "memo index 2^27": b"\x80\x04K\x01r\xff\xff\xff\x07.",
    "memo index 2^31": b"\x80\x04K\x01r\xff\xff\xff\x7f.",
    "deep": b"\x80\x04)" + b"\x85" * 100_000 + b".",
    "deep lists": b"\x80\x04" + b"]" * 100_000 + b"a" * 99_999 + b".",
    "no stop": b"\x80\x04K\x01",
    "nothing to take": b"\x80\x04\x86.",
}


@pytest.mark.parametrize("limits", [ROW, WEIGHTS], ids=["row", "weights"])
@pytest.mark.parametrize("name", HOSTILE)
def test_what_a_pickle_asks_for_is_known_before_it_is_loaded(name, limits):
    start = time.process_time()
    with pytest.raises((DataError, pickle.UnpicklingError), match=r"a pickle|damaged"):
        check(io.BytesIO(HOSTILE[name]), limits)
    assert time.process_time() - start < 2


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_rows_and_checkpoints_are_within_the_limits(protocol):
    row = ("p1", 7, "双眼正常眼底")
    assert plain_tuple(pickle.dumps(row, protocol), "here") == row
    twice = {"lr": 0.1, "betas": (0.9, 0.99)}
    state = {"model": {f"layer.{k}": list(range(5)) for k in range(300)}, "groups": [twice, twice], "set": {1, 2}}
    data = pickle.dumps(state, protocol)
    file = io.BytesIO(data + b"rest")
    check(file, WEIGHTS)
    assert file.read() == b"rest"  # the pickle after this one would be read next


def test_damaged_rows_are_one_clear_error():
    rng, errors = random.Random(0), 0
    whole = pickle.dumps(("p1", 3, "drusen"))
    for _ in range(1000):
        damaged = bytearray(whole)
        for _ in range(rng.randint(1, 3)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        try:
            assert isinstance(plain_tuple(bytes(damaged), "here"), tuple)
        except DataError as error:
            errors += 1
            assert str(error).startswith("here: ")
    assert errors > 300
