"""What a terminal may see of a value that somebody else chose: no control character of an id,
label, path or transcript reaches it, and no line is longer than it needs to be.
"""

from __future__ import annotations

import difflib
import os
import re
import reprlib
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import TextIO

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
USUAL_COLUMNS = 80  # of a terminal that does not say
NARROWEST = 20  # columns that a line is wrapped to
# What may lead to a file on a full disk, as an error names it.
STDOUT, STDERR = Path("standard output"), Path("standard error")
# What others call what mer calls otherwise.
SYNONYMS = {
    "valid": "dev",
    "val": "dev",
    "validation": "dev",
    "development": "dev",
    "training": "train",
    "eval": "evaluate",
    "accuracy": "wa",
    "acc": "wa",
    "uar": "ua",
    "batch": "batch_size",
    "early_stopping": "patience",
    "fp16": "float16",
    "half": "float16",
    "fp32": "float32",
    "gpu": "cuda",
    "ls": "runs",
    "list": "runs",
}
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


def initials(word: str) -> str:
    """The initials of the parts of a name; empty where it has one part only.

    >>> initials("learning_rate"), initials("rate")
    ('lr', '')
    """
    found = "".join(part[:1] for part in re.split(r"[^a-z0-9]+", word.casefold()))
    return found if len(found) > 1 else ""


def did_you_mean(word: str, known: Iterable[object]) -> str:
    """` (did you mean 'drkf'?)` for a word that is nearly one of those known, in whatever case;
    empty where none is near. Of paths that are not there: `mer.pipeline.runtime.files.near`.

    >>> did_you_mean("DRKF", ["drkf", "dmd"])
    " (did you mean 'drkf'?)"
    >>> did_you_mean("valid", ["train", "dev", "test"])
    " (did you mean 'dev'?)"
    """
    close = closest(word, known)
    return "" if close is None else f" (did you mean '{shown(close)}'?)"


def closest(word: str, known: Iterable[object]) -> str | None:
    """The known word that is nearly this one, in whatever case; None where none is near.

    >>> closest("DRKF", ["drkf", "dmd"]), closest("audio", ["drkf", "dmd"])
    ('drkf', None)
    """
    named = {str(name).casefold(): str(name) for name in known}
    asked = word[:40].casefold()
    close = [SYNONYMS[asked]] if SYNONYMS.get(asked) in named else []
    close += [initials(asked)] if initials(asked) in named else []
    close += difflib.get_close_matches(asked, list(named), n=1)
    close += [name for name in named if len(asked) > 2 and name.startswith(asked)][:1]
    return named[close[0]] if close else None


def terminal_columns(stream: TextIO) -> int | None:
    """The width of the terminal that a stream is; None where it is none."""
    if not stream.isatty():
        return None
    try:
        return int(os.environ.get("COLUMNS", "")) or USUAL_COLUMNS
    except ValueError:
        pass
    try:
        return os.get_terminal_size(stream.fileno()).columns or USUAL_COLUMNS
    except OSError:
        return USUAL_COLUMNS


def wrapped(line: str, width: int | None) -> str:
    r"""A line as a terminal of that width shows it without a break inside a word; None: as it is.

    >>> wrapped("one two three, four five", 20)
    'one two three, four\n  five'
    >>> wrapped("one  two", None)
    'one  two'
    """
    if width is None or len(line) <= width:
        return line
    return textwrap.fill(
        line,
        max(width, NARROWEST),
        subsequent_indent="  ",
        break_long_words=False,
        break_on_hyphens=False,
        replace_whitespace=False,
    )


def plural(count: float, noun: str, several: str = "") -> str:
    """A count and its noun.

    >>> plural(1, "run"), plural(1200, "run"), plural(0, "child", "children")
    ('1 run', '1,200 runs', '0 children')
    """
    return f"{count:,} {noun if count == 1 else several or noun + 's'}"


def amount(size: float) -> str:
    """Bytes for a reader.

    >>> amount(999), amount(48_200_000), amount(2.5e9)
    ('1.0 kB', '48.2 MB', '2.5 GB')
    """
    for unit, name in ((1e9, "GB"), (1e6, "MB")):
        if size >= unit:
            return f"{size / unit:,.1f} {name}"
    return f"{size / 1e3:.1f} kB"


def first_line(error: BaseException | str, limit: int = SHOWN_CHARACTERS) -> str:
    r"""What an error says first, for a message; its kind where it says nothing.

    >>> first_line(ValueError("\n no number\nat all")), first_line(RuntimeError(" "))
    ('no number', 'RuntimeError')
    """
    lines = str(error).strip().splitlines()
    return shown(lines[0] if lines else type(error).__name__, limit)


def one_line(message: str) -> str:
    """A message as one line of bounded length: the middle of a longer one is left out, its
    beginning (the place) and its end (the remedy) stay.
    """
    line = escape(message)
    if len(line) <= LINE_CHARACTERS:
        return line
    tail = LINE_CHARACTERS // 4
    return f"{line[: LINE_CHARACTERS - tail]} … {line[-tail:]}"
