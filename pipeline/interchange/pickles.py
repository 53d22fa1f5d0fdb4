"""Pickles as data: arrays, numbers, text, lists, tuples and dicts, and not one function called.

A pickle is a program for a small stack machine that may call anything. This is that machine without
the power to call: the few globals that NumPy arrays are made of are acted out here, every other one
is refused by name before its arguments matter. Nothing is allocated on the word of the file:
lengths are held against the bytes that are left, array shapes against their data, the number of
opcodes, the nesting and the size of what is shared against limits (pipeline/runtime/limits.py).
Opcodes: https://docs.python.org/3/library/pickletools.html, protocols 0 to 5.
"""

from __future__ import annotations

import os
import pickletools
import re
import struct
from collections.abc import Callable, Sequence
from math import prod
from pathlib import Path

import numpy as np

from mer.pipeline.errors import DataError
from mer.pipeline.interchange.source import reading, require_file
from mer.pipeline.runtime.limits import (
    PICKLE_DEPTH,
    PICKLE_NUMBER_DIGITS,
    PICKLE_OPCODES,
    PICKLE_SHARED_FREE_BYTES,
    PICKLE_SHARED_RATIO,
)
from mer.pipeline.runtime.terminal import shown

ATOM_BYTES = 8  # how a number, None or an empty container counts in the size of a value
ARRAY = {"numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct"}
SCALAR = {"numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"}
BUFFER = {"numpy.core.numeric._frombuffer", "numpy._core.numeric._frombuffer"}
LATIN = {"_codecs.encode"}  # how protocol 2 spells bytes
EMPTY_BYTES = {"builtins.bytes", "__builtin__.bytes"}  # and empty ones
DICT = {"collections.OrderedDict", "builtins.dict", "__builtin__.dict"}
KNOWN = ARRAY | SCALAR | BUFFER | LATIN | EMPTY_BYTES | DICT | {"numpy.ndarray", "numpy.dtype"}
ELEMENT = r"([<>|=]?)(f2|f4|f8|i1|i2|i4|i8|u1|u2|u4|u8|b1|O8?|[SU]\d{1,5})"
# Whose objects the field's pickles hold besides arrays, and what to do about them: by the beginning
# of the refused name.
FORMS = {
    "torch.": "it holds PyTorch tensors: load it where you trust it, turn them into arrays with "
    ".numpy(), and save it again",
    "pandas.": "it holds a pandas table: load it where you trust it and save it with "
    "DataFrame.to_parquet",
    "scipy.": "it holds SciPy matrices: load it where you trust it and save them as plain arrays",
    "joblib.": "joblib wrote it: load it where you trust it and save its arrays with numpy.savez",
    "mmsdk.": "it holds objects of the CMU-MultimodalSDK: load it where you trust it and save its "
    "arrays with numpy.savez",
}
NAMES = {op.code: op.name for op in pickletools.opcodes}
MARK = object()


class _Name(str):
    """A global that the pickle asked for, by its name only."""


class _Pending:
    """An array or dtype between its creation and its state. `slots` are the memo entries that must
    learn of the finished one.
    """

    def __init__(self, build: Callable[[tuple], np.ndarray | np.dtype]) -> None:
        self.build = build
        self.slots: list[int] = []


def load(path: str | os.PathLike) -> object:
    """The content of a pickle that holds data only.

    Args:
        path: The file. No code in it is run.

    Returns:
        Arrays, numbers, text, lists, tuples and dicts, as Python's `pickle` would give them.

    Raises:
        DataError: It holds something else, which is named, or is damaged or beyond the bounds.
    """
    path = Path(path)
    size = require_file(path, "pickle")
    with reading(path, "pickle"):
        with open(path, "rb") as file:
            value = _Machine(file, size, str(path)).run()
        _check_sharing(path, value, size)
        return value


