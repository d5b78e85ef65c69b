"""Read and write files of tensors (safetensors, npz, PyTorch) as flat dicts of names to numpy arrays."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from fundax.interop import pickled
from fundax.runtime.arrays import read_arrays
from fundax.runtime.shapes import Index
from fundax.runtime.workdir import first_line, read_json
from fundax.types import UserError

State = dict[str, np.ndarray]  # a state dict, under the checkpoint's own key names
# File names of weights in a folder, in the order of preference; a folder holds one model.
FILE_NAMES = (
    "heads.safetensors",  # split.py writes the encoders to folders next to it
    "open_clip_model.safetensors",
    "model.safetensors",
    "model.safetensors.index.json",
    "open_clip_pytorch_model.bin",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "ret_clip.pt",
    "flair.pth",
    "keepfit.pth",
    "stablehlo.safetensors",
    "onnx.safetensors",
    "visionfm.pth",
    "retfound.pth",
    "captioner.pth",
    "visionfm_decoder.pth",
)
SUFFIXES = (".safetensors", ".npz", ".pt", ".pth", ".bin")
WRAPPERS = ("state_dict", "model", "model_state_dict")  # training programs put the tensors one level down
SELF_DISTILLED = ("student", "teacher", "ibot_loss")  # DINO, iBOT and VisionFM keep these dicts of tensors
PREFIXES = ("module.", "_orig_mod.")  # left by DistributedDataParallel and torch.compile
_SAFETENSORS = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}


def find_file(path: str | Path) -> Path:
    """The file of weights at `path`: itself, or in a folder the first of FILE_NAMES, or the only file of weights.

    Raises UserError if there is none, and for several files with other names.
    """
    path = existing(path)
    if path.is_file():
        return path
    if not path.is_dir():
        raise UserError(f"{path}: a pipe or device; expected a file of weights or a folder")
    for name in FILE_NAMES:
        if (path / name).is_file():
            return path / name
    others = [one for one in sorted(path.iterdir()) if one.suffix in SUFFIXES and one.is_file()]
    if len(others) == 1:
        return others[0]
    if others:
        raise UserError(f"{path}: several files of weights; give one of {', '.join(one.name for one in others)}")
    raise UserError(f"{path}: the folder has no weights; expected one of {', '.join(FILE_NAMES)}")


def existing(path: str | Path) -> Path:
    """The path. Raises UserError if nothing is there, with the way to download it if it may be a name of the hub."""
    if Path(path).exists():
        return Path(path)
    name = re.sub(r"^(hf-hub|hf):", "", str(path))
    may_be = re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not Path(name).parent.exists()
    hint = (
        f"; a model of the Hugging Face hub is downloaded by: hf download {name} --local-dir FOLDER" if may_be else ""
    )
    raise UserError(f"{path}: no such file or folder{hint}")


def is_there(path: Path) -> bool:
    """Whether a file is there, or an index of its shards."""
    return path.is_file() or path.with_name(f"{path.name}.index.json").is_file()


def folder_of(path: str | Path) -> Path:
    """The folder in which the configuration of the weights at `path` would lie."""
    return Path(path) if Path(path).is_dir() else Path(path).parent


def read_state(path: str | Path) -> State:
    """The tensors of a .safetensors, .npz, .pt, .pth or .bin file, or of a folder that holds one.

    A dict wrapped in "state_dict" is unwrapped and a prefix "module." on every key is dropped; dtypes stay as
    stored. A pretraining by self-distillation keeps "student.", "teacher." and "ibot_loss." before its keys.
    PyTorch files are read without PyTorch, by an unpickler that can run no code (fundax/interop/pickled.py).

    Raises:
        UserError: no such file, unknown suffix, damaged file, or a pickle of more than tensors.
    """
    path = find_file(path)
    if path.name.endswith(".index.json"):
        return _read_shards(path)
    if path.suffix not in SUFFIXES:
        raise UserError(f"{path}: cannot read weights from '{path.suffix}' files; expected {', '.join(SUFFIXES)}")
    if path.suffix == ".safetensors":
        state: Mapping[str, Any] = _read_safetensors(path)
    elif path.suffix == ".npz":
        state = _read_npz(path)
    else:
        state = _tensors(path, pickled.read(path))
    return strip_prefixes(state)


def strip_prefixes(state: Mapping[str, np.ndarray]) -> State:
    """Remove the prefixes that wrappers of a model put before every key."""
    names = list(state)
    for prefix in PREFIXES:
        if names and all(name.startswith(prefix) for name in names):
            return strip_prefixes({name.removeprefix(prefix): state[name] for name in names})
    return dict(state)


def write_safetensors(state: Mapping[str, Any], path: str | Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write arrays to one .safetensors file, marked as PyTorch's, which old readers insist on."""
    from safetensors.numpy import save_file

    # save_file writes the raw buffer whatever the strides: a transposed kernel would come out scrambled.
    # (ascontiguousarray would also turn a scalar into a vector.)
    contiguous = {name: np.asarray(value, order="C") for name, value in state.items()}
    save_file(contiguous, str(path), metadata={"format": "pt", **(metadata or {})})


