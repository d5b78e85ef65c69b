"""LMDB environments: every entry is found, and a file that is cut short or damaged is one clear error."""

import random

import pytest

from data_pipelines.records import DataError
from data_pipelines.sources.lmdb_file import open_environment

lmdb = pytest.importorskip("lmdb", reason="lmdb of the extra `test` is not installed")
SIZES = (0, 1, 10, 500, 2000, 2040, 4080, 9000)


def written(folder, rng, count):
    """An environment of three transactions with additions and removals, and what it holds."""
    held = {}
    with lmdb.open(str(folder), map_size=1 << 26) as environment:
        for _ in range(3):
            with environment.begin(write=True) as transaction:
                for _ in range(count):
                    key = (
                        str(rng.randrange(5000)).encode() if rng.random() < 0.7 else rng.randbytes(rng.randint(1, 300))
                    )
                    held[key] = rng.randbytes(rng.choice(SIZES))
                    transaction.put(key, held[key])
                for key in rng.sample(sorted(held), len(held) // 4):
                    transaction.delete(key)
                    del held[key]
    return held


@pytest.mark.parametrize("count", [0, 1, 40, 900])
def test_every_entry_is_found(tmp_path, count):
    rng = random.Random(count)
    held = written(tmp_path, rng, count)
    environment = open_environment(tmp_path)
    assert environment.entries == len(held)
    assert all(environment.get(key) == value for key, value in held.items())
    others = [rng.randbytes(rng.randint(1, 6)) for _ in range(200)]
    assert [environment.get(key) for key in others] == [held.get(key) for key in others]


def test_a_file_that_is_cut_short_is_an_error_and_not_a_signal(tmp_path):
    held = written(tmp_path, random.Random(0), 100)
    file = tmp_path / "data.mdb"
    whole = file.read_bytes()
    environment = open_environment(tmp_path)
    for keep in (0, 100, 5000, len(whole) // 2, len(whole) - 4096):
        with file.open("r+b") as opened:
            opened.truncate(keep)
        with pytest.raises(DataError, match=r"cut short|not an LMDB"):
            open_environment(tmp_path)
    with pytest.raises(DataError, match="cut short"):  # also where it was cut after it was opened
        _ = [environment.get(key) for key in held]


def test_flipped_bytes_are_values_or_one_clear_error(tmp_path):
    rng = random.Random(1)
    held = written(tmp_path, rng, 30)
    file = tmp_path / "data.mdb"
    whole = file.read_bytes()
    errors = 0
    for _ in range(300):
        damaged = bytearray(whole)
        for _ in range(8):
            page = rng.randrange(len(whole) // 4096)
            damaged[page * 4096 + rng.randrange(rng.choice((24, 160, 4096)))] = rng.randrange(256)
        file.write_bytes(bytes(damaged))
        try:
            environment = open_environment(tmp_path)
            _ = [environment.get(key) for key in held]
        except DataError as error:
            errors += 1
            assert str(tmp_path) in str(error) and "\n" not in str(error)
    assert errors > 50