def _check_sharing(path: Path, root, size: int) -> None:
    """DataError for a value that is larger than its file when what is shared in it is counted each
    time, or too deep, or inside itself.

    Every object is visited once. Turning a list into text or an array visits a shared one each
    time: sixty lists, each twice in the next, are 2^60 values.
    """
    limit = PICKLE_SHARED_FREE_BYTES + PICKLE_SHARED_RATIO * size
    sizes: dict[int, int] = {}  # of the containers that are done, by id; 0: being done
    depths: dict[int, int] = {}
    stack = [(root, False)]
    while stack:
        value, leaving = stack.pop()
        inner = _inner(value)
        if inner is None:
            continue
        key = id(value)
        if not leaving:
            if key in sizes:
                if not sizes[key]:
                    raise DataError(
                        f"{path}: a list or dict that contains itself; a pickle of features holds "
                        "none"
                    )
                continue
            sizes[key] = 0
            stack.append((value, True))
            stack.extend((item, False) for item in inner if _inner(item) is not None)
            continue
        depths[key] = 1 + max((depths.get(id(item), 0) for item in inner), default=0)
        sizes[key] = ATOM_BYTES + sum(sizes.get(id(item)) or _bytes(item) for item in inner)
        if depths[key] > PICKLE_DEPTH:
            raise DataError(
                f"{path}: lists or dicts more than {PICKLE_DEPTH} deep inside each other; a "
                "pickle of features has four"
            )
        if sizes[key] > limit:
            raise DataError(
                f"{path}: {size:,} bytes that stand for more than {limit:,}, because parts are "
                "shared; save it without sharing"
            )


def _inner(value) -> Sequence | None:
    """What a container holds; None for anything else."""
    if isinstance(value, list | tuple):
        return value
    if isinstance(value, dict):
        return [*value, *value.values()]
    if isinstance(value, np.ndarray) and value.dtype.kind == "O":
        return value.ravel(order="K").tolist()
    return None


def _bytes(value) -> int:
    if isinstance(value, np.ndarray):
        return value.nbytes + ATOM_BYTES
    return ATOM_BYTES + (len(value) if isinstance(value, str | bytes) else 0)


