"""Read and write PyTorch files without PyTorch, as dicts, numbers, texts and NumPy arrays.

Both forms of torch.save are read: the zip archive, and the older sequence of pickles that the bytes of the tensors follow.
What a pickle asks for is counted before it is loaded (data_pipelines/files/pickles.py). Nothing that a pickle names is imported,
and only the functions below are called, so that a file can run no code. The zip archive is also written."""

from __future__ import annotations

import argparse
import collections
import io
import math
import os
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

import ml_dtypes
import numpy as np

from data_pipelines.files import pickles
from data_pipelines.records import DataError
from fundax.runtime.arrays import check_archive
from fundax.types import UserError

_MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of the older form
_DTYPES = {
    "DoubleStorage": np.float64, "FloatStorage": np.float32, "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16, "LongStorage": np.int64, "IntStorage": np.int32, "ShortStorage": np.int16,
    "CharStorage": np.int8, "ByteStorage": np.uint8, "BoolStorage": np.bool_,
}  # fmt: skip
_DIMENSIONS = 64  # the most that NumPy has
LARGEST_VIEW = 2**28  # bytes of all tensors that repeat what is stored, such as position tables with a batch axis


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

    @property
    def size(self) -> int:
        """Number of bytes."""
        return self.count * self.dtype.itemsize


@dataclass(frozen=True)
class _Tensor:
    """A view of a storage, as a pickle describes it."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of bytes."""
        return math.prod(self.shape) * self.storage.dtype.itemsize

    @property
    def contiguous(self) -> bool:
        """Whether its numbers follow each other in the storage, so that they need not be copied."""
        inner = [math.prod(self.shape[k + 1 :]) for k in range(len(self.shape))]
        return all(n == 1 or have == want for n, have, want in zip(self.shape, self.strides, inner, strict=True))

    def array(self) -> np.ndarray:
        """The tensor as an array. Raises ValueError for a view that reaches beyond the storage."""
        data = self.storage.data
        if data is None or min(self.shape, default=0) < 0:
            raise ValueError("a tensor without its bytes, or of a negative size")
        last = self.offset + sum((n - 1) * step for n, step in zip(self.shape, self.strides, strict=True))
        if self.size and not (self.offset >= 0 and min(self.strides, default=0) >= 0 and last < len(data)):
            raise ValueError("a tensor reaches beyond its bytes")
        steps = [step * data.itemsize for step in self.strides]
        return np.ascontiguousarray(np.lib.stride_tricks.as_strided(data[self.offset :], self.shape, steps)).reshape(
            self.shape
        )


def read(path: str | Path) -> Any:
    """The content of a PyTorch file, with NumPy arrays for tensors.

    Numbers of NumPy, paths, defaultdicts and argparse's Namespaces, which training programs store with the weights, are
    read as plain values.

    Raises UserError for a damaged file, for one that asks for far more memory than its size, and for one that holds
    anything else.
    """
    path, tensors = Path(path), list[_Tensor]()
    try:
        with path.open("rb") as file:
            loaded = _read_archive(path, tensors) if file.read(4) == b"PK\x03\x04" else _read_older(file, tensors)
        _check_views(tensors)
        return _plain(loaded)
    except DataError as error:
        raise UserError(f"{path}: refused: {error}") from error
    except UserError as error:
        raise UserError(str(error) if str(error).startswith(str(path)) else f"{path}: {error}") from None
    except pickle.UnpicklingError as error:
        raise UserError(f"{path}: damaged, or not a file of tensors ({error})") from error
    except Exception as error:  # damaged bytes raise what pickle, zipfile and struct happen to raise
        raise UserError(f"{path}: damaged or not a PyTorch state dict ({type(error).__name__}: {error})") from error


def _read_archive(path: Path, tensors: list[_Tensor]) -> Any:
    storages: dict[str, _Storage] = {}
    with zipfile.ZipFile(path) as archive:
        check_archive(archive, path.stat().st_size)
        root = next(name for name in archive.namelist() if name.endswith("data.pkl")).removesuffix("data.pkl")
        loaded = _loaded(io.BytesIO(archive.read(f"{root}data.pkl")), storages, tensors)
        for one in storages.values():
            with archive.open(f"{root}data/{one.key}") as member:
                _fill(one, member, archive.getinfo(member.name).file_size)
    return loaded


def _read_older(file: IO[bytes], tensors: list[_Tensor]) -> Any:
    file.seek(0)
    storages: dict[str, _Storage] = {}
    if _loaded(file, {}, []) != _MAGIC:
        raise pickle.UnpicklingError("a bare pickle")
    _loaded(file, {}, [])  # the version of the protocol
    if not _loaded(file, {}, []).get("little_endian", True):
        raise ValueError("written by a machine of the other byte order")
    loaded = _loaded(file, storages, tensors)
    for key in _loaded(file, {}, []):
        (count,) = struct.unpack("<q", file.read(8))
        one = storages[str(key)]
        if count != one.count:
            raise ValueError(f"a storage of {count} numbers; expected {one.count}")
        _fill(one, file, os.fstat(file.fileno()).st_size)
    return loaded