def write_torch(tree: Mapping[str, Any], path: str | Path) -> None:
    """Write nested dicts of arrays as torch.save writes tensors; torch is not needed."""
    pickled.write(tree, Path(path))


def digests(state: Mapping[str, np.ndarray]) -> dict[str, str]:
    """SHA-256 of each tensor's bytes (row-major, native little-endian), by name."""
    return {name: hashlib.sha256(np.asarray(value, order="C").tobytes()).hexdigest() for name, value in state.items()}


def _read_shards(index: Path) -> State:
    try:
        files = dict.fromkeys(map(str, read_json(index, Index)["weight_map"].values()))
    except UserError as error:
        raise UserError(f"{error}; not an index of shards, expected a JSON object with 'weight_map'") from error
    state: State = {}
    for name in files:
        if Path(name).name != name or Path(name).suffix not in SUFFIXES:
            raise UserError(f"{index}: names the shard {name!r}, which is not a weights file of the same folder")
        state |= read_state(index.parent / name)
    return state


def _read_safetensors(path: Path) -> State:
    from safetensors import SafetensorError, deserialize

    try:
        tensors = deserialize(path.read_bytes())
    except (SafetensorError, OSError, MemoryError) as error:
        raise UserError(f"{path}: damaged or not a safetensors file ({first_line(error)})") from error
    state = {}
    for name, tensor in tensors:
        if tensor["dtype"] not in _SAFETENSORS:
            raise UserError(f"{path}: tensor '{name}' has the unsupported dtype {tensor['dtype']}")
        flat = np.frombuffer(tensor["data"], dtype=_SAFETENSORS[tensor["dtype"]])
        state[name] = flat.reshape(tensor["shape"])
    return state


def _read_npz(path: Path) -> State:
    state = read_arrays(path)
    for name, value in state.items():
        if value.dtype.kind not in "biufV":
            raise UserError(f"{path}: '{name}' is not an array of numbers; expected an .npz file of plain arrays")
    return state


def _tensors(path: Path, loaded: Any) -> State:
    """Unwrap {"state_dict": ...} and check that it holds arrays."""
    loaded = _unwrapped(loaded)
    expected = f"expected names to tensors, possibly under {', '.join(WRAPPERS)}"
    if not isinstance(loaded, Mapping):
        raise UserError(f"{path}: not a state dict but a {type(loaded).__name__}; {expected}")
    for name, value in loaded.items():
        if not isinstance(value, np.ndarray):
            raise UserError(f"{path}: not a state dict; '{name}' is of type {type(value).__name__}; {expected}")
    return {str(name): value for name, value in loaded.items()}


def _unwrapped(loaded: Any) -> Any:
    """The tensors of a training program's file; with self-distillation, the name of the part is a prefix."""
    if not isinstance(loaded, Mapping):
        return loaded
    if parts := [part for part in SELF_DISTILLED if isinstance(loaded.get(part), Mapping)]:
        return {f"{part}.{key}": value for part in parts for key, value in strip_prefixes(loaded[part]).items()}
    return next((loaded[key] for key in WRAPPERS if isinstance(loaded.get(key), Mapping)), loaded)
