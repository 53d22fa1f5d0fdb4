"""HDF5 files whose metadata say something else and still match their checksums.

HDF5 seals each block of metadata (object headers `OHDR`, their continuations `OCHK`, the
superblock) with Bob Jenkins' lookup3. Here bytes within a block change and the seal is made anew,
so that the library takes the block for sound.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from tests.fuzz.mutate import raw as plain

WORD = 0xFFFFFFFF
SIGNATURE = b"\x89HDF\r\n\x1a\n"


def lookup3(data: bytes) -> int:
    """Bob Jenkins' hashlittle of 2006 with initial value 0, as H5_checksum_lookup3 has it."""

    def rotate(x: int, k: int) -> int:
        return ((x << k) | (x >> (32 - k))) & WORD

    a = b = c = (0xDEADBEEF + len(data)) & WORD
    at, left = 0, len(data)
    while left > 12:
        a, b, c = (
            (v + int.from_bytes(data[at + 4 * i : at + 4 * i + 4], "little")) & WORD
            for i, v in enumerate((a, b, c))
        )
        a = ((a - c) ^ rotate(c, 4)) & WORD
        c = (c + b) & WORD
        b = ((b - a) ^ rotate(a, 6)) & WORD
        a = (a + c) & WORD
        c = ((c - b) ^ rotate(b, 8)) & WORD
        b = (b + a) & WORD
        a = ((a - c) ^ rotate(c, 16)) & WORD
        c = (c + b) & WORD
        b = ((b - a) ^ rotate(a, 19)) & WORD
        a = (a + c) & WORD
        c = ((c - b) ^ rotate(b, 4)) & WORD
        b = (b + a) & WORD
        at, left = at + 12, left - 12
    if not left:
        return c
    tail = data[at:] + bytes(12 - left)
    a, b, c = (
        (v + int.from_bytes(tail[4 * i : 4 * i + 4], "little")) & WORD
        for i, v in enumerate((a, b, c))
    )
    for x, y, k in (
        ("c", "b", 14),
        ("a", "c", 11),
        ("b", "a", 25),
        ("c", "b", 16),
        ("a", "c", 4),
        ("b", "a", 14),
        ("c", "b", 24),
    ):
        values = {"a": a, "b": b, "c": c}
        values[x] = ((values[x] ^ values[y]) - rotate(values[y], k)) & WORD
        a, b, c = values["a"], values["b"], values["c"]
    return c


def blocks(raw: bytes) -> list[tuple[int, int]]:
    """(start, end) of every sealed block, without its checksum, which follows."""
    found = []
    if raw.startswith(SIGNATURE):
        found.append((0, 44))
    for match in re.finditer(b"OHDR\x02", raw):
        start = match.start()
        flags = raw[start + 5]
        at = start + 6 + 16 * bool(flags & 0x20) + 4 * bool(flags & 0x10)
        width = 1 << (flags & 3)
        found.append((start, at + width + int.from_bytes(raw[at : at + width], "little")))
    for match in re.finditer(b"OCHK", raw):
        for end in range(match.start() + 8, min(len(raw) - 4, match.start() + 65536)):
            if lookup3(raw[match.start() : end]) == int.from_bytes(raw[end : end + 4], "little"):
                found.append((match.start(), end))
                break
    return [
        (a, b)
        for a, b in found
        if b + 4 <= len(raw) and lookup3(raw[a:b]) == int.from_bytes(raw[b : b + 4], "little")
    ]


def mutated(raw: bytes, sealed: list[tuple[int, int]], rng: np.random.Generator) -> bytes:
    """One to three accidents within a block, which is sealed anew."""
    out = bytearray(raw)
    start, end = sealed[int(rng.integers(len(sealed)))]
    for _ in range(int(rng.integers(1, 4))):
        at = int(rng.integers(start + 4, end))
        match int(rng.integers(4)):
            case 0:
                out[at] ^= 1 << int(rng.integers(8))
            case 1:
                out[at] = int(rng.integers(256))
            case 2:
                width = min(int(rng.choice([1, 2, 4, 8])), end - at)
                value = plain.choice(rng, plain.NUMBERS) & ((1 << 8 * width) - 1)
                out[at : at + width] = value.to_bytes(width, "little")
            case 3:
                other, width = int(rng.integers(start, end)), min(8, end - at)
                piece = bytes(out[other : other + width])
                out[at : at + len(piece)] = piece
    out[end : end + 4] = lookup3(bytes(out[start:end])).to_bytes(4, "little")
    return bytes(out)


def mutate(path: Path, rng: np.random.Generator) -> None:
    raw = path.read_bytes()
    sealed = blocks(raw)
    assert len(sealed) > 3, "no sealed metadata found"
    path.write_bytes(mutated(raw, sealed, rng))
