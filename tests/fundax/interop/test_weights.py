"""Weights in files: every format gives the same arrays; a hostile or damaged file gives one clear message."""

import argparse
import collections
import json
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path, PurePosixPath, PureWindowsPath

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

from fundax.interop import backbone, load, pickled, tokenizer
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
    # the original implementations' reader must see the same bytes: row 1 of the transpose is column 1 of the kernel
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


def test_a_damaged_file_of_pytorch_is_named_without_torch(tmp_path):
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
    assert done.stdout.startswith(f"UserError {tmp_path / 'x.pt'}: damaged")


def test_folders_and_shards(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read_state(tmp_path / "absent")
    with pytest.raises(
        UserError, match=r"no weights; expected one of heads\.safetensors, open_clip_model\.safetensors"
    ):
        find_file(tmp_path)
    (tmp_path / "eyes.pth").touch()
    assert find_file(tmp_path).name == "eyes.pth"  # the only file of weights may have any name
    (tmp_path / "other.pth").touch()
    with pytest.raises(UserError, match=r"several files of weights; give one of eyes\.pth, other\.pth"):
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
    with pytest.raises(UserError, match="not a weights file of the same folder"):
        read_state(tmp_path)


def test_strip_prefixes_only_where_every_key_has_it():
    assert set(strip_prefixes({"module.a": 1, "b": 2})) == {"module.a", "b"}
    assert set(strip_prefixes({"module.a": 1, "module.b": 2})) == {"a", "b"}


def test_digests_do_not_depend_on_strides():
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert digests({"x": x.T})["x"] == digests({"x": x.T.copy()})["x"] != digests({"x": x})["x"]
    # printf "\\x00\\x00\\x80\\x3f" | sha256sum: 1.0 in IEEE 754, little-endian
    assert digests({"one": np.float32(1)})["one"].startswith("e00e5eb9")


def test_plain_values_in_a_file_of_weights_are_read(tmp_path):
    torch = pytest.importorskip("torch", reason="reading PyTorch files needs torch")
    counts = collections.defaultdict(list, {"a": [1, 2]})
    plain = {
        "epoch": np.int64(3), "best": np.float64(0.5), "rate": np.float32(1e-4), "done": np.bool_(True), "name": np.str_("a"),
        "big": np.dtype(">i4").type(7), "log": Path("runs/a"), "root": PurePosixPath("/x"), "there": PureWindowsPath("c:/x"),
        "counts": counts, "empty": collections.defaultdict(int), "args": argparse.Namespace(lr=np.float64(1.0)),
        "ordered": collections.OrderedDict(a=1),
    }  # fmt: skip
    for k, zipped in enumerate((True, False)):
        path = tmp_path / f"{k}.pth"
        torch.save({"model": {"w": torch.ones(2)}, **plain}, path, _use_new_zipfile_serialization=zipped)
        np.testing.assert_array_equal(read_state(path)["w"], [1, 1])
    loaded = pickled.read(tmp_path / "0.pth")
    assert (loaded["epoch"], loaded["best"], loaded["done"], loaded["name"]) == (3, 0.5, True, "a")
    assert loaded["counts"] == {"a": [1, 2]} and str(loaded["log"]) == "runs/a" and loaded["args"].lr == 1.0


class NumberType:
    """Pickles as numpy.dtype("f8") whose state a file sets: NumPy's own would change the process's type."""

    def __reduce__(self):
        return np.dtype, ("f8",), (3, ">", None, None, None, -1, -1, 0)


def test_a_file_cannot_change_the_types_of_the_process(tmp_path):
    torch = pytest.importorskip("torch", reason="reading PyTorch files needs torch")
    torch.save({"model": {"w": torch.ones(2)}, "kind": NumberType()}, tmp_path / "x.pth")
    read_state(tmp_path / "x.pth")
    assert np.dtype("f8").isnative


def test_what_a_file_holds_besides_is_named(tmp_path):
    torch = pytest.importorskip("torch", reason="reading PyTorch files needs torch")
    torch.save({"model": {"w": torch.ones(2)}, "rng": np.random.default_rng(0)}, tmp_path / "x.pth")
    with pytest.raises(UserError, match=r"it holds numpy\.random[\w.]+, which could run code"):
        read_state(tmp_path / "x.pth")


def unusual(torch):
    small = torch.ones(4)
    return {
        "a view of 10,000,000,000 bytes on 4 stored ones": torch.zeros(1).expand(50_000, 50_000),
        "sparse": torch.eye(3).to_sparse(),
        "meta": torch.ones(2, device="meta"),
        "float8_e4m3fn": small.to(torch.float8_e4m3fn),
        "quantized": torch.quantize_per_tensor(small, 0.1, 0, torch.qint8),
    }


@pytest.mark.filterwarnings("ignore")  # torch's, of quantized and sparse tensors
@pytest.mark.parametrize(
    "words", ["a view of 10,000,000,000 bytes on 4 stored ones", "sparse", "meta", "float8_e4m3fn", "quantized"]
)
def test_tensors_that_are_no_arrays_are_named(tmp_path, words):
    torch = pytest.importorskip("torch", reason="reading PyTorch files needs torch")
    torch.save({"model": {"w": unusual(torch)[words]}}, tmp_path / "x.pth")
    with pytest.raises(UserError, match=rf"x\.pth: tensor 'w' .*{words}|x\.pth: (refused|damaged).*"):
        read_state(tmp_path / "x.pth")


def test_parameters_views_and_repeated_tables_are_read(tmp_path):
    torch = pytest.importorskip("torch", reason="reading PyTorch files needs torch")
    kept = torch.nn.Parameter(torch.arange(6.0).reshape(2, 3))
    table = torch.arange(3).expand(4, -1)
    for inner in ({"w": kept, "ids": table}, {"backbone.w": kept.T, "backbone.ids": table}):
        torch.save({"teacher": inner}, tmp_path / "x.pth")
        found = read_state(tmp_path / "x.pth")
        assert sorted(value.shape for value in found.values()) in ([(2, 3), (4, 3)], [(3, 2), (4, 3)])


@pytest.mark.parametrize("suffix", ["safetensors", "npz", "pt"])
def test_flipped_bytes_are_one_line(tmp_path, suffix):
    path = tmp_path / f"x.{suffix}"
    if suffix == "pt":
        torch = pytest.importorskip("torch", reason="reading PyTorch files needs torch")
        torch.save({"w": torch.arange(40), "epoch": np.int64(3)}, path)
    else:
        write_safetensors(STATE, path) if suffix == "safetensors" else np.savez_compressed(path, **STATE)
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    for _ in range(150):
        bytes_ = bytearray(whole)
        for at in rng.integers(len(whole), size=3):
            bytes_[at] = rng.integers(256)
        path.write_bytes(bytes(bytes_))
        try:
            read_state(path)
        except UserError as error:
            assert f"x.{suffix}" in str(error)


@pytest.mark.parametrize("name", ["..", "../a.safetensors", "x.safetensors.index.json", 5, "folder"])
def test_an_index_names_weights_of_its_own_folder(tmp_path, name):
    (tmp_path / "folder").mkdir()
    write_safetensors(STATE, tmp_path / "model.safetensors")
    index = tmp_path / "folder" / "x.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"w": name}}))
    with pytest.raises(UserError, match="not a weights file of the same folder"):
        read_state(index)


def test_a_member_of_an_archive_that_is_no_array(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("notes.txt", b"words")
    with pytest.raises(UserError, match=r"'notes\.txt' is not an array of numbers"):
        read_state(tmp_path / "x.npz")


@pytest.mark.parametrize("name", ["apple/DFN5B-CLIP-ViT-H-14-378", "hf-hub:laion/CLIP-ViT-H-14"])
def test_a_name_of_the_hub_is_not_a_path(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    wanted = rf"no such file or folder; a model .* hf download {name.removeprefix('hf-hub:')} --local-dir FOLDER"
    for read in (load, tokenizer, backbone):
        with pytest.raises(UserError, match=wanted):
            read(name)
    (tmp_path / "runs").mkdir()
    with pytest.raises(UserError, match=r"runs/a: no such file or folder$"):
        load("runs/a")
