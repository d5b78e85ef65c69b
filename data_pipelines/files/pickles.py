"""Load untrusted pickles safely: check their size, then refuse to import or call anything.

A pickle is a program. Refusing all imports prevents it from running code, but a few bytes can still request gigabytes of
memory (a memo index of 2^31) or an endless computation (a tuple of two references to a tuple of two references ...).
`check` reads the instructions without executing them.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from dataclasses import dataclass
from typing import IO, Any

from data_pipelines.records import DataError

_MARK = pickletools.markobject
_PUT = ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE")
_GET = ("GET", "BINGET", "LONG_BINGET")
_IN_PLACE = (
    "APPEND",
    "APPENDS",
    "SETITEM",
    "SETITEMS",
    "ADDITEMS",
    "BUILD",
)  # instructions that change a container on the stack
_PLAIN = "only a tuple of str, bytes and int"


@dataclass(frozen=True)
class Limits:
    """The maximum size of a pickle.

    Args:
        opcodes: number of instructions.
        depth: nesting depth of values.
        values: number of values; a value with two references counts twice.
    """

    opcodes: int
    depth: int
    values: int


ROW = Limits(opcodes=100, depth=4, values=100)  # for an LMDB entry, a tuple of three values
WEIGHTS = Limits(opcodes=20_000_000, depth=200, values=100_000_000)  # for a checkpoint


def check(file: IO[bytes], limits: Limits) -> None:
    """Read one pickle from a file, up to the end of the pickle.

    Raises DataError if it exceeds the limits, and pickle.UnpicklingError if its instructions are broken.
    """
    stack: list[tuple[int, int] | None] = []  # (values, depth) of each value on the stack; None is a mark
    memo: dict[int, tuple[int, int]] = {}
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
            if count >= limits.opcodes:
                raise DataError(f"a pickle of more than {limits.opcodes} instructions")
            number: Any = argument
            if opcode.name in _PUT:
                index = len(memo) if opcode.name == "MEMOIZE" else number
                if index > limits.opcodes:
                    raise DataError(f"a pickle that stores a value under the number {index}")
                memo[index] = stack[-1] or (1, 1)
            elif opcode.name in _GET:
                stack.append(memo[number])
            elif opcode.name == "DUP":
                stack.append(stack[-1])
            else:
                _step(opcode, stack)
            if stack and (top := stack[-1]) and (top[0] > limits.values or top[1] > limits.depth):
                raise DataError(
                    f"a pickle whose values are nested more than {limits.depth} deep or more than {limits.values}"
                )
    except DataError:
        raise
    except (ValueError, LookupError, TypeError, OverflowError, EOFError, StopIteration) as error:
        raise pickle.UnpicklingError(f"damaged: {error}") from None


def _step(opcode: Any, stack: list[tuple[int, int] | None]) -> None:
    """Apply the effect of an instruction to the stack: remove its inputs and add its outputs."""
    before, after = opcode.stack_before, opcode.stack_after
    at = len(stack) - len(before)
    if _MARK in before:  # a container below the mark is taken as well
        at = next(k for k in reversed(range(len(stack))) if stack[k] is None) - before.index(_MARK)
    if at < 0:
        raise ValueError("an instruction takes more than is there")
    taken = [entry for entry in stack[at:] if entry is not None]
    del stack[at:]
    if opcode.name == "MARK":
        stack.append(None)
        return
    size = 1 + sum(values for values, _ in taken)
    depth = 1 + max((deep for _, deep in taken), default=0)
    if opcode.name in _IN_PLACE and taken:
        depth = max(taken[0][1], 1 + max((deep for _, deep in taken[1:]), default=0))
    stack.extend([(size, depth)] * len(after))


def plain_tuple(data: bytes, place: str) -> tuple[str | bytes | int, ...]:
    """Unpickle a tuple of str, bytes and int.

    Raises DataError naming `place` for anything else. Nothing that the pickle names is imported or called.
    """
    try:
        check(io.BytesIO(data), ROW)
        value = _Refusing(io.BytesIO(data)).load()
    except DataError as error:
        raise DataError(f"{place}: refused {error}; expected {_PLAIN}") from None
    except Exception as error:  # a damaged pickle raises almost anything
        raise DataError(f"{place}: expected a pickled tuple, found damaged data ({error})") from None
    wrong = [item for item in value if type(item) not in (str, bytes, int)] if type(value) is tuple else [value]
    if wrong:
        raise DataError(f"{place}: refused a pickled {type(wrong[0]).__name__}; expected {_PLAIN}")
    return value


class _Refusing(pickle.Unpickler):
    """An unpickler that refuses find_class and persistent ids, the only ways by which a pickle can run code."""

    def find_class(self, module_name: str, global_name: str) -> Any:
        raise DataError(f"a pickle that names {module_name}.{global_name}")

    def persistent_load(self, pid: Any) -> Any:
        raise DataError("a pickle with a persistent id")
