"""What a media file's own bytes say of its length, read without a decoder.

A length in a header is a hint: writers to a pipe leave a placeholder, and whoever appends a file
to another leaves the first one's. `look` holds it against the bytes. Where they agree, soundfile
may stop at that length; where they do not, the file is decoded to the end of its data. A file
counts as cut off only when its bytes say so: a chunk, box, page or frame that ends behind the
end of the file.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import BinaryIO

from mer.pipeline.runtime import beginnings
from mer.pipeline.runtime.limits import MEDIA_CHUNKS, MEDIA_SCANNED_BYTES

DECODER = (
    2  # the decoder's version; raise it when files whose `why` is not None would decode otherwise
)
# Bytes by which a size may be too large before something counts as missing: writers count a header
# in, or a byte too much.
SLACK = 64
UNTIL = 64 * 1024  # bytes searched for the first frame of an MP3 or AAC stream
FOREVER = 0x7FFF_0000  # bytes; a size from here on is what writers to a pipe leave

# Why a file is decoded otherwise than by the first version: for the output, not for the key.
NO_LENGTH = "a header without its true length"
SEVERAL = "streams that follow one another in one file"
NEW = "a format that was not read before"
CODED = "a compressed stream inside WAV"
CUT = "a file that is cut off"


@dataclass(frozen=True, slots=True)
class Look:
    """`kind` names the container, "" where it is not one of those below.

    `exact`: the header's length agrees with the bytes. `why`: the reason that it is decoded
    otherwise than by the first version, None where nothing changed. `missing`: what says that it is
    cut off. `samples`: the length that the header claims, where that says something. `flags` are
    those of `mer.pipeline.extraction.parts`. `parts`: (begin, end) in bytes of streams that follow
    one another. `patch`: (place, bytes) of a length to be read instead of the one in the header.
    """

    kind: str
    exact: bool = False
    why: str | None = None
    missing: str | None = None
    samples: int | None = None
    flags: tuple[str, ...] = ()
    parts: tuple[tuple[int, int], ...] = ()
    patch: tuple[int, bytes] | None = None


def look(path: str | os.PathLike) -> Look:
    """What the bytes of a file say.

    Args:
        path: A regular file.

    Returns:
        The look; `kind` "" for what this module does not know.

    Raises:
        OSError: The file cannot be read.
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        begin = _behind_id3(file, 0)
        file.seek(begin)
        head = file.read(64)
        try:
            found = _look(file, size, begin, head)
        except (
            struct.error,
            IndexError,
            OverflowError,
        ):  # ends within a header: the decoder will say so
            return Look("")
    if found.missing and (found.kind, head[:4]) != (
        "wav",
        b"RIFF",
    ):  # which the first version noticed
        return replace(found, why=CUT)
    return found


def _look(file: BinaryIO, size: int, begin: int, head: bytes) -> Look:
    if head[:4] in (b"RIFF", b"RF64", b"BW64", b"RIFX") and head[8:12] == b"WAVE":
        return _wav(file, size, begin, head)
    if head[:4] == b"RIFF" and head[8:11] == b"AVI":
        claimed = begin + 8 + struct.unpack("<I", head[4:8])[0]
        return Look("avi", missing=_beyond(claimed - size) if claimed < FOREVER else None)
    if head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"):
        return _aiff(file, size, begin, head)
    if head[:4] == b".snd":
        start, length = struct.unpack(">II", head[4:12])
        found = _sized("au", length, size - start, whole=False)
        if length + SLACK < size - start:  # 0, or a length that was never brought up to date
            patch = begin + 8, struct.pack(">I", 0xFFFFFFFF)
            return Look("au", why=NO_LENGTH, flags=("unsized",), patch=patch)
        return found
    if head[:4] == b"caff":
        return _caf(file, size)
    if head[:16] == b"riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb\x04\xc1\x00\x00":
        return _w64(file, size)
    if head[:4] == b"fLaC":
        return _flac(file, size, begin)
    if head[:4] == b"OggS":
        return _ogg(file, size)
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"styp", b"pnot"):
        return Look("mp4", missing=_cut_box(file, size))
    if head[:4] == b"\x1a\x45\xdf\xa3":
        return Look("matroska", missing=_cut_segment(file, size))
    if head[:7] == b"NIST_1A":
        return _sphere(file, size)
    if head[:19] == b"Creative Voice File":
        # its block sizes are not to be relied on: SoX writes wrong ones
        return Look("voc", why=NEW)
    if head[:4] == b"FLV\x01":
        return Look("flv", missing=_cut_flv(file, size))
    if head[:4] == b"\x30\x26\xb2\x75":
        return Look("asf", missing=_cut_asf(file, size))
    if head[:2] == b"\x0b\x77":
        return _frames(file, size, begin)
    if begin or head[:1] == b"\xff":
        return _frames(file, size, begin)
    return Look("")


