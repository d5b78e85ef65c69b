"""Tables of names: every layout is the inverse of itself, and says by hand-checked numbers what lies where."""

import numpy as np
import pytest

from fundax.encoders.clip_text import TextTransformer
from fundax.encoders.vit import ViT
from fundax.interop import keymap
from fundax.interop.keymap import Row
from fundax.objectives.clip import CLIP
from fundax.types import UserError


def count(*shape):
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


@pytest.mark.parametrize(
    "name, ours, theirs",
    [
        ("SAME", count(2, 3), [(2, 3)]),
        ("LINEAR", count(2, 3), [(3, 2)]),
        ("CONV", count(2, 4, 3, 5), [(5, 3, 2, 4)]),
        ("PACKED_KERNEL", count(4, 3, 4), [(12, 4)]),
        ("PACKED_BIAS", count(3, 4), [(12,)]),
        ("SPLIT_KERNEL", count(4, 3, 4), [(4, 4)] * 3),
        ("SPLIT_BIAS", count(3, 4), [(4,)] * 3),
    ],
)
def test_read_undoes_write(name, ours, theirs):
    found = getattr(keymap, name)
    written = found.write(ours)
    assert [tensor.shape for tensor in written] == theirs
    np.testing.assert_array_equal(found.read(written), ours)


def test_packed_rows_are_queries_then_keys_then_values():
    """The 2 -> 2 projections q = 1, k = 2, v = 3 times the identity, packed as torch's in_proj_weight."""
    packed = np.concatenate([np.eye(2), 2 * np.eye(2), 3 * np.eye(2)])
    kernel = keymap.PACKED_KERNEL.read([packed])
    np.testing.assert_array_equal(np.einsum("d,dke->ke", [5.0, 7.0], kernel), [[5, 7], [10, 14], [15, 21]])
    np.testing.assert_array_equal(keymap.SPLIT_KERNEL.read([packed[:2], packed[2:4], packed[4:]]), kernel)


ROWS = [Row("a/kernel", ("w",), keymap.LINEAR), Row("s", ("t",), keymap.SAME)]
SHAPES = {"a/kernel": (2, 3), "s": ()}
STATE = {"w": count(3, 2), "t": np.float32(4).reshape(())}


def test_read_and_write_a_table():
    params = keymap.read(ROWS, STATE | {"x.buffer": np.zeros(1)}, SHAPES, "x", ignore=(".buffer",))
    assert params["a"]["kernel"][1, 2] == STATE["w"][2, 1]
    assert params["a"]["kernel"].flags.c_contiguous
    back = keymap.write(ROWS, params, "x")
    assert all((back[key] == STATE[key]).all() and back[key].flags.c_contiguous for key in STATE)


def test_messages():
    with pytest.raises(UserError, match=r"file: the keys do not fit the model: missing w; unknown u, v"):
        keymap.read(ROWS, {"t": STATE["t"], "u": 1, "v": 2}, SHAPES, "file")
    with pytest.raises(UserError, match=r"file: 'w' has the shape \(2, 3\), expected \(3, 2\)"):
        keymap.read(ROWS, STATE | {"w": count(2, 3)}, SHAPES, "file")
    with pytest.raises(UserError, match="leaves parameters unset: more"):
        keymap.read(ROWS, STATE, SHAPES | {"more": (1,)}, "file")
    many = {f"k{i:02d}": np.zeros(1) for i in range(25)}
    with pytest.raises(UserError, match=r"unknown k00, .*k19, and 5 more"):
        keymap.read(ROWS, STATE | many, SHAPES, "file")


def test_shapes_are_those_of_plain_layers_whether_scanned_or_not():
    text = TextTransformer(11, 5, 8, 2, 2)
    plain = keymap.shapes_of(CLIP(ViT(8, 4, 8, 2, 2), text, embed=6))
    assert plain["image/block_1/attention/qkv/kernel"] == (8, 3, 8)
    assert plain["log_scale"] == ()
    assert keymap.shapes_of(CLIP(ViT(8, 4, 8, 2, 2, scan=True), text, embed=6)) == plain