class _Machine:
    """The stack machine: a method `op_…` for each opcode that is let through."""

    def __init__(self, file, size: int, where: str) -> None:
        self.file, self.left, self.where = file, size, where
        self.stack: list = []
        self.memo: dict[int, object] = {}

    def run(self):
        for _ in range(PICKLE_OPCODES):
            code = self.take(1)
            name = NAMES.get(code.decode("latin1"))
            if name == "STOP":
                result = self.stack.pop()
                if isinstance(result, _Pending | _Name) or result is MARK:
                    raise ValueError("it holds no finished value")
                return result
            action = getattr(self, f"op_{name}", None)
            if action is None:
                raise self.refuse(f"opcode {name or code.hex()}")
            action()
        raise DataError(
            f"{self.where}: more than {PICKLE_OPCODES:,} objects; a pickle of arrays has far fewer"
        )

    def refuse(self, what: str, name: str = "") -> DataError:
        hint = next((hint for beginning, hint in FORMS.items() if name.startswith(beginning)), "")
        only = hint or "only arrays, numbers, text, lists and dicts are read from a pickle"
        return DataError(f"{self.where}: {what} is refused; {only}")

    # Reading, never more than there is.

    def take(self, n: int) -> bytes:
        if n < 0 or n > self.left:
            raise DataError(
                f"{self.where}: claims {n:,} bytes where {max(self.left, 0):,} are left; the file "
                "is truncated or hostile"
            )
        data = self.file.read(n)
        self.left -= n
        if len(data) != n:
            raise ValueError("truncated")
        return data

    def line(self) -> bytes:
        data = self.file.readline(min(self.left, 1 << 20))
        self.left -= len(data)
        if not data.endswith(b"\n"):
            raise ValueError("a line without an end")
        return data[:-1]

    def number(self, form: str) -> int:
        return struct.unpack("<" + form, self.take(struct.calcsize(form)))[0]

    def push(self, value) -> None:
        self.stack.append(value)

    def marked(self) -> list:
        """Everything above the last mark, taken off together with it."""
        for at in range(len(self.stack) - 1, -1, -1):
            if self.stack[at] is MARK:
                items = self.stack[at + 1 :]
                del self.stack[at:]
                return items
        raise ValueError("no mark")

    # Numbers, text, bytes.

    def op_NONE(self):
        self.push(None)

    def op_NEWTRUE(self):
        self.push(True)

    def op_NEWFALSE(self):
        self.push(False)

    def op_BININT(self):
        self.push(self.number("i"))

    def op_BININT1(self):
        self.push(self.number("B"))

    def op_BININT2(self):
        self.push(self.number("H"))

    def op_LONG1(self):
        self.push(int.from_bytes(self.take(self.number("B")), "little", signed=True))

    def op_BINFLOAT(self):
        self.push(struct.unpack(">d", self.take(8))[0])

    def op_FLOAT(self):
        self.push(float(self.digits()))

    def op_SHORT_BINUNICODE(self):
        self.push(self.text(self.number("B")))

    def op_BINUNICODE(self):
        self.push(self.text(self.number("I")))

    def op_BINUNICODE8(self):
        self.push(self.text(self.number("Q")))

    def op_SHORT_BINBYTES(self):
        self.push(self.take(self.number("B")))

    def op_BINBYTES(self):
        self.push(self.take(self.number("I")))

    def op_BINBYTES8(self):
        self.push(self.take(self.number("Q")))

    def op_BYTEARRAY8(self):
        self.push(self.take(self.number("Q")))

    def op_SHORT_BINSTRING(self):
        self.push(self.take(self.number("B")))

    def op_BINSTRING(self):
        self.push(self.take(self.number("i")))

    def op_UNICODE(self):
        self.push(self.line().decode("raw-unicode-escape"))

    def text(self, n: int) -> str:
        return self.take(n).decode("utf-8", "surrogatepass")

    def op_STRING(self):
        quoted = re.fullmatch(rb"(['\"])(.*)\1", self.line(), re.S)
        if quoted is None:
            raise ValueError("a text without quotes")
        self.push(quoted[2].decode("unicode-escape").encode("latin1"))

    def op_INT(self):
        line = self.line()
        self.push(
            {b"00": False, b"01": True}[line] if line in (b"00", b"01") else int(self.digits(line))
        )

    def op_LONG(self):
        self.push(int(self.digits(self.line().rstrip(b"L"))))

    def digits(self, line: bytes | None = None) -> bytes:
        """A number spelled in decimals; turning very many digits into a number takes time that
        grows with their square.
        """
        line = self.line() if line is None else line
        if len(line) > PICKLE_NUMBER_DIGITS:
            raise DataError(
                f"{self.where}: a number of {len(line):,} digits; more than "
                f"{PICKLE_NUMBER_DIGITS:,} are refused"
            )
        return line

    # Containers.

    def op_MARK(self):
        self.push(MARK)

    def op_POP(self):
        self.stack.pop()

    def op_POP_MARK(self):
        self.marked()

    def op_DUP(self):
        self.push(self.stack[-1])

    def op_EMPTY_LIST(self):
        self.push([])

    def op_EMPTY_DICT(self):
        self.push({})

    def op_EMPTY_TUPLE(self):
        self.push(())

    def op_LIST(self):
        self.push(self.marked())

    def op_TUPLE(self):
        self.push(tuple(self.marked()))

    def op_TUPLE1(self):
        self.push((self.stack.pop(),))

    def op_TUPLE2(self):
        self.stack[-2:] = [tuple(self.stack[-2:])]

    def op_TUPLE3(self):
        self.stack[-3:] = [tuple(self.stack[-3:])]

    def op_DICT(self):
        self.push(self.pairs({}, self.marked()))

    def op_APPEND(self):
        item = self.stack.pop()
        self.top(list).append(item)

    def op_APPENDS(self):
        items = self.marked()
        self.top(list).extend(items)

    def op_SETITEM(self):
        items = self.stack[-2:]
        del self.stack[-2:]
        self.pairs(self.top(dict), items)

    def op_SETITEMS(self):
        items = self.marked()
        self.pairs(self.top(dict), items)

    def top(self, kind: type):
        if type(self.stack[-1]) is not kind:
            raise ValueError(f"a {kind.__name__} was expected")
        return self.stack[-1]

    @staticmethod
    def pairs(into: dict, items: list) -> dict:
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, str | bytes | int | float | None):
                raise ValueError("a dict key that is neither text nor number")
            into[key] = value
        return into

    # The memo.

    def op_PUT(self):
        self.remember(int(self.line()[:20]))

    def op_BINPUT(self):
        self.remember(self.number("B"))

    def op_LONG_BINPUT(self):
        self.remember(self.number("I"))

    def op_MEMOIZE(self):
        self.remember(len(self.memo))

    def op_GET(self):
        self.push(self.memo[int(self.line()[:20])])

    def op_BINGET(self):
        self.push(self.memo[self.number("B")])

    def op_LONG_BINGET(self):
        self.push(self.memo[self.number("I")])

    def remember(self, slot: int) -> None:
        self.memo[slot] = value = self.stack[-1]
        if isinstance(value, _Pending):
            value.slots.append(slot)

    # Framing.

    def op_PROTO(self):
        if self.number("B") > 5:
            raise ValueError("protocol above 5")

    def op_FRAME(self):
        self.number("Q")  # only a hint for reading ahead

    # Globals: names, never objects.

    def op_GLOBAL(self):
        module, name = self.line().decode(), self.line().decode()
        self.named(module, name)

    def op_STACK_GLOBAL(self):
        name, module = self.stack.pop(), self.stack.pop()
        self.named(module, name)

    def named(self, module, name) -> None:
        full = f"{module}.{name}"
        if full not in KNOWN:
            raise self.refuse(f"'{shown(full)}'", full)
        self.push(_Name(full))

    def op_REDUCE(self):
        args, name = self.stack.pop(), self.stack.pop()
        if not isinstance(name, _Name) or type(args) is not tuple:
            raise self.refuse("a call")
        self.push(self.acted_out(name, args))

    def acted_out(self, name: _Name, args: tuple):
        """The result of a call, for the few names that arrays are made by."""
        if name in ARRAY:
            return _Pending(_array)
        if name == "numpy.dtype":
            return self.pending_dtype(args)
        if name in SCALAR:
            return _array((1, (), args[0], False, args[1]))[()]
        if name in BUFFER:
            data, dtype, shape, order = args
            return _array((1, shape, dtype, order == "F", data))
        if name in LATIN and len(args) == 2 and args[1] in ("latin1", b"latin1"):
            return args[0].encode("latin1")
        if name in EMPTY_BYTES | DICT and not args:
            return {} if name in DICT else b""
        raise self.refuse(f"a call of '{name}'")

    def pending_dtype(self, args: tuple) -> _Pending:
        code = args[0].decode() if isinstance(args[0], bytes) else args[0]
        if not isinstance(code, str) or not re.fullmatch(ELEMENT, code):
            raise self.refuse(f"an array of type '{shown(code, 40)}'")
        return _Pending(lambda state: _dtype(code, state))

    def op_BUILD(self):
        state, target = self.stack.pop(), self.stack[-1]
        if not isinstance(target, _Pending):
            raise self.refuse("an object with a state of its own")
        self.stack[-1] = value = target.build(state)
        for slot in target.slots:
            self.memo[slot] = value


