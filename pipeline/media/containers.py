"""What a media file's own bytes say of its length, read without a decoder.

A length in a header is a hint: writers to a pipe leave a placeholder, and whoever appends a file
to another leaves the first one's. `look` holds it against the bytes. Where they agree, soundfile
may stop at that length; where they do not, the file is decoded to the end of its data. A file
counts as cut off only when its bytes say so: a chunk, box, page or frame that ends behind the
end of the file.
"""

from __future__ import annotations

import errno
import os
import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import BinaryIO, NamedTuple

from mer.pipeline.media.looks import CODED, CUT, LAYOUT, NEW, NO_LENGTH, SEVERAL, Look
from mer.pipeline.media.oggpages import look_at_pages
from mer.pipeline.media.soundframes import look_at_frames
from mer.pipeline.runtime import beginnings
from mer.pipeline.runtime.limits import MEDIA_CHUNKS, MEDIA_SCANNED_BYTES

# The decoder's version; raise it when files whose `why` is not None would decode otherwise.
DECODER = 2
# Raise it when `why` is said of other files than before: what was remembered of them is looked at
# again.
LOOK_VERSION = 2
# By so much a size may be too large before something counts as missing: writers count a header in,
# or a byte too much.
SLACK_BYTES = 64
ASF_HEADER_BYTES = 64 * 1024  # searched for the properties of an ASF file
# A size from here on is what writers to a pipe leave: SoX 0x7F000000 in AIFF, others 0x7FFFFFFF.
ENDLESS_BYTES = 0x7F00_0000
TTA_HEADER_BYTES = 22
APE_TAG_BYTES = 32  # of the header of an APE tag, and of its footer
HEAD_BYTES = 64  # from the beginning of a file, by which its container is told
BLOCK_BYTES = 1 << 20  # searched at a time


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
        head = file.read(HEAD_BYTES)
        try:
            found = _look(file, size, begin, head)
        except (struct.error, IndexError, OverflowError):
            return Look("")  # it ends within a header: the decoder will say so
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return Look("")  # a size that no file has led beyond what can be sought
    noticed_before = found.kind == "wav" and head[:4] == b"RIFF"  # by the first version
    return replace(found, why=CUT) if found.missing and not noticed_before else found


def _look(file: BinaryIO, size: int, begin: int, head: bytes) -> Look:
    """The look of the container that the first bytes, `head`, are those of."""
    if head[:4] in (b"RIFF", b"RF64", b"BW64", b"RIFX") and head[8:12] == b"WAVE":
        return _wav(file, size, begin, head)
    if head[:4] == b"FORM" and head[8:12] not in (b"AIFF", b"AIFC"):
        end = begin + 8 + struct.unpack(">I", head[4:8])[0]
        cut = _beyond(end - size) if end < ENDLESS_BYTES else None
        return Look("", missing=cut, flags=_another(file, end, size, b"FORM"))
    if head[:4] == b"RIFF" and head[8:11] == b"AVI":
        claimed = begin + 8 + struct.unpack("<I", head[4:8])[0]
        return Look("avi", missing=_beyond(claimed - size) if claimed < ENDLESS_BYTES else None)
    if head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"):
        return _aiff(file, size, begin, head)
    if head[4:8] in FIRST_BOXES:
        return _mp4(file, size)
    for signature, look_at in LOOKS:
        if head.startswith(signature):
            return look_at(file, size, begin)
    return look_at_frames(file, size, begin) if begin else Look("")


def _au(file: BinaryIO, size: int, begin: int) -> Look:
    file.seek(begin + 4)
    start, length = struct.unpack(">II", file.read(8))
    if length + SLACK_BYTES < size - start:  # 0, or a length that was never brought up to date
        patch = begin + 8, struct.pack(">I", 0xFFFFFFFF)
        return Look("au", why=NO_LENGTH, flags=("unsized",), patch=patch)
    return _sized("au", length, size - start, whole=False)


