"""npy and npz: the header's dict, and what a zip archive can claim."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np

from tests.fuzz.mutate import pickled, raw

DESCR = [
    "'<f4'", "'>f8'", "'|O'", "'<U5'", "'|S3'", "'<M8[ns]'", "'<m8[D]'", "'<c8'", "'|V4'", "'?'",
    "'<f2'", "'<f16'", "'|u1'", "[('a', '<f4'), ('b', '|O')]", "('<f4', (2,))", "'x'", "None",
    "{}", "'<f4,' * 3",
]  # fmt: skip
SHAPES = [
    "()", "(0,)", "(1 << 60,)", "(-1,)", "(3, 4)", "(True,)", "(3.0,)", "None", "'x'", "(3,) * 64",
    f"({1 << 40}, {1 << 40})", "(" + "9" * 5000 + ",)", "(1,) + (1,)", "(2 ** 31, 4)", "[3]",
]  # fmt: skip


def npy(rng: np.random.Generator, array: np.ndarray) -> bytes:
    """An .npy whose header is not what NumPy would write."""
    packed = io.BytesIO()
    np.save(packed, array, allow_pickle=False)
    data = packed.getvalue()
    body = data[10 + struct.unpack("<H", data[8:10])[0] :]
    descr, order, shape = repr(array.dtype.str), "False", repr(array.shape)
    extra, version = "", (1, 0)
    match rng.integers(9):
        case 0:
            return raw.mutate(data, rng)
        case 1:
            descr = raw.choice(rng, DESCR)
        case 2:
            shape = raw.choice(rng, SHAPES)
        case 3:
            order = raw.choice(rng, ["True", "1", "None", "'x'", "[]"])
        case 4:
            extra = raw.choice(rng, ["'a': 1", "'shape': (1,)", "**{}", "1: 2", "'a': " + "(" * 99])
        case 5:
            version = raw.choice(rng, [(2, 0), (3, 0), (4, 0), (0, 0), (255, 255)])
        case 6:
            body = body[: int(rng.integers(len(body) + 1))] + rng.bytes(int(rng.integers(9)))
        case 7:
            deep = "-" * 5000 + "1"
            shape = raw.choice(rng, ["[" * 5000 + "]" * 5000, f"({deep},)", "(" * 90 + ")" * 90])
        case 8:
            size = raw.choice(rng, [1 << 24, 1 << 20, 9_999, 10_001])
            extra = "'a': '" + "x" * size + "'"
            version = (2, 0)
    header = f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, {extra}}}\n".encode()
    head = b"\x93NUMPY" + bytes(version)
    if version[0] == 1:
        return head + struct.pack("<H", min(len(header), 65_535)) + header + body
    return head + struct.pack("<I", len(header)) + header + body


def npy_file(path: Path, rng: np.random.Generator) -> None:
    path.write_bytes(npy(rng, np.load(path)))


def odd_array(rng: np.random.Generator, n: int) -> np.ndarray:
    """An array of n rows of another kind than expected."""
    kinds = [
        lambda: np.array([None, "a", 1][:n] + [0] * max(0, n - 3), object),
        lambda: np.array(["a\0b", raw.HALF, ""] + [str(i) for i in range(n)])[:n],
        lambda: np.arange(n),
        lambda: np.full(n, np.nan),
        lambda: np.zeros(n, "S3"),
        lambda: np.zeros((n, 3, 2, 2)),
        lambda: np.zeros(n, [("a", "f4"), ("b", "i4")]),
        lambda: np.zeros(n, "datetime64[ns]"),
        lambda: np.zeros(n, "timedelta64[D]"),
        lambda: np.zeros((n, 4), "c8"),
        lambda: np.zeros((n, 0)),
        lambda: np.zeros((n, 4), "f2") + np.inf,
        lambda: np.full((n, 4), 1e300),
        lambda: np.full((n, 4), np.iinfo(np.uint64).max, np.uint64),
        lambda: np.zeros(()),
        lambda: np.zeros((n, 4), bool),
        lambda: np.array(["2020-01-01", "x"] * n, object)[:n].astype("U10"),
        lambda: np.array([b"\xff\xfe", b"ok"] * n)[:n],
        lambda: np.array(["a" * 3000] * n),
        lambda: np.full(n, -(2**63)),
        lambda: np.array([1e20, 0.5] * n)[:n],
    ]
    return raw.choice(rng, kinds)()


def npz_file(path: Path, rng: np.random.Generator) -> None:
    with np.load(path) as file:
        held = {name: file[name] for name in file.files}
    name = raw.choice(rng, sorted(held))
    match rng.integers(8):
        case 0:
            raw.bytes_of(path, rng)
        case 1 | 2:
            write_zip(path, held, {f"{name}.npy": npy(rng, held[name])})
        case 3:
            held[name] = odd_array(rng, 3)
            np.savez(path, **held)
        case 4:
            del held[name]
            np.savez(path, **held)
        case 5:
            held[raw.choice(rng, [f"{name}_lengths", f"{name}_offsets", "label", "split"])] = (
                odd_array(rng, int(rng.integers(2, 5)))
            )
            np.savez(path, **held)
        case _:
            zip_tricks(path, held, name, rng)


def write_zip(path: Path, held: dict, instead: dict[str, bytes], method: int = 0) -> None:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, array in held.items():
            packed = io.BytesIO()
            np.save(packed, array)
            archive.writestr(f"{name}.npy", instead.pop(f"{name}.npy", packed.getvalue()))
        for name, data in instead.items():
            archive.writestr(name, data)


def zip_tricks(path: Path, held: dict, name: str, rng: np.random.Generator) -> None:
    match rng.integers(9):
        case 0:  # the same name twice
            with zipfile.ZipFile(path, "a") as archive:
                packed = io.BytesIO()
                np.save(packed, odd_array(rng, 3), allow_pickle=True)
                twice = zipfile.ZipInfo(f"{name}.npy")
                archive._writecheck = lambda info: None
                archive.writestr(twice, packed.getvalue())
        case 1:  # a bomb: zeros that deflate a thousandfold, as one member
            write_zip(path, held, {f"{name}.npy": bomb(256 << 20)}, zipfile.ZIP_DEFLATED)
        case 2:  # overlapping members: every entry of the directory points at the first
            data = bytearray(path.read_bytes())
            at = data.find(b"PK\1\2")
            while at >= 0:
                data[at + 42 : at + 46] = bytes(4)
                at = data.find(b"PK\1\2", at + 4)
            path.write_bytes(data)
        case 3:  # a wrong checksum
            data = bytearray(path.read_bytes())
            at = data.find(b"PK\1\2")
            data[at + 16] ^= 0xFF
            path.write_bytes(data)
        case 4:  # sizes that are none
            data = bytearray(path.read_bytes())
            at = data.find(b"PK\1\2")
            size = raw.choice(rng, raw.NUMBERS) & 0xFFFFFFFF
            where = int(rng.choice([20, 24, 42]))
            data[at + where : at + where + 4] = size.to_bytes(4, "little")
            path.write_bytes(data)
        case 5:  # names that lead away, or say nothing
            odd = ["../../../canary/kept.npy", "/abs.npy", "a\\b.npy", ".npy", "x.txt", "d/.npy"]
            write_zip(path, held, {raw.choice(rng, odd): rng.bytes(20)})
        case 6:  # an encrypted member, or a method nobody has
            data = bytearray(path.read_bytes())
            at = data.find(b"PK\1\2")
            data[at + 8 if rng.integers(2) else at + 10] |= int(rng.integers(1, 100))
            path.write_bytes(data)
        case 7:  # very many members
            write_zip(path, held, {f"m{i}.npy": b"" for i in range(20_000)})
        case 8:  # a true array in a deflated stream that ends early
            packed = zlib.compress(bytes(1000))[:-8]
            write_zip(path, held, {f"{name}.npy": packed})


def bomb(size: int) -> bytes:
    """An .npy of zeros, `size` bytes of them."""
    packed = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        packed, {"descr": "<f4", "fortran_order": False, "shape": (3, size // 12)}
    )
    return packed.getvalue() + bytes(size // 12 * 12)


def zip_file(path: Path, rng: np.random.Generator) -> None:
    """A checkpoint of PyTorch, which is a zip with a pickle in it: other opcodes, or a call."""
    if not rng.integers(3):
        raw.bytes_of(path, rng)
        return
    with zipfile.ZipFile(path) as archive:
        held = {name: archive.read(name) for name in archive.namelist()}
    name = next(n for n in held if n.endswith("data.pkl"))
    changes = [
        lambda: pickled.hostile(rng),
        lambda: pickled.replaced(held[name], rng),
        lambda: pickled.reordered(held[name], rng),
    ]
    held[name] = raw.choice(rng, changes)()
    with zipfile.ZipFile(path, "w") as archive:
        for each, data in held.items():
            archive.writestr(each, data)
