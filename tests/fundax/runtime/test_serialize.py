"""Objectives as JSON: equal after the round trip, and nothing outside fundax is ever imported or called."""

import dataclasses
import json
import math
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from fundax import encoders
from fundax.runtime import serialize
from fundax.runtime.serialize import from_json, to_json
from fundax.types import UserError


def round_trip(value):
    return from_json(json.loads(json.dumps(to_json(value), allow_nan=False)))


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        3,
        0.1,
        "文",
        (),
        (1, (2.5, None)),
        [1, [2]],
        {"a": (1,)},
        math.inf,
        -math.inf,
        jnp.bfloat16,
        encoders.quick_gelu,
    ],
    ids=lambda v: getattr(v, "__name__", str(v)),
)
def test_round_trip_of_values(value):
    found = round_trip(value)
    assert found == value
    assert type(found) is type(value)


def test_hash_of_a_dtype_survives():
    assert hash(round_trip(jnp.float32)) == hash(jnp.float32)


def test_numpy_numbers_become_numbers():
    assert to_json(np.float32(0.5)) == 0.5
    assert to_json(np.int64(3)) == 3
    assert math.isnan(round_trip(math.nan))


def test_names_are_written_out():
    assert to_json(encoders.quick_gelu) == {"@function": "encoders.quick_gelu"}
    assert to_json(jnp.bfloat16) == {"@dtype": "bfloat16"}
    assert to_json((1,)) == {"@tuple": [1]}


@dataclasses.dataclass(frozen=True)
class Foreign:
    x: int = 1


@pytest.mark.parametrize(
    "value",
    [
        Foreign(),
        lambda x: x,
        np.zeros(2),
        object(),
        test_names_are_written_out,
        json.dumps,
        {"@x": 1},
        {1: 2},
    ],
    ids=["class outside", "lambda", "array", "object", "function outside", "stdlib", "tag", "number key"],
)
def test_what_has_no_json_form_names_where_it_was(value):
    with pytest.raises(UserError, match=r"objective\.deep\[0\]"):
        to_json({"deep": (value,)})


@pytest.mark.parametrize("tag", ["@", "@function"])
@pytest.mark.parametrize(
    "name",
    [
        *("os:system", "subprocess:Popen", "builtins:eval", "os.system", "fundax.os", "antigravity.x", "antigravity:x"),
        *("encoders.Path", "encoders.jax", "encoders._epy", "encoders.vit", "encoders.ViT.__init__", "encoders.absent"),
        *(
            "runtime.to_json",
            "interop.read_state",
            "encoders..ViT",
            "encoders",
            "encoders.",
            "",
            None,
            3,
            ["os:system"],
        ),
        *("fundax.weights:read_state", "fundax.encoders.vit:os"),
    ],
    ids=str,
)
def test_hostile_names_are_refused(tag, name):
    before = set(sys.modules)
    with pytest.raises(UserError, match=r"is not accepted|has no "):
        from_json({"loss": {tag: name}})
    assert "antigravity" not in set(sys.modules) - before


@pytest.mark.parametrize(
    "value",
    [
        {"@": "encoders.quick_gelu"},  # a function is not called
        {"@function": "encoders.ViT"},
        {"@function": "encoders.quick_gelu", "x": 1},
        {"@tuple": 3},
        {"@dtype": "complexity"},
        {"@dtype": 3},
        {"@float": "1e400"},
        {"@eval": "1"},
        {"@": "objectives.Temperature", "more": 1},
        {"@": "encoders.ViT", "more": 1},
    ],
    ids=str,
)
def test_malformed_json_is_a_clear_error(value):
    with pytest.raises(UserError, match="objective"):
        from_json(value)


def test_deep_nesting_is_a_clear_error():
    deep = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(UserError, match="too deeply"):
        from_json(deep)


def test_nothing_but_public_names_of_the_rooms_matches():
    assert not serialize.NAME.fullmatch("os.system")
    assert not serialize.NAME.fullmatch("fundax.encoders.ViT")
    assert not serialize.NAME.fullmatch("encoders.ViT.x")
    assert serialize.NAME.fullmatch("encoders.ViT")


@pytest.mark.parametrize(("old", "new"), serialize.BEFORE_ROOMS.items(), ids=lambda name: name)
def test_names_of_earlier_versions_resolve(old, new):
    thing = serialize._import(old, "objective")
    assert thing is serialize._import(new, "objective")
    assert thing.__name__ == new.rsplit(".")[-1]