def _check_views(tensors: Sequence[_Tensor]) -> None:
    """Refuse a file whose tensors are far larger than the bytes that it stores."""
    copied = sum(one.size for one in tensors if not one.contiguous)
    stored = sum(one.size for one in {id(one.storage): one.storage for one in tensors}.values())
    if copied > stored + LARGEST_VIEW:
        most = max(tensors, key=lambda one: one.size)
        raise UserError(f"refused: a tensor is a view of {most.size:,} bytes on {most.storage.size:,} stored ones")


def _loaded(file: IO[bytes], storages: dict[str, _Storage], tensors: list[_Tensor]) -> Any:
    """Check a pickle, and load it."""
    start = file.tell()
    pickles.check(file, pickles.WEIGHTS)
    file.seek(start)
    return _Restricted(file, storages, tensors).load()


def _fill(storage: _Storage, file: IO[bytes], most: int) -> None:
    data = file.read(storage.size) if 0 <= storage.size <= most else b""
    if len(data) != storage.size:
        raise ValueError("fewer bytes than the tensors have")
    storage.data = np.frombuffer(data, storage.dtype)


class _Restricted(pickle.Unpickler):
    """An unpickler that knows tensors, plain values and dicts by name, and nothing else."""

    def __init__(self, file: IO[bytes], storages: dict[str, _Storage], tensors: list[_Tensor]) -> None:
        super().__init__(file, encoding="utf-8")
        self._storages, self._tensors = storages, tensors

    def find_class(self, module: str, name: str, /) -> Any:
        full = f"{module}.{name}".replace("__builtin__.", "builtins.")  # as Python 2 and protocol 2 call it
        if module in ("torch", "torch.storage") and name in _DTYPES:
            return _Kind(np.dtype(_DTYPES[name]))
        if full in ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor"):
            return self._tensor
        if full not in _KNOWN:
            raise UserError(
                f"refused: it holds {full}, which could run code when read; save model.state_dict() alone, best as .safetensors"
            )
        return _KNOWN[full]

    def persistent_load(self, pid: Any, /) -> _Storage:
        kind, dtype, key, _, count = pid[:5]
        if kind != "storage" or not isinstance(dtype, _Kind) or (len(pid) > 5 and pid[5] is not None):
            raise ValueError(f"an object of the kind {kind!r}")
        return self._storages.setdefault(str(key), _Storage(str(key), dtype.dtype, int(count)))

    def _tensor(self, storage: Any, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: Any) -> _Tensor:
        if not isinstance(storage, _Storage) or len(shape) > _DIMENSIONS:
            raise ValueError(f"a tensor without a storage, or of more than {_DIMENSIONS} dimensions")
        self._tensors.append(_Tensor(storage, int(offset), tuple(map(int, shape)), tuple(map(int, strides))))
        return self._tensors[-1]


class _NumberType:
    """Stands for numpy.dtype. NumPy's own would let a file change the types of the whole process."""

    def __init__(self, name: str, *_: Any) -> None:
        self.dtype = np.dtype(str(name))

    def __setstate__(self, state: Any) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])


def _scalar(kind: _NumberType, data: bytes) -> Any:
    return np.frombuffer(data, kind.dtype)[0].item()


def _first(value: Any = None, *_: Any) -> Any:
    """Stands for what only wraps its first argument: a parameter, a size, a device, a set."""
    return value


def _mapping(*_: Any) -> dict[Any, Any]:
    """Stands for a defaultdict, whose factory is left out."""
    return {}


def _encoded(text: str, encoding: str = "latin1") -> bytes:
    """Stands for _codecs.encode, by which protocol 2 writes bytes."""
    return text.encode("utf-8" if encoding in ("utf-8", "utf8") else "latin1")


_PATHS = ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath", "Path")
_KNOWN: dict[str, Any] = {
    "collections.OrderedDict": collections.OrderedDict, "collections.defaultdict": _mapping, "_codecs.encode": _encoded,
    "torch._utils._rebuild_parameter": _first, "torch.Size": _first, "torch.device": _first, "numpy.dtype": _NumberType,
    "argparse.Namespace": argparse.Namespace,
    **{f"numpy.{core}.multiarray.scalar": _scalar for core in ("core", "_core")},
    **{f"{module}.{kind}": PurePosixPath for module in ("pathlib", "pathlib._local") for kind in _PATHS},
    **{f"builtins.{kind}": _first for kind in ("list", "dict", "int", "long", "float", "str", "unicode", "tuple", "bool", "set")},
    **{f"torch.{kind}": f"torch.{kind}" for kind in ("float32", "float16", "bfloat16", "float64", "int64")},
}  # fmt: skip


def _plain(value: Any) -> Any:
    """Replace tensors by arrays in nested dicts and lists."""
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
