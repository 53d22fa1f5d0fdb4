"""Sound files: sizes in chunks, atoms and pages, sample rates, durations, pieces twice or gone."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from tests.fuzz.mutate import raw

# names of pieces that have a size beside them
NAMES = rb"(RIFF|RF64|ds64|fmt |data|fact|LIST|moov|trak|mdhd|mvhd|stts|stsz|stsc|stco|elst|mdat|"
NAMES += rb"ftyp|esds|OggS|fLaC|ID3|Xing|Info|LAME|FORM|COMM|SSND|\.snd|caff|desc|pakt|kuki|"
NAMES += rb"avih|strh|strf|idx1|FLV|NIST_1A|TTA1|wvpk|#!AMR|Opus|\x1aE\xdf\xa3|ADIF|OpusHead)"
RATES = [0, 1, 7, 999, 1000, 8001, 44_101, 96_000, 768_000, 4_000_000, 2**31 - 1, 2**32 - 1]


def mutate(path: Path, rng: np.random.Generator, rate: int, other: bytes) -> None:
    """`rate` is the one in its header, `other` a sound file of another format."""
    data = path.read_bytes()
    found = [m.start() for m in re.finditer(NAMES, data)]
    at = raw.choice(rng, found) if found else int(rng.integers(len(data)))
    out = bytearray(data)
    match rng.integers(14):
        case 0 | 1 | 2:
            out = bytearray(raw.mutate(data, rng))
        case 3 | 4:  # the size before or behind a name
            width = int(rng.choice([2, 4, 8]))
            order = "little" if rng.integers(2) else "big"
            value = raw.choice(rng, raw.NUMBERS) & ((1 << 8 * width) - 1)
            where = max(0, at + int(rng.choice([-4, 4, 8, 12, 16, 20, 24, 26])))
            out[where : where + width] = value.to_bytes(width, order)
        case 5:  # the rate, wherever it stands
            order = raw.choice(rng, ["little", "big"])
            new = raw.choice(rng, RATES).to_bytes(4, order)
            out = bytearray(data.replace(rate.to_bytes(4, order), new))
        case 6:  # a piece gone
            end = raw.choice(rng, [*found, len(data)])
            del out[min(at, end) : max(at, end)]
        case 7:  # a piece twice
            end = raw.choice(rng, [*found, len(data)])
            out[at:at] = data[min(at, end) : max(at, end)]
        case 8:
            del out[int(rng.integers(len(out))) :]
        case 9:  # the file twice, or another behind it
            out += data if rng.integers(2) else other
        case 10:  # something before it
            junk = [b"ID3\x04\0\0\0\0\x0f\x76" + bytes(2038), bytes(512), other[:100], b"\xff\xfb"]
            out[:0] = raw.choice(rng, junk)
        case 11:  # another name's content
            out = bytearray(other)
        case 12:  # samples that are no numbers
            start = len(data) // 2
            value = raw.choice(rng, [b"\xff\xff\xff\x7f", b"\0\0\xc0\x7f", b"\xca\xf2\x49\x71"])
            out[start : start + 400] = value * 100
        case 13:  # a name exchanged
            end = raw.choice(rng, [*found, at])
            out[at : at + 4], out[end : end + 4] = data[end : end + 4], data[at : at + 4]
    path.write_bytes(out)
