"""What a terminal may see of a value that somebody else chose: no control character of an id,
label, path or transcript reaches it, and no line is longer than it needs to be.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Iterable

from mer.pipeline.runtime.limits import LINE_CHARACTERS, SHOWN_CHARACTERS, SHOWN_NAMES

# C0 with tab and line breaks, DEL, C1, Arabic letter mark, direction marks, line and paragraph
# separators, embeddings and overrides, isolates, byte order mark, and surrogates but those that
# stand for a byte of a file name (PEP 383).
_UNSAFE = (
    "\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udc7f\udd00-\udfff"
)
_CONTROL = re.compile(f"[{_UNSAFE}]")
_CONTROL_BUT_BREAKS = re.compile(rf"(?!\n)[{_UNSAFE}]")
_IN_JSON = re.compile(f"(?!\n)[{_UNSAFE}\udc80-\udcff]")  # bytes of a file name too: JSON is UTF-8
_SPELLED = {"\t": "\\t", "\n": "\\n", "\r": "\\r"}
_CONTAINERS = (list, tuple, dict, set, frozenset)
_LONG_NUMBER_BITS = 4096  # Python refuses to spell whole numbers of more than 4,300 digits


def escape(text: str, *, breaks: bool = False) -> str:
    """`text` with every control character spelled out (`\\x1b`, `\\n`, `\\u202e`), safe on a
    terminal and on one line.

    Args:
        text: One line, or several when `breaks` is set.
        breaks: Leave line feeds as they are, for text that was laid out in lines by mer itself.

    Returns:
        The same text where it holds no control character.
    """
    return (_CONTROL_BUT_BREAKS if breaks else _CONTROL).sub(_spell, text)


def escape_json(text: str) -> str:
    """JSON text with those control characters escaped that JSON itself leaves as they are; it means
    the same.
    """
    return _IN_JSON.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def _spell(match: re.Match) -> str:
    character = match[0]
    if character in _SPELLED:
        return _SPELLED[character]
    return f"\\x{ord(character):02x}" if character < "\u0100" else f"\\u{ord(character):04x}"


def shown(value: object, limit: int = SHOWN_CHARACTERS) -> str:
    """The beginning of a value for a message: at most `limit` characters, control characters
    spelled out.

    Of a container of somebody else's only the outer levels are spelled: a small file may share one
    list so often that the whole text would have no end.
    """
    text = _spelled(value)
    cut = escape(text[: limit + 1])
    return cut if len(cut) <= limit else cut[: limit - 1] + "…"


def _spelled(value: object) -> str:
    if isinstance(value, _CONTAINERS):
        return reprlib.repr(value)
    if isinstance(value, int) and value.bit_length() > _LONG_NUMBER_BITS:
        return f"a number of {value.bit_length():,} bits"
    return str(value)


def listed(names: Iterable[object], limit: int = SHOWN_NAMES) -> str:
    """The first names of a list for a message, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - limit:,} more" if len(names) > limit else ""
    return ", ".join(shown(name, SHOWN_CHARACTERS // 2) for name in names[:limit]) + more


def one_line(message: str) -> str:
    """A message as one line of bounded length: the middle of a longer one is left out, its
    beginning (the place) and its end (the remedy) stay.
    """
    line = escape(message)
    if len(line) <= LINE_CHARACTERS:
        return line
    tail = LINE_CHARACTERS // 4
    return f"{line[: LINE_CHARACTERS - tail]} … {line[-tail:]}"