def _dtype(code: str, state: tuple) -> np.dtype:
    """(version, byte order, subarray, names, fields, ...): plain elements only."""
    if any(part is not None for part in state[2:5]):
        raise ValueError("an array of records")
    order = state[1].decode() if isinstance(state[1], bytes) else state[1]
    plain = np.dtype(code.rstrip("8") if code.startswith("O") else code)
    if order == "<":
        return plain.newbyteorder("<")
    return plain.newbyteorder(">" if order == ">" else "|")


def _array(state: tuple) -> np.ndarray:
    """(version, shape, dtype, Fortran order, data): data must be exactly what the shape needs."""
    _, shape, dtype, fortran, data = state
    if (
        not isinstance(dtype, np.dtype)
        or not isinstance(shape, tuple)
        or not all(type(n) is int and n >= 0 for n in shape)
    ):
        raise ValueError("an array without a proper shape and type")
    if dtype.kind == "O":
        if type(data) is not list or len(data) != prod(shape):
            raise ValueError(f"an array of shape {shape} without as many elements")
        flat = np.empty(len(data), object)
        # One by one: a list given whole would be spread over the elements.
        for i, value in enumerate(data):
            flat[i] = value
    else:
        if not isinstance(data, bytes) or len(data) != prod(shape) * dtype.itemsize:
            raise ValueError(
                f"an array of shape {shape} and {dtype} that comes with {len(data):,} bytes"
            )
        flat = np.frombuffer(data, dtype) if data else np.empty(0, dtype)
    return flat.reshape(shape, order="F" if fortran else "C")
