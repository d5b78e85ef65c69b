"""Read and write PyTorch files without PyTorch, as dicts, numbers and NumPy arrays.

Both forms of torch.save are read: the zip archive, and the older sequence of pickles that the bytes of the tensors follow.
Nothing else that a pickle names is imported or called, so that a file can run no code. The zip archive is written."""

from __future__ import annotations

import collections
import io
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from fundax.types import UserError

_MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of the older form
_DTYPES = {
    "DoubleStorage": np.float64, "FloatStorage": np.float32, "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16, "LongStorage": np.int64, "IntStorage": np.int32, "ShortStorage": np.int16,
    "CharStorage": np.int8, "ByteStorage": np.uint8, "BoolStorage": np.bool_,
}  # fmt: skip
_LARGEST = 2**31  # bytes of a tensor


class _Kind(NamedTuple):
    """Stands for a type of storage. A pickle could change the state of NumPy's own dtype, which the process shares."""

    dtype: np.dtype


@dataclass
class _Storage:
    """The bytes of one or several tensors: `key` names them in the file; `data` is filled when they are read."""

    key: str
    dtype: np.dtype
    count: int
    data: np.ndarray | None = None


@dataclass(frozen=True)
class _Tensor:
    """A view of a storage, as a pickle describes it."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def array(self) -> np.ndarray:
        """The tensor as a new array. Raises ValueError for a view that reaches beyond the storage."""
        data, size = self.storage.data, int(np.prod(self.shape, dtype=np.int64))
        if data is None or size * self.storage.dtype.itemsize > _LARGEST:
            raise ValueError("a tensor without its bytes, or a very large one")
        last = self.offset + sum((n - 1) * step for n, step in zip(self.shape, self.strides, strict=True))
        if size and not (self.offset >= 0 and min(self.strides, default=0) >= 0 and last < len(data)):
            raise ValueError("a tensor reaches beyond its bytes")
        steps = [step * data.itemsize for step in self.strides]
        return np.lib.stride_tricks.as_strided(data[self.offset :], self.shape, steps, writeable=False).copy()


def read(path: Path) -> Any:
    """The content of a PyTorch file, with NumPy arrays for tensors.

    Raises UserError for a damaged file, and naming what a file holds besides tensors, dicts and numbers.
    """
    storages: dict[str, _Storage] = {}
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                root = next(name for name in archive.namelist() if name.endswith("data.pkl")).removesuffix("data.pkl")
                loaded = _Restricted(io.BytesIO(archive.read(f"{root}data.pkl")), storages).load()
                for one in storages.values():
                    _fill(one, archive.read(f"{root}data/{one.key}"))
        else:
            with path.open("rb") as file:
                loaded = _read_older(file, storages)
        return _plain(loaded)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except Exception as error:  # damaged bytes raise what pickle, zipfile and struct happen to raise
        raise UserError(f"{path}: damaged or not a PyTorch state dict ({type(error).__name__}: {error})") from error


def _read_older(file: Any, storages: dict[str, _Storage]) -> Any:
    if _Restricted(file, {}).load() != _MAGIC:
        raise ValueError("no PyTorch file")
    _Restricted(file, {}).load()  # the version of the protocol
    if not _Restricted(file, {}).load().get("little_endian", True):
        raise ValueError("written by a machine of the other byte order")
    loaded = _Restricted(file, storages).load()
    for key in _Restricted(file, {}).load():
        (count,) = struct.unpack("<q", file.read(8))
        one = storages[str(key)]
        if count != one.count:
            raise ValueError(f"a storage of {count} numbers; expected {one.count}")
        _fill(one, file.read(count * one.dtype.itemsize))
    return loaded


def _fill(storage: _Storage, data: bytes) -> None:
    storage.data = np.frombuffer(data, storage.dtype)
    if len(storage.data) != storage.count:
        raise ValueError("fewer bytes than the tensors have")


class _Restricted(pickle.Unpickler):
    """An unpickler that knows tensors and OrderedDict by name, and nothing else."""

    def __init__(self, file: Any, storages: dict[str, _Storage]) -> None:
        super().__init__(file, encoding="utf-8")
        self._storages = storages

    def find_class(self, module: str, name: str, /) -> Any:
        known: dict[str, Any] = {
            "collections.OrderedDict": collections.OrderedDict,
            "torch._utils._rebuild_tensor_v2": _rebuilt,
            "torch._utils._rebuild_parameter": _parameter,
        }
        if module in ("torch", "torch.storage") and name in _DTYPES:
            return _Kind(np.dtype(_DTYPES[name]))
        if f"{module}.{name}" in known:
            return known[f"{module}.{name}"]
        raise UserError(
            f"refused: it holds {module}.{name}, more than tensors; save model.state_dict() alone, best as .safetensors. With "
            "PyTorch (pip install -e '.[torch]') numbers of NumPy, paths and argparse's Namespace are read, too"
        )

    def persistent_load(self, pid: Any, /) -> _Storage:
        kind, dtype, key, _, count = pid[:5]
        if kind != "storage" or not isinstance(dtype, _Kind) or (len(pid) > 5 and pid[5] is not None):
            raise ValueError(f"an object of the kind {kind!r}")
        return self._storages.setdefault(str(key), _Storage(str(key), dtype.dtype, int(count)))


def _rebuilt(storage: Any, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: Any) -> _Tensor:
    if not isinstance(storage, _Storage):
        raise ValueError("a tensor without a storage")
    return _Tensor(storage, int(offset), tuple(map(int, shape)), tuple(map(int, strides)))


def _parameter(data: Any, *_: Any) -> Any:
    return data


def _plain(value: Any) -> Any:
    """The same with arrays for tensors."""
    if isinstance(value, _Tensor):
        return value.array()
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    convert: Callable[[Any], Any] = lambda items: [_plain(item) for item in items]  # noqa: E731
    return convert(value) if isinstance(value, list | tuple) else value


# ------------------------------------------------------------------------------------------- writing


def write(tree: Mapping[str, Any], path: Path) -> None:
    """Write nested dicts of arrays as torch.save writes tensors. Raises UserError for a dtype that PyTorch does not have."""
    arrays: list[np.ndarray] = []
    content = b"".join((b"\x80\x02", _dict(tree, arrays), b"."))  # protocol 2
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/byteorder", "little")
        for key, array in enumerate(arrays):
            with archive.open(f"archive/data/{key}", "w", force_zip64=True) as member:
                member.write(np.asarray(array, order="C").reshape(-1).view(np.uint8).data)
        archive.writestr("archive/version", "3\n")


def _dict(tree: Mapping[str, Any], arrays: list[np.ndarray]) -> bytes:
    """The opcodes of a dict, whose tensors are added to `arrays`."""
    items = [
        _text(key) + (_dict(value, arrays) if isinstance(value, Mapping) else _tensor(np.asarray(value), arrays))
        for key, value in tree.items()
    ]
    return b"".join((b"}(", *items, b"u"))


def _tensor(array: np.ndarray, arrays: list[np.ndarray]) -> bytes:
    """The opcodes of a call of _rebuild_tensor_v2 for a contiguous tensor."""
    kind = next((name for name, dtype in _DTYPES.items() if np.dtype(dtype) == array.dtype), None)
    if kind is None:
        raise UserError(f"PyTorch has no tensors of {array.dtype}")
    steps = [int(np.prod(array.shape[axis + 1 :], dtype=np.int64)) for axis in range(array.ndim)]
    storage = _tuple(
        _text("storage"), _global("torch", kind), _text(str(len(arrays))), _text("cpu"), _number(array.size)
    )
    arrays.append(array)
    shape, strides = (_tuple(*map(_number, values)) for values in (array.shape, steps))
    hooks = _global("collections", "OrderedDict") + b")R"
    arguments = _tuple(storage + b"Q", _number(0), shape, strides, b"\x89", hooks)
    return _global("torch._utils", "_rebuild_tensor_v2") + arguments + b"R"


def _text(value: str) -> bytes:
    data = value.encode("utf-8")
    return b"X" + struct.pack("<I", len(data)) + data


def _number(value: int) -> bytes:
    data = int(value).to_bytes(8, "little", signed=True)
    return b"\x8a\x08" + data


def _tuple(*items: bytes) -> bytes:
    return b"".join((b"(", *items, b"t"))


def _global(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()
