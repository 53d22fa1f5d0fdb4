"""Bytes of any format, and values that readers are not prepared for."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np

NUMBERS = [
    0, 1, 0x7F, 0x80, 0xFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 40, (1 << 63) - 1,
    (1 << 64) - 1,
]  # fmt: skip
WORDS = [
    "", " ", "nan", "None", "-1", "1e999", "9" * 10_000, "a" * 100_000, "\0", "x\0y", "a\nb\r\nc",
    "\x1b[31mred", "../../canary/kept.txt", "/dev/zero", "日本語", "e\u0301", "\u202eright",
    "{}", "[[1]]", "'\"", "train", "x" * 255 + "/" + "y" * 255,
]  # fmt: skip
HALF = "half \ud800 a surrogate"  # text that no file and no terminal can hold


def choice(rng: np.random.Generator, items):
    """One of `items` as it is; NumPy's own choice would make an array of them."""
    return items[int(rng.integers(len(items)))]


def mutate(raw: bytes, rng: np.random.Generator) -> bytes:
    """One to four small accidents, half of them near the beginning or the end, where formats keep
    their sizes.
    """
    out = bytearray(raw)
    for _ in range(rng.integers(1, 5)):
        if not out:
            break
        place = rng.integers(len(out))
        near = int(rng.integers(4))
        if near == 0:
            place = rng.integers(min(len(out), 512))
        elif near == 1:
            place = len(out) - 1 - rng.integers(min(len(out), 512))
        at = int(place)
        match rng.integers(7):
            case 0:
                out[at] ^= 1 << int(rng.integers(8))
            case 1:
                out[at] = int(rng.integers(256))
            case 2:
                width = int(rng.choice([2, 4, 8]))
                value = choice(rng, NUMBERS) & ((1 << 8 * width) - 1)
                out[at : at + width] = value.to_bytes(width, "little" if rng.integers(2) else "big")
            case 3:
                del out[at:]
            case 4:
                del out[at : at + int(rng.integers(1, 64))]
            case 5:
                out[at:at] = rng.bytes(int(rng.integers(1, 64)))
            case 6:
                other = int(rng.integers(len(out)))
                out[at : at + 32] = out[other : other + 32]
    return bytes(out)


def bytes_of(path: Path, rng: np.random.Generator) -> None:
    path.write_bytes(mutate(path.read_bytes(), rng))


def not_the_file(path: Path, rng: np.random.Generator) -> None:
    """Something else under the name of `path`."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    match rng.integers(10):
        case 0:
            path.touch()
        case 1:
            path.mkdir()
        case 2:
            os.mkfifo(path)
        case 3:
            path.symlink_to(path.name)
        case 4:
            path.symlink_to("/dev/zero")
        case 5:
            path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
        case 6:
            path.write_text("<!DOCTYPE html><html><body>404</body></html>")
        case 7:
            path.write_bytes(bytes(4096))
        case 8:
            pass  # gone
        case 9:
            # Sparse: bytes that cost nothing on disk, more than there is memory for, and as few as
            # can be hashed within the time.
            with path.open("wb") as file:
                file.truncate(9 << 28)