def _beyond(missing: int, what: str = "bytes") -> str | None:
    return f"{missing:,} {what} are missing" if missing > SLACK else None


def _behind_id3(file: BinaryIO, at: int) -> int:
    """Where what follows the ID3v2 tags at `at` begins."""
    for _ in range(MEDIA_CHUNKS):
        file.seek(at)
        head = file.read(10)
        if len(head) < 10 or head[:3] != b"ID3":
            break
        a, b, c, d = (byte & 0x7F for byte in head[6:10])
        at += 10 + (a << 21 | b << 14 | c << 7 | d) + 10 * bool(head[5] & 0x10)
    return at


# --- containers of chunks with a size


def _sized(
    kind: str, length: int, available: int, *, whole: bool, flags: tuple[str, ...] = ()
) -> Look:
    """The look at a file whose audio claims `length` bytes where `available` are there; `whole`:
    its outer size vouches for it."""
    missing = length - available
    if length == 0 and available > 0:
        return Look(kind, why=NO_LENGTH, flags=("unsized",))
    if missing <= 0:
        return Look(kind, exact=True, flags=flags)
    if length >= FOREVER:
        return Look(
            kind, exact=True, flags=("unsized",)
        )  # libsndfile takes what is there, and always did
    if whole or missing <= SLACK or _placeholder(length):
        return Look(kind, exact=True, why=NO_LENGTH, flags=("unsized",))
    return Look(kind, missing=f"{missing:,} of {length:,} bytes of audio are missing")


def _placeholder(length: int) -> bool:
    """Sizes that nobody records by chance: a round number of 10⁸ bytes or more, or a power of
    two with or without a header."""
    if length >= 10**8 and length % 10**6 == 0:
        return True
    power = 1 << (length + SLACK).bit_length() - 1
    return length >= 1 << 27 and abs(length - power) <= SLACK


def _chunks(file: BinaryIO, at: int, size: int, form: str) -> Iterator[tuple[bytes, int, int]]:
    """(name, where its content begins, its size) of each chunk from `at` on; `form` is how
    struct reads a chunk's head."""
    step = struct.calcsize(form)
    for _ in range(MEDIA_CHUNKS):
        file.seek(at)
        head = file.read(step)
        if len(head) < step:
            return
        name, length = struct.unpack(form, head)
        yield name, at + step, length
        at += step + length + length % 2


WAV_PCM = {1, 3, 6, 7}  # integers, floats, A-law, µ-law: a sample has a fixed size
WAV_BLOCKS = {
    2,
    0x11,
    0x31,
    0x64,
    0x65,
    0x40,
    0x45,
    0x200,
}  # ADPCM and GSM: libsndfile counts blocks


def _wav(file: BinaryIO, size: int, begin: int, head: bytes) -> Look:
    order = ">" if head[:4] == b"RIFX" else "<"
    outer = struct.unpack(order + "I", head[4:8])[0]
    whole = abs(begin + outer + 8 - size) <= SLACK
    tag, long_size = 1, None
    for name, at, length in _chunks(file, begin + 12, size, order + "4sI"):
        if name == b"ds64":
            file.seek(at)
            long_outer, long_size = struct.unpack("<QQ", file.read(16))
            whole = abs(begin + long_outer + 8 - size) <= SLACK
        elif name == b"fmt ":
            file.seek(at)
            content = file.read(26)
            tag = struct.unpack(order + "H", content[:2])[0]
            if tag == 0xFFFE:
                tag = struct.unpack(order + "H", content[24:26])[0]
        elif name == b"data":
            available = size - at
            if length == 0xFFFFFFFF and long_size is not None:
                length = long_size
            if length == 0 and _tidy_end(file, at, size, order):
                return Look("wav", exact=True)
            flags = (
                ()
                if length >= available or _tidy_end(file, at + length, size, order)
                else ("trailing",)
            )
            found = _sized("wav", length, available, whole=whole, flags=flags)
            if tag not in WAV_PCM | WAV_BLOCKS and not found.missing:
                return Look("wav", why=CODED, flags=found.flags)
            return found
    return Look("wav")