def _matroska(file: BinaryIO, size: int, begin: int) -> Look:
    return Look("matroska", missing=_cut_segment(file, size))


VOC_HEADER = b"Creative Voice File\x1a"


def _voc(file: BinaryIO, size: int, begin: int) -> Look:
    """Its block sizes are not to be relied on: SoX writes wrong ones. So a second header is looked
    for.
    """
    again = size <= MEDIA_SCANNED_BYTES and len(_marks(file, begin, size, VOC_MARK)) > 1
    return Look("voc", why=NEW, flags=("trailing",) if again else ())


def _flv(file: BinaryIO, size: int, begin: int) -> Look:
    missing, end = _cut_flv(file, size)
    return Look("flv", missing=missing, flags=_another(file, end, size, b"FLV\x01"))


def _tta(file: BinaryIO, size: int, begin: int) -> Look:
    """TTA1: its frames' sizes are in a table; a frame is 256/245 of a second."""
    file.seek(begin + 10)
    rate, samples = struct.unpack("<II", file.read(8))
    frame = 256 * rate // 245
    count = -(-samples // frame) if frame else 0
    if not 0 < count <= MEDIA_CHUNKS:
        return Look("")
    file.seek(begin + TTA_HEADER_BYTES)
    sizes = struct.unpack(f"<{count}I", file.read(4 * count))
    end = begin + TTA_HEADER_BYTES + 4 * count + 4 + sum(sizes)
    file.seek(end)
    tag = file.read(16)
    if tag.startswith(b"APETAGEX"):
        end += APE_TAG_BYTES + struct.unpack("<I", tag[12:16])[0]
    return Look("", flags=_another(file, end, size, b"TTA1"))


def _asf(file: BinaryIO, size: int, begin: int) -> Look:
    claimed = _asf_size(file)
    if claimed is None:
        return Look("asf")
    flags = _another(file, claimed, size, ASF_HEADER)
    return Look("asf", missing=_beyond(claimed - size), flags=flags)


def _beyond(missing: int) -> str | None:
    """What is missing, where that is more than writers miscount."""
    return f"{missing:,} bytes are missing" if missing > SLACK_BYTES else None


def _another(file: BinaryIO, end: int, size: int, signature: bytes) -> tuple[str, ...]:
    """The flag of a file that another one follows at `end`, behind a byte of padding at most: no
    decoder reads it.
    """
    if end <= 0 or end >= size:
        return ()
    file.seek(end)
    rest = file.read(len(signature) + 1)
    return ("trailing",) if rest.startswith(signature) or rest[1:] == signature else ()


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
    """The look at a file whose audio claims `length` bytes where `available` are there.

    `whole`: its outer size vouches for it.
    """
    missing = length - available
    if length == 0 and available > 0:
        return Look(kind, why=NO_LENGTH, flags=("unsized",))
    if missing <= 0:
        return Look(kind, exact=True, flags=flags)
    if length >= ENDLESS_BYTES:
        # Libsndfile takes what is there, and always did.
        return Look(kind, exact=True, flags=("unsized",))
    if whole or missing <= SLACK_BYTES or _placeholder(length):
        return Look(kind, exact=True, why=NO_LENGTH, flags=("unsized",))
    return Look(kind, missing=f"{missing:,} of {length:,} bytes of audio are missing")


def _placeholder(length: int) -> bool:
    """Sizes that nobody records by chance: a round number of 10⁸ bytes or more, or a power of two
    with or without a header.
    """
    if length >= 10**8 and length % 10**6 == 0:
        return True
    power = 1 << (length + SLACK_BYTES).bit_length() - 1
    return length >= 1 << 27 and abs(length - power) <= SLACK_BYTES


class Mark(NamedTuple):
    """What a stream begins with; `length` in bytes."""

    pattern: re.Pattern[bytes]
    length: int


VOC_MARK = Mark(re.compile(re.escape(VOC_HEADER)), len(VOC_HEADER))


def _marks(file: BinaryIO, begin: int, size: int, mark: Mark) -> list[int]:
    """Where streams begin in a file, from `begin` on.

    The whole file is searched, since nothing else tells a second stream of the same length from the
    end of the first. One pass takes 0.3 ms per MB.
    """
    found: list[int] = []
    file.seek(begin)
    at, before = begin, b""
    # Asked for more than there is, Python would allocate all of it first.
    while block := file.read(min(BLOCK_BYTES, max(1, size - at))):
        data = before + block if before else block
        place = at - len(before)
        found += [place + match.start() for match in mark.pattern.finditer(data)]
        at += len(block)
        before = data[1 - mark.length :]
    return found


def _chunks(file: BinaryIO, at: int, size: int, form: str) -> Iterator[tuple[bytes, int, int]]:
    """(name, where its content begins, its size) of each chunk from `at` on; `form` is how struct
    reads a chunk's head.
    """
    step = struct.calcsize(form)
    for _ in range(MEDIA_CHUNKS):
        file.seek(at)
        head = file.read(step)
        if len(head) < step:
            return
        name, length = struct.unpack(form, head)
        yield name, at + step, length
        at += step + length + length % 2


# Format tags of WAV: integers, floats, A-law and µ-law, of which a sample has a fixed size; and
# ADPCM and GSM, of which libsndfile counts blocks.
WAV_PCM = {1, 3, 6, 7}
WAV_BLOCKS = {2, 0x11, 0x31, 0x64, 0x65, 0x40, 0x45, 0x200}
WAV_EXTENSIBLE = 0xFFFE  # the tag stands in the extension
TRAILER_BYTES = 8  # behind the audio that need no explanation


def _wav(file: BinaryIO, size: int, begin: int, head: bytes) -> Look:
    """WAV and its kin RIFX, RF64 and BW64, of which the latter two have 64-bit sizes in ds64."""
    order = ">" if head[:4] == b"RIFX" else "<"
    outer = struct.unpack(order + "I", head[4:8])[0]
    whole = abs(begin + outer + 8 - size) <= SLACK_BYTES
    tag, long_size, long_at = 1, None, 0
    for name, at, length in _chunks(file, begin + 12, size, order + "4sI"):
        if name == b"ds64":
            file.seek(at)
            long_outer, long_size = struct.unpack("<QQ", file.read(16))
            long_at = at + 8
            whole = abs(begin + long_outer + 8 - size) <= SLACK_BYTES
        elif name == b"fmt ":
            file.seek(at)
            content = file.read(26)
            tag = struct.unpack(order + "H", content[:2])[0]
            if tag == WAV_EXTENSIBLE:
                tag = struct.unpack(order + "H", content[24:26])[0]
        elif name == b"data":
            available = size - at
            patch = at - 4, struct.pack(order + "I", 0xFFFFFFFF)
            if length == 0xFFFFFFFF and long_size is not None:
                length, patch = long_size, (long_at, struct.pack("<Q", available))
            if length == 0 and _tidy_end(file, at, size, order):
                return Look("wav", exact=True)
            if length <= SLACK_BYTES < available and not _tidy_end(file, at + length, size, order):
                # nothing, or the size of a header: FFmpeg takes nothing but 0 for no size
                return Look("wav", why=NO_LENGTH, flags=("unsized",), patch=patch)
            tidy = length >= available or _tidy_end(file, at + length, size, order)
            flags = () if tidy else ("trailing",)
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
        if size - start <= TRAILER_BYTES or not rest.strip(b"\0"):
            return True
        if rest.startswith((b"TAG", b"ID3", b"APETAGEX")):
            return True
        if rest[:4] in (b"RIFF", b"RF64"):
            return False
        end = start
        for name, where, length in _chunks(file, start, size, order + "4sI"):
            end = where + length
            if not all(32 <= byte < 127 for byte in name) or end > size + SLACK_BYTES:
                break
        else:
            return True
        if end != start and abs(end - size) <= 1:
            return True
    return False


def _aiff(file: BinaryIO, size: int, begin: int, head: bytes) -> Look:
    end = begin + struct.unpack(">I", head[4:8])[0] + 8
    whole, flags = abs(end - size) <= SLACK_BYTES, _another(file, end, size, b"FORM")
    for name, at, length in _chunks(file, begin + 12, size, ">4sI"):
        if name == b"SSND":
            found = _sized("aiff", max(0, length - 8), size - at - 8, whole=whole, flags=flags)
            if length <= 8 < size - at:  # a writer to a pipe left it
                return replace(found, patch=_aiff_sizes(file, begin, at, size))
            return found
    return Look("aiff")


def _aiff_sizes(file: BinaryIO, begin: int, at: int, size: int) -> tuple[int, bytes]:
    """The patch that gives a file and its SSND chunk, whose content begins at `at`, their sizes."""
    file.seek(begin + 8)
    between = file.read(at - 4 - (begin + 8))
    outer, inner = struct.pack(">I", size - begin - 8), struct.pack(">I", size - at)
    return begin + 4, outer + between + inner


def _caf(file: BinaryIO, size: int, begin: int) -> Look:
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
            found = _sized("caf", max(0, length - 4), size - at - 16, whole=False)
            flags = _second_caf(file, at + 12 + length, size)
            return replace(found, flags=(*found.flags, *flags))
        if length < 0:
            break
        at += 12 + length
    return Look("caf")


def _second_caf(file: BinaryIO, at: int, size: int) -> tuple[str, ...]:
    """The flag of a file whose chunks from `at` on are followed by another file."""
    for _ in range(MEDIA_CHUNKS):
        flags = _another(file, at, size, b"caff")
        if flags or at >= size:
            return flags
        file.seek(at)
        head = file.read(12)
        length = struct.unpack(">4sq", head)[1] if len(head) == 12 else -1
        if length < 0:
            return ()
        at += 12 + length
    return ()


def _w64(file: BinaryIO, size: int, begin: int) -> Look:
    at = 40
    for _ in range(MEDIA_CHUNKS):
        file.seek(at)
        head = file.read(24)
        if len(head) < 24:
            break
        name, length = head[:4], struct.unpack("<Q", head[16:])[0]
        if name == b"data":
            end = at + length
            if 24 <= length and end + SLACK_BYTES < size:  # libsndfile takes what follows for audio
                return Look("w64", why=NO_LENGTH, flags=("trailing",), parts=((0, end),))
            return _sized("w64", max(0, length - 24), size - at - 24, whole=False)
        if length < 24:
            break
        at += (length + 7) // 8 * 8
    return Look("w64")


SPHERE_LINES = 200  # of a header that are read


def _sphere(file: BinaryIO, size: int, begin: int) -> Look:
    """NIST SPHERE: a text header of a fixed size, then samples."""
    file.seek(0)
    text = file.read(1 << 16).decode("latin-1")
    lines = text.splitlines()
    fields = {}
    for line in lines[2:SPHERE_LINES]:
        parts = line.split(None, 2)
        if len(parts) == 3:
            fields[parts[0]] = parts[2]
    coding = fields.get("sample_coding", "pcm")
    if "embedded" in coding:  # shorten: its length is not in the header
        return Look("sphere", why=NEW)
    try:
        header = int(lines[1])
        channels = int(fields.get("channel_count", 1))
        width = int(fields.get("sample_n_bytes", 2))  # bytes per sample
        claimed = int(fields["sample_count"]) * channels * width
    except (KeyError, ValueError, IndexError):
        return Look("sphere", why=NEW)
    missing = claimed - (size - header)
    said = f"{missing:,} of {claimed:,} bytes of audio are missing"
    flags = ("unsized",) if missing < -SLACK_BYTES else ()  # libsndfile reads to the end
    cut = said if missing > SLACK_BYTES else None
    return Look("sphere", exact=True, why=NEW, missing=cut, flags=flags)


def _cut_flv(file: BinaryIO, size: int) -> tuple[str | None, int]:
    """What is missing of an FLV file whose last tag ends behind the end of the file, and where its
    tags end.
    """
    file.seek(5)
    at = struct.unpack(">I", file.read(4))[0] + 4
    for _ in range(MEDIA_SCANNED_BYTES >> 8):
        file.seek(at)
        head = file.read(11)
        if head and head[0] in (8, 9, 18) and len(head) < 11:
            return "its last tag is not complete", at
        if not head or head[0] not in (8, 9, 18):
            return None, at
        at += 11 + int.from_bytes(head[1:4], "big")
        if at > size:
            return f"{at - size:,} bytes of its last tag are missing", at
        at += 4
    return None, 0


ASF_HEADER = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")


def _asf_size(file: BinaryIO) -> int | None:
    """Bytes of an ASF file (WMA, WMV) by its properties."""
    file.seek(0)
    head = file.read(ASF_HEADER_BYTES)
    at = head.find(bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365"))
    if at < 0 or at + 48 > len(head):
        return None
    return struct.unpack("<Q", head[at + 40 : at + 48])[0]


# Boxes that stand at the top level of an MP4 file.
BOXES = {
    b"ftyp", b"moov", b"mdat", b"moof", b"free", b"skip", b"wide", b"udta", b"uuid", b"sidx",
    b"styp", b"mfra", b"meta", b"pnot",
}  # fmt: skip


def _mp4(file: BinaryIO, size: int) -> Look:
    """Cut off where its last box ends behind the end of the file. A second file behind the first is
    not read, unless both are in fragments.
    """
    at, begun, fragments = 0, 0, False
    for _ in range(MEDIA_CHUNKS):
        file.seek(at)
        head = file.read(16)
        if len(head) < 8:
            break
        length, name = struct.unpack(">I4s", head[:8])
        if length == 1 and len(head) == 16:
            length = struct.unpack(">Q", head[8:])[0]
        if length < 8 or name not in BOXES:
            break
        begun += name == b"ftyp"
        fragments = fragments or name == b"moof"
        at += length
        if at - size > SLACK_BYTES:
            said = f"{at - size:,} bytes of its {name.decode('latin-1')} box are missing"
            return Look("mp4", missing=said)
    return Look("mp4", flags=("trailing",) if begun > 1 and not fragments else ())


def _cut_segment(file: BinaryIO, size: int) -> str | None:
    """What is missing of a Matroska or WebM file whose segment ends behind the end of the file; one
    that is still written has no size.
    """
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

# The mark of a stream and the head of its STREAMINFO, which may be the last block of metadata.
FLAC_MARK = Mark(re.compile(rb"fLaC[\x00\x80]\x00\x00\x22"), 8)
FLAC_COMMENTS = 4  # the kind of a metadata block
FLAC_LAYOUT = b"WAVEFORMATEXTENSIBLE_CHANNEL_MASK="  # begins the comment that names channels


def _flac(file: BinaryIO, size: int, begin: int) -> Look:
    """Exact when the last frame header of the file, told by its checksum, is of a frame that ends
    at the sample which STREAMINFO claims, and no other stream begins.

    Whether that frame is whole, decoding finds out.
    """
    file.seek(begin + 4)
    head = file.read(38)
    if head[0] & 0x7F or len(head) < 38:
        return Look("flac", why=NO_LENGTH)
    fixed = struct.unpack(">H", head[4:6])[0]
    largest = int.from_bytes(head[11:14], "big") or 1 << 17
    total = int.from_bytes(head[17:22], "big") & (1 << 36) - 1
    channels = (head[16] >> 1 & 7) + 1
    if size > MEDIA_SCANNED_BYTES or not total:
        return Look("flac", why=NO_LENGTH, samples=total, flags=() if total else ("unsized",))
    marks = _marks(file, begin, size, FLAC_MARK)
    if len(marks) > 1:
        return Look("flac", why=SEVERAL, parts=tuple(zip(marks, [*marks[1:], size], strict=True)))
    tail = min(size - begin, largest + 64)
    file.seek(size - tail)
    end = _flac_end(file.read(tail), fixed)
    if end != total:
        return Look("flac", why=NO_LENGTH, samples=total)
    if channels > 2 and _names_channels(file, begin):  # libsndfile takes no notice
        return Look("flac", why=LAYOUT, samples=total)
    return Look("flac", exact=True)


def _names_channels(file: BinaryIO, begin: int) -> bool:
    """Whether a FLAC file says in a comment which channels it has, instead of leaving that to their
    number (RFC 9639 section 8.6.2).
    """
    at = begin + len(b"fLaC")
    for _ in range(MEDIA_CHUNKS):
        file.seek(at)
        head = file.read(4)
        if len(head) < 4:
            break
        kind, length = head[0] & 0x7F, int.from_bytes(head[1:], "big")
        if kind == FLAC_COMMENTS:
            return FLAC_LAYOUT in file.read(length).upper()
        if head[0] & 0x80:  # the last
            break
        at += 4 + length
    return False


def _flac_end(tail: bytes, fixed: int) -> int | None:
    """The sample behind the last frame in `tail`, the last bytes of a file; None when there is
    none.
    """
    at = len(tail)
    while (at := tail.rfind(b"\xff", 0, at)) >= 0:
        if at + 16 <= len(tail) and tail[at + 1] & 0xFC == 0xF8:
            end = _flac_frame(tail[at : at + 20], fixed)
            if end is not None:
                return end
    return None


def _flac_frame(head: bytes, fixed: int) -> int | None:
    """The sample behind the frame that begins with `head`; None where its checksum says that it is
    no frame (RFC 9639 section 9.1).
    """
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


def _crc8_of(byte: int) -> int:
    """The checksum of one byte: polynomial 0x107."""
    for _ in range(8):
        byte = byte << 1 ^ (0x107 if byte & 0x80 else 0)
    return byte


CRC8 = tuple(map(_crc8_of, range(256)))


def _crc8(data: bytes) -> int:
    """The checksum of a frame header."""
    value = 0
    for byte in data:
        value = CRC8[value ^ byte]
    return value


# --- what it is instead

ZEROS = "only zero bytes"
# What begins like text and is media.
MEDIA_TEXT = (
    b"NIST_1A", b"RIFF", b"RF64", b"FORM", b"fLaC", b"OggS", b"caff", b".snd", b"#!AMR",
    b"Creative Voice", b"ID3", b"MThd",
)  # fmt: skip


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
    if found is beginnings.GIF:  # a film, of one picture perhaps
        return None
    if found is beginnings.ZEROS:
        return ZEROS
    if found is not None and found is not beginnings.TAR:  # what a tar holds may be media by chance
        return "; ".join(filter(None, (found.name, found.remedy)))
    if all(32 <= byte < 127 or byte in b"\t\r\n" for byte in head):
        return "a text file"
    return None


# --- which container a file is, told by its first bytes

FIRST_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"styp", b"pnot")
LOOKS: tuple[tuple[bytes, Callable[[BinaryIO, int, int], Look]], ...] = (
    (b".snd", _au),
    (b"caff", _caf),
    (b"riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb\x04\xc1\x00\x00", _w64),
    (b"fLaC", _flac),
    (b"OggS", look_at_pages),
    (b"\x1a\x45\xdf\xa3", _matroska),
    (b"NIST_1A", _sphere),
    (b"Creative Voice File", _voc),
    (b"FLV\x01", _flv),
    (b"TTA1", _tta),
    (b"\x30\x26\xb2\x75", _asf),
    (b"\x0b\x77", look_at_frames),
    (b"\xff", look_at_frames),
)
