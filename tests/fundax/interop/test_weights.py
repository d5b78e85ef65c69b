"""Weights in files: every format gives the same arrays; a hostile or damaged file gives one clear message."""

import json
import os
import pickle
import subprocess
import sys
import zipfile

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

from fundax.interop.weights import digests, find_file, read_state, strip_prefixes, write_safetensors
from fundax.types import UserError

STATE = {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "logit_scale": np.float32(2.5).reshape(())}


def same(found, expected=STATE):
    assert set(found) == set(expected)
    for name in expected:
        assert found[name].shape == expected[name].shape
        np.testing.assert_array_equal(found[name], expected[name])


def test_safetensors_round_trip_keeps_scalars_and_transposed_arrays(tmp_path):
    kernel = np.arange(12, dtype=np.float32).reshape(3, 4)
    state = {"transposed": kernel.T, "strided": kernel[:, ::2], "scalar": np.float32(7).reshape(())}
    write_safetensors(state, tmp_path / "x.safetensors")
    same(read_state(tmp_path / "x.safetensors"), state)
    # the peers' reader must see the same bytes: row 1 of the transpose is column 1 of the kernel
    np.testing.assert_array_equal(load_file(tmp_path / "x.safetensors")["transposed"][1], [1, 5, 9])


def test_bfloat16_is_read(tmp_path):
    state = {"w": np.asarray([1.5, -2.0], ml_dtypes.bfloat16)}
    write_safetensors(state, tmp_path / "x.safetensors")
    found = read_state(tmp_path / "x.safetensors")["w"]
    assert found.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(found.astype(np.float32), [1.5, -2.0])


def test_npz(tmp_path):
    np.savez(tmp_path / "x.npz", **STATE)
    same(read_state(tmp_path / "x.npz"))
    np.savez(tmp_path / "objects.npz", x=np.asarray([{"a": 1}], dtype=object))
    with pytest.raises(UserError, match=r"objects\.npz: .*plain arrays"):
        read_state(tmp_path / "objects.npz")


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module.", "module._orig_mod."])
def test_torch_files_wrapped_and_prefixed(tmp_path, wrapper, prefix):
    torch = pytest.importorskip("torch", reason="reading PyTorch files needs torch")
    state = {prefix + name: torch.from_numpy(np.array(value)) for name, value in STATE.items()}
    torch.save({"epoch": 3, wrapper: state} if wrapper else state, tmp_path / "x.pt")
    same(read_state(tmp_path / "x.pt"))


def test_torch_bfloat16(tmp_path):
    torch = pytest.importorskip("torch", reason="reading PyTorch files needs torch")
    torch.save({"w": torch.tensor([[1.5, -2.0], [0.25, 4.0]]).bfloat16().T}, tmp_path / "x.bin")
    found = read_state(tmp_path / "x.bin")["w"]
    np.testing.assert_array_equal(found.astype(np.float32), [[1.5, 0.25], [-2.0, 4.0]])


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("how", ["pickle", "torch"])
def test_a_hostile_pickle_is_refused_and_does_not_run(tmp_path, how):
    torch = pytest.importorskip("torch", reason="reading PyTorch files needs torch")
    payload = {"w": Hostile(str(tmp_path / "ran"))}
    if how == "pickle":
        (tmp_path / "x.pt").write_bytes(pickle.dumps(payload, protocol=2))
    else:
        torch.save(payload, tmp_path / "x.pt")
    with pytest.raises(UserError, match=r"x\.pt: refused.*run code"):
        read_state(tmp_path / "x.pt")
    assert not (tmp_path / "ran").exists()


def test_torch_file_of_something_else(tmp_path):
    torch = pytest.importorskip("torch", reason="reading PyTorch files needs torch")
    torch.save({"epoch": 3, "w": torch.zeros(2)}, tmp_path / "x.pt")
    with pytest.raises(UserError, match=r"x\.pt: not a state dict; 'epoch' is of type int"):
        read_state(tmp_path / "x.pt")


@pytest.mark.parametrize("suffix", ["safetensors", "npz", "pt"])
def test_truncated_and_empty_files(tmp_path, suffix):
    path = tmp_path / f"x.{suffix}"
    if suffix == "safetensors":
        write_safetensors(STATE, path)
    elif suffix == "npz":
        np.savez(path, **STATE)
    else:
        torch = pytest.importorskip("torch", reason="reading PyTorch files needs torch")
        torch.save({"w": torch.arange(1000)}, path)
    whole = path.read_bytes()
    for cut in (whole[: len(whole) // 2], whole[:3], b""):
        path.write_bytes(cut)
        with pytest.raises(UserError, match=rf"x\.{suffix}: .*(damaged|not a)"):
            read_state(path)


def test_missing_torch_names_the_extra(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("x/data.pkl", b"")
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from fundax.interop.weights import read_state\n"
        "try: read_state(sys.argv[1])\n"
        "except ValueError as error: print(type(error).__name__, error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "x.pt")], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("UserError")
    assert "pip install 'fundax[torch]'" in done.stdout


def test_folders_and_shards(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read_state(tmp_path / "absent")
    with pytest.raises(UserError, match=r"no weights; expected one of open_clip_model\.safetensors"):
        find_file(tmp_path)
    (tmp_path / "x.h5").write_bytes(b"1")
    with pytest.raises(UserError, match=r"'\.h5' files; expected \.safetensors"):
        read_state(tmp_path / "x.h5")
    names = list(STATE)
    for i, name in enumerate(names):
        write_safetensors({name: STATE[name]}, tmp_path / f"model-{i}.safetensors")
    index = {"weight_map": {name: f"model-{i}.safetensors" for i, name in enumerate(names)}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    same(read_state(tmp_path))
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"w": "../../secret.safetensors"}}')
    with pytest.raises(UserError, match="not a file of the same folder"):
        read_state(tmp_path)


def test_strip_prefixes_only_where_every_key_has_it():
    assert set(strip_prefixes({"module.a": 1, "b": 2})) == {"module.a", "b"}
    assert set(strip_prefixes({"module.a": 1, "module.b": 2})) == {"a", "b"}


def test_digests_do_not_depend_on_strides():
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert digests({"x": x.T})["x"] == digests({"x": x.T.copy()})["x"] != digests({"x": x})["x"]
    # printf "\\x00\\x00\\x80\\x3f" | sha256sum: 1.0 in IEEE 754, little-endian
    assert digests({"one": np.float32(1)})["one"].startswith("e00e5eb9")