def _tidy_end(file: BinaryIO, at: int, size: int, order: str) -> bool:
    """Whether what follows the audio is nothing, padding, tags or chunks."""
    for start in (at, at + at % 2):  # some writers leave the padding byte out
        file.seek(start)
        rest = file.read(4096)
        if (
            size - start <= 8
            or not rest.strip(b"\0")
            or rest[:3] in (b"TAG", b"ID3")
            or rest[:8] == b"APETAGEX"
        ):
            return True
        if rest[:4] in (b"RIFF", b"RF64"):
            return False
        end = start
        for name, where, length in _chunks(file, start, size, order + "4sI"):
            end = where + length
            if not all(32 <= byte < 127 for byte in name) or end > size + SLACK:
                break
        else:
            return True
        if end != start and abs(end - size) <= 1:
            return True
    return False


def _aiff(file: BinaryIO, size: int, begin: int, head: bytes) -> Look:
    whole = abs(begin + struct.unpack(">I", head[4:8])[0] + 8 - size) <= SLACK
    for name, at, length in _chunks(file, begin + 12, size, ">4sI"):
        if name == b"SSND":
            found = _sized("aiff", max(0, length - 8), size - at - 8, whole=whole)
            return (
                replace(found, patch=(at - 4, struct.pack(">I", size - at)))
                if length <= 8 < size - at
                else found
            )
    return Look("aiff")


def _caf(file: BinaryIO, size: int) -> Look:
    at = 8
    for _ in range(MEDIA_CHUNKS):
        file.seek(at)
        head = file.read(12)
        if len(head) < 12:
            break
        name, length = struct.unpack(">4sq", head)
        if name == b"data":
            if length == -1:  # as the specification has it for what is still being written
                return Look("caf", exact=True)
            return _sized("caf", max(0, length - 4), size - at - 16, whole=False)
        if length < 0:
            break
        at += 12 + length
    return Look("caf")


def _w64(file: BinaryIO, size: int) -> Look:
    at = 40
    for _ in range(MEDIA_CHUNKS):
        file.seek(at)
        head = file.read(24)
        if len(head) < 24:
            break
        name, length = head[:4], struct.unpack("<Q", head[16:])[0]
        if name == b"data":
            end = at + length
            if 24 <= length and end + SLACK < size:  # libsndfile takes what follows for audio
                return Look("w64", why=NO_LENGTH, flags=("trailing",), parts=((0, end),))
            return _sized("w64", max(0, length - 24), size - at - 24, whole=False)
        if length < 24:
            break
        at += (length + 7) // 8 * 8
    return Look("w64")


def _sphere(file: BinaryIO, size: int) -> Look:
    """NIST SPHERE: a text header of a fixed size, then samples."""
    file.seek(0)
    text = file.read(1 << 16).decode("latin-1")
    lines = text.splitlines()
    fields = {parts[0]: parts[2] for line in lines[2:200] if len(parts := line.split(None, 2)) == 3}
    coding = fields.get("sample_coding", "pcm")
    if "embedded" in coding:  # shorten: its length is not in the header
        return Look("sphere", why=NEW)
    try:
        header = int(lines[1])
        claimed = (
            int(fields["sample_count"])
            * int(fields.get("channel_count", 1))
            * int(fields.get("sample_n_bytes", 2))
        )
    except (KeyError, ValueError, IndexError):
        return Look("sphere", why=NEW)
    missing = claimed - (size - header)
    return Look(
        "sphere",
        exact=True,
        why=NEW,
        missing=f"{missing:,} of {claimed:,} bytes of audio are missing"
        if missing > SLACK
        else None,
    )


def _cut_flv(file: BinaryIO, size: int) -> str | None:
    """Whether the last tag of an FLV file ends behind the end of the file."""
    file.seek(5)
    at = struct.unpack(">I", file.read(4))[0] + 4
    for _ in range(MEDIA_SCANNED_BYTES >> 8):
        file.seek(at)
        head = file.read(11)
        if len(head) < 11 or head[0] not in (8, 9, 18):
            return None
        at += 11 + int.from_bytes(head[1:4], "big")
        if at > size:
            return f"{at - size:,} bytes of its last tag are missing"
        at += 4
    return None


