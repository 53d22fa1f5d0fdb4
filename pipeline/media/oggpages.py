"""Ogg, page after page: how many streams there are, and whether the last one is whole."""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass, field
from typing import BinaryIO

from mer.pipeline.media.looks import NO_LENGTH, SEVERAL, Look

# RFC 3533 section 6.
PAGE = struct.Struct("<4sBBqIIIB")
PAGE_SEGMENTS = 255  # at most
BEGIN_OF_STREAM, END_OF_STREAM = 2, 4  # bits of a page's kind


def look_at_pages(file: BinaryIO, size: int, begin: int) -> Look:
    """Exact for one stream of Vorbis or Opus that begins at 0 and whose last page bears the
    end-of-stream mark. A stream without that mark is cut off.
    """
    walk = _OggWalk()
    at = 0
    while at < size:
        file.seek(at)
        head = file.read(PAGE.size + PAGE_SEGMENTS)
        if head[:4] != b"OggS" or len(head) < PAGE.size:
            at, walk.junk = _next_page(file, at + 1), True
            continue
        kind, granule, serial, count = _page(head)
        lacing = head[PAGE.size : PAGE.size + count]
        body = at + PAGE.size + count
        end = body + sum(lacing)
        if len(lacing) < count or end > size:
            return Look("ogg", missing="its last page is not complete")
        if kind & BEGIN_OF_STREAM:
            file.seek(body)
            walk.begin(at, serial, file.read(32))
        else:
            walk.go_on(granule, count)
        if kind & END_OF_STREAM:
            walk.open_streams.discard(serial)
        at = end
    return walk.look(size)


def _page(head: bytes) -> tuple[int, int, int, int]:
    """Kind, granule position, serial number and count of segments of a page."""
    _, _, kind, granule, serial, _, _, count = PAGE.unpack_from(head)
    return kind, granule, serial, count


@dataclass
class _OggWalk:
    """What was met on the way from page to page."""

    open_streams: set[int] = field(default_factory=set)
    links: list[int] = field(default_factory=list)  # where streams begin while no other is open
    begun: int = 0
    first_packet: bytes = b""
    longest: int = 0  # samples that a packet can hold
    seen: bool = False  # a page with samples
    late: bool = False  # and it says that there were others before
    junk: bool = False

    def begin(self, at: int, serial: int, packet: bytes) -> None:
        """A stream begins at a page, with this packet."""
        self.begun += 1
        if not self.open_streams:
            self.links.append(at)
        self.open_streams.add(serial)
        self.first_packet = self.first_packet or packet
        self.longest = _longest_packet(self.first_packet)

    def go_on(self, granule: int, count: int) -> None:
        """A page of `count` segments that ends at the sample `granule`."""
        if not self.seen and granule > 0:
            self.seen = True
            self.late = granule > self.longest * (count + 1)

    def look(self, size: int) -> Look:
        """What it all says of a file of `size` bytes."""
        if self.open_streams:
            return Look("ogg", missing="its last page bears no end-of-stream mark")
        if len(self.links) > 1:
            parts = tuple(zip(self.links, [*self.links[1:], size], strict=True))
            return Look("ogg", why=SEVERAL, parts=parts)
        if self.begun > 1:
            return Look("ogg")  # beside one another: a picture, or several tracks
        exact = bool(self.longest) and not self.late and not self.junk
        return Look("ogg", exact=exact, why=None if exact else NO_LENGTH)


def _longest_packet(packet: bytes) -> int:
    """Most samples that a packet of the stream can hold; 0 for codecs other than Vorbis and
    Opus.
    """
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