def _cut_asf(file: BinaryIO, size: int) -> str | None:
    """Whether an ASF file (WMA, WMV) is shorter than its properties say."""
    file.seek(0)
    head = file.read(UNTIL)
    at = head.find(bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365"))
    if at < 0 or at + 48 > len(head):
        return None
    return _beyond(struct.unpack("<Q", head[at + 40 : at + 48])[0] - size)


BOXES = {
    b"ftyp",
    b"moov",
    b"mdat",
    b"moof",
    b"free",
    b"skip",
    b"wide",
    b"udta",
    b"uuid",
    b"sidx",
    b"styp",
    b"mfra",
    b"meta",
    b"pnot",
}


def _cut_box(file: BinaryIO, size: int) -> str | None:
    """Whether the last box of an MP4 ends behind the end of the file."""
    at = 0
    for _ in range(MEDIA_CHUNKS):
        file.seek(at)
        head = file.read(16)
        if len(head) < 8:
            return None
        length, name = struct.unpack(">I4s", head[:8])
        if length == 1 and len(head) == 16:
            length = struct.unpack(">Q", head[8:])[0]
        if length < 8 or name not in BOXES:
            return None
        at += length
        if at - size > SLACK:
            return f"{at - size:,} bytes of its {name.decode('latin-1')} box are missing"
    return None


def _cut_segment(file: BinaryIO, size: int) -> str | None:
    """Whether the segment of a Matroska or WebM file ends behind the end of the file; one that
    is still written has no size."""
    at = 4
    file.seek(0)
    head = file.read(4096)
    length, step = _ebml_size(head, at)
    if length is None:
        return None
    at += step + length
    file.seek(at)
    head = file.read(12)
    if head[:4] != b"\x18\x53\x80\x67":
        return None
    length, step = _ebml_size(head, 4)
    return _beyond(at + 4 + step + length - size) if length is not None else None


def _ebml_size(data: bytes, at: int) -> tuple[int | None, int]:
    """(value, bytes it takes); None for an unknown size."""
    step = 9 - data[at].bit_length()
    value = int.from_bytes(data[at : at + step], "big") & ((1 << 7 * step) - 1)
    return (None if value == (1 << 7 * step) - 1 else value), step


# --- FLAC


def _flac(file: BinaryIO, size: int, begin: int) -> Look:
    """Exact when the last frame header of the file, told by its checksum, is of a frame that
    ends at the sample which STREAMINFO claims, and no other stream begins. Whether that frame is
    whole, decoding finds out."""
    file.seek(begin + 4)
    head = file.read(38)
    if head[0] & 0x7F or len(head) < 38:
        return Look("flac", why=NO_LENGTH)
    fixed = struct.unpack(">H", head[4:6])[0]
    largest = int.from_bytes(head[11:14], "big") or 1 << 17
    total = int.from_bytes(head[17:22], "big") & (1 << 36) - 1
    if size > MEDIA_SCANNED_BYTES or not total:
        return Look("flac", why=NO_LENGTH, samples=total, flags=() if total else ("unsized",))
    marks = _marks(file, begin, (b"fLaC\x00\x00\x00\x22", b"fLaC\x80\x00\x00\x22"))
    if len(marks) > 1:
        return Look("flac", why=SEVERAL, parts=tuple(zip(marks, [*marks[1:], size], strict=True)))
    tail = min(size - begin, largest + 64)
    file.seek(size - tail)
    end = _flac_end(file.read(tail), fixed)
    return Look("flac", exact=True) if end == total else Look("flac", why=NO_LENGTH, samples=total)


def _marks(file: BinaryIO, at: int, marks: tuple[bytes, ...], step: int = 1 << 20) -> list[int]:
    """Where `marks`, of one length, stand in the file from `at` on."""
    file.seek(at)
    found, before = set(), b""
    while block := file.read(step):
        data = before + block
        for mark in marks:
            place = -1
            while (place := data.find(mark, place + 1)) >= 0:
                found.add(at - len(before) + place)
        at += len(block)
        before = data[1 - len(marks[0]) :]
    return sorted(found)


def _flac_end(tail: bytes, fixed: int) -> int | None:
    """The sample behind the last frame in `tail`, the last bytes of a file; None when there is
    none."""
    at = len(tail)
    while (at := tail.rfind(b"\xff", 0, at)) >= 0:
        if at + 16 <= len(tail) and tail[at + 1] & 0xFC == 0xF8:
            end = _flac_frame(tail[at : at + 20], fixed)
            if end is not None:
                return end
    return None


def _flac_frame(head: bytes, fixed: int) -> int | None:
    """The sample behind the frame that begins with `head`; None where its checksum says that it
    is no frame (RFC 9639 section 9.1)."""
    variable = head[1] & 1
    code, rate = head[2] >> 4, head[2] & 15
    first = head[4]
    extra = 0 if first < 0x80 else 7 - (first ^ 0xFF).bit_length()
    if extra < 0 or extra > 6 or 0x80 <= first < 0xC0:
        return None
    number = first if not extra else first & (0x3F >> extra)
    for byte in head[5 : 5 + extra]:
        number = number << 6 | byte & 0x3F
    at = 5 + extra
    if code == 0:
        return None
    if code == 1:
        length = 192
    elif code <= 5:
        length = 576 << (code - 2)
    elif code == 6:
        length, at = head[at] + 1, at + 1
    elif code == 7:
        length, at = struct.unpack(">H", head[at : at + 2])[0] + 1, at + 2
    else:
        length = 256 << (code - 8)
    at += {12: 1, 13: 2, 14: 2}.get(rate, 0)
    if _crc8(head[:at]) != head[at]:
        return None
    return (number if variable else number * fixed) + length


def _crc8(data: bytes) -> int:
    """The checksum of a frame header: polynomial 0x107."""
    value = 0
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value << 1 ^ (0x107 if value & 0x80 else 0)
    return value


# --- Ogg

PAGE = struct.Struct("<4sBBqIIIB")  # RFC 3533 section 6


def _ogg(file: BinaryIO, size: int) -> Look:
    """Exact for one stream of Vorbis or Opus that begins at 0 and whose last page bears the
    end-of-stream mark. A stream without that mark is cut off."""
    open_streams: set[int] = set()
    begun, first_packets, late, junk = 0, b"", False, False
    longest, seen = 0, False
    at = 0
    links: list[int] = []  # where streams begin while no other is open
    while at < size:
        file.seek(at)
        head = file.read(PAGE.size + 255)
        if head[:4] != b"OggS" or len(head) < PAGE.size:
            at, junk = _next_page(file, at + 1), True
            continue
        _, _, kind, granule, serial, _, _, count = PAGE.unpack_from(head)
        lacing = head[PAGE.size : PAGE.size + count]
        body = at + PAGE.size + count
        end = body + sum(lacing)
        if len(lacing) < count or end > size:
            return Look("ogg", missing="its last page is not complete")
        if kind & 2:
            begun += 1
            if not open_streams:
                links.append(at)
            open_streams.add(serial)
            file.seek(body)
            first_packets = first_packets or file.read(32)
            longest = _longest_packet(first_packets)
        elif not seen and granule > 0:
            seen = True
            late = granule > longest * (count + 1)
        if kind & 4:
            open_streams.discard(serial)
        at = end
    if open_streams:
        return Look("ogg", missing="its last page bears no end-of-stream mark")
    if len(links) > 1:
        return Look("ogg", why=SEVERAL, parts=tuple(zip(links, [*links[1:], size], strict=True)))
    if begun > 1:
        return Look("ogg")  # beside one another: a picture, or several tracks
    exact = bool(longest) and not late and not junk
    return Look("ogg", exact=exact, why=None if exact else NO_LENGTH)


def _longest_packet(packet: bytes) -> int:
    """Most samples that a packet of the stream can hold; 0 for codecs other than Vorbis and
    Opus."""
    if packet[:7] == b"\x01vorbis":
        return 1 << (packet[28] >> 4)
    return 5760 if packet[:8] == b"OpusHead" else 0


def _next_page(file: BinaryIO, at: int) -> int:
    """Where the next page begins; the end of the file if there is none."""
    file.seek(at)
    while block := file.read(1 << 16):
        found = block.find(b"OggS")
        if found >= 0:
            return at + found
        at += max(1, len(block) - 3)
        if len(block) < 1 << 16:
            break
        file.seek(at)
    return file.seek(0, os.SEEK_END)


# --- MP3 and AAC: frame after frame

BIT_RATES = {  # kbit/s by index, of MPEG-1 and MPEG-2 layer III
    True: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    False: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}  # fmt: skip
AC3_BIT_RATES = (
    32,
    40,
    48,
    56,
    64,
    80,
    96,
    112,
    128,
    160,
    192,
    224,
    256,
    320,
    384,
    448,
    512,
    576,
    640,
)
SAMPLE_RATES = (44_100, 48_000, 32_000)


@dataclass(frozen=True, slots=True)
class _Frame:
    length: int  # bytes
    samples: int
    settings: tuple  # what does not change within a stream


def _mp3_frame(data: bytes, at: int) -> _Frame | None:
    """The frame of MPEG layer III at `at`, if there is one."""
    if at + 4 > len(data) or data[at] != 0xFF or data[at + 1] & 0xE6 != 0xE2:
        return None
    version = data[at + 1] >> 3 & 3  # 0: 2.5, 2: 2, 3: 1
    index, rate = data[at + 2] >> 4, data[at + 2] >> 2 & 3
    if version == 1 or rate == 3 or index in (0, 15):
        return None
    hertz = SAMPLE_RATES[rate] >> {3: 0, 2: 1, 0: 2}[version]
    samples = 1152 if version == 3 else 576
    length = samples // 8 * BIT_RATES[version == 3][index] * 1000 // hertz + (data[at + 2] >> 1 & 1)
    return _Frame(length, samples, (version, hertz, data[at + 3] >> 6 == 3))


def _adts_frame(data: bytes, at: int) -> _Frame | None:
    """The frame of AAC in ADTS at `at`, if there is one."""
    if at + 7 > len(data) or data[at] != 0xFF or data[at + 1] & 0xF6 != 0xF0:
        return None
    length = (data[at + 3] & 3) << 11 | data[at + 4] << 3 | data[at + 5] >> 5
    return (
        _Frame(length, 1024, (data[at + 2] & 0xFD,))
        if length >= 7 and data[at + 2] >> 2 & 15 < 13
        else None
    )


def _ac3_frame(data: bytes, at: int) -> _Frame | None:
    """The frame of AC-3 or E-AC-3 at `at`, if there is one (ATSC A/52 sections 5.4.1 and
    E.2.3.1)."""
    if at + 8 > len(data) or data[at : at + 2] != b"\x0b\x77":
        return None
    rate, size, edition = data[at + 4] >> 6, data[at + 4] & 63, data[at + 5] >> 3
    if edition > 10:  # E-AC-3
        return _Frame(2 * ((data[at + 2] & 7) << 8 | data[at + 3]) + 2, 1536, ())
    if rate == 3 or size > 37:
        return None
    kbits = AC3_BIT_RATES[size >> 1]
    words = {0: 2 * kbits, 1: kbits * 96_000 // 44_100 + (size & 1), 2: 3 * kbits}[rate]
    return _Frame(2 * words, 1536, (rate,))


def _frames(file: BinaryIO, size: int, begin: int) -> Look:
    """MP3 and ADTS: walk from frame to frame. Exact for an MP3 whose Xing or Info header counts
    the frames that are there."""
    if size > MEDIA_SCANNED_BYTES:
        return Look("", why=NO_LENGTH)
    file.seek(begin)
    data = file.read()
    for kind, frame_at in (("mp3", _mp3_frame), ("aac", _adts_frame), ("ac3", _ac3_frame)):
        for at in range(min(len(data), UNTIL)):
            first = data[at] in (0xFF, 0x0B) and frame_at(data, at)
            following = first and (
                frame_at(data, at + first.length) or at + first.length >= len(data) - 160
            )
            if following and (at == 0 or _run(data, at, frame_at, 4)):
                return _walk(kind, data, at, frame_at)
    return Look("")


def _run(data: bytes, at: int, frame_at, count: int) -> bool:
    """Whether `count` frames follow one another from `at` on."""
    for _ in range(count):
        frame = frame_at(data, at)
        if frame is None:
            return False
        at += frame.length
    return True


def _walk(kind: str, data: bytes, at: int, frame_at) -> Look:
    first = frame_at(data, at)
    claimed, claimed_bytes = (
        _mp3_header(data[at : at + first.length]) if kind == "mp3" else (None, None)
    )
    begin, end, frames, broken, beyond = at, _without_tags(data), 0, False, 0
    settings, parts = (
        first.settings,
        [0],
    )  # an AAC decoder takes the settings of a stream's first frame for all
    while at < end:
        frame = frame_at(data, at)
        if frame is None:
            broken, at = True, _resync(data, at + 1, end, frame_at)
            continue
        if frame.settings != settings and _run(data, at, frame_at, 3):
            broken, settings = True, frame.settings
            parts.append(at)
        if at + frame.length > end:
            beyond = at + frame.length - end
            break
        frames += 1
        at += frame.length
    counted = frames - (claimed is not None)
    if (
        claimed_bytes is not None
        and claimed is not None
        and claimed - counted > 2
        and begin + claimed_bytes - end > 2 * first.length
    ):
        return Look(kind, missing=f"{counted:,} of {claimed:,} frames are there")
    if claimed is not None and claimed_bytes is None and claimed - counted > 2 and beyond:
        return Look(kind, missing=f"{counted:,} of {claimed:,} frames are there")
    if beyond and begin == 0 and not broken and (claimed is None or counted < claimed):
        return Look(
            kind, missing=f"its last frame ends {beyond:,} bytes behind the end of the file"
        )
    if kind == "ac3":
        return Look(kind, why=NEW)
    if kind == "aac":
        ranges = (
            tuple(zip(parts, [*parts[1:], len(data)], strict=True))
            if 1 < len(parts) < MEDIA_CHUNKS
            else ()
        )
        return Look(kind, why=SEVERAL if broken else None, parts=ranges)
    exact = claimed == counted and not broken
    return Look(kind, exact=exact, why=None if exact else NO_LENGTH)


def _resync(data: bytes, at: int, end: int, frame_at) -> int:
    """Where frames go on behind something else."""
    sync = b"\x0b\x77" if frame_at is _ac3_frame else b"\xff"
    while 0 <= (at := data.find(sync, at, end)):
        if _run(data, at, frame_at, 2):
            return at
        at += 1
    return end


def _mp3_header(frame: bytes) -> tuple[int | None, int | None]:
    """(frames, bytes) that a Xing, Info or VBRI header claims."""
    for name in (b"Xing", b"Info"):
        at = frame.find(name, 4, 60)
        if at >= 0 and len(frame) >= at + 16:
            fields, one, two = struct.unpack(">III", frame[at + 4 : at + 16])
            if not fields & 1:
                return None, one if fields & 2 else None
            return one, two if fields & 2 else None
    if frame[36:40] == b"VBRI":
        size, frames = struct.unpack(">II", frame[46:54])
        return frames, size
    return None, None


def _without_tags(data: bytes) -> int:
    """Where the audio ends: before ID3v1, APE and Lyrics3 tags and padding."""
    end = len(data)
    for _ in range(8):
        if data[end - 128 : end - 125] == b"TAG":
            end -= 128
        elif data[end - 32 : end - 24] == b"APETAGEX":
            size, _, flags = struct.unpack("<III", data[end - 20 : end - 8])
            end -= min(end, size + 32 * (flags >> 31))
        elif data[end - 9 : end] == b"LYRICS200" and data[end - 15 : end - 9].isdigit():
            end -= min(end, int(data[end - 15 : end - 9]) + 15)
        else:
            break
    return len(data[:end].rstrip(b"\0")) if data[end - 1 : end] == b"\0" else end


# --- what it is instead

ZEROS = "only zero bytes"
MEDIA_TEXT = (
    b"NIST_1A",
    b"RIFF",
    b"RF64",
    b"FORM",
    b"fLaC",
    b"OggS",
    b"caff",
    b".snd",
    b"#!AMR",
    b"Creative Voice",
    b"ID3",
    b"MThd",
)


def other_content(head: bytes) -> str | None:
    """What a file is that is no media file, told by its first bytes; None where they may be media.

    Args:
        head: The first bytes, 512 where the file has them: fewer may look like text by chance.

    Returns:
        A phrase such as "a text file".
    """
    if not head or head.startswith(MEDIA_TEXT):
        return None
    found = beginnings.recognise(head)
    if found is beginnings.ZEROS:
        return ZEROS
    if found is not None and found is not beginnings.TAR:  # what a tar holds may be media by chance
        return "; ".join(filter(None, (found.name, found.remedy)))
    if all(32 <= byte < 127 or byte in b"\t\r\n" for byte in head):
        return "a text file"
    return None
