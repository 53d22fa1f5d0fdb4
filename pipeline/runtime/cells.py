"""A cell of somebody's table as text: what is no text is missing or an error, never its Python
spelling.

`text_cell` is for transcripts, which keep their blanks; `name_cell` for everything that names
something (ids, labels, speakers, dialogues, sessions, splits, audio), where a blank at an end is a
slip. Used for tables, for the corpora's own files and for imports.
"""

from __future__ import annotations

import datetime
import decimal
import math
import re
import uuid
from collections import Counter
from collections.abc import Iterable, Mapping
from unicodedata import normalize

import numpy as np

from mer.pipeline.errors import DataError
from mer.pipeline.runtime.limits import CELL_CHARACTERS, INTEGER_BITS
from mer.pipeline.runtime.terminal import shown

# White space (Unicode's, as `str.isspace` has it), then what has no width: the Mongolian vowel
# separator, zero-width space and joiners, direction marks, embeddings, overrides, word joiner,
# isolates, byte order mark. Spreadsheets, web pages and Windows' property dialogs leave them around
# a copied value.
WHITE_SPACE = (
    "\t\n\v\f\r\x1c\x1d\x1e\x1f "
    "\x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    "\u2028\u2029\u202f\u205f\u3000"
)
NO_WIDTH = (
    "\u061c\u180e\u200b\u200c\u200d\u200e\u200f\u202a\u202b\u202c\u202d\u202e"
    "\u2060\u2066\u2067\u2068\u2069\ufeff"
)
BLANKS = WHITE_SPACE + NO_WIDTH
# Also without width, but not cut off: soft hyphen, fillers, grapheme joiner, variation selectors
# (which belong to emoji), and control characters.
UNSEEN = "\u00ad\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u3164\uffa0" + "".join(
    map(chr, (*range(0x20), 0x7F, *range(0xFE00, 0xFE10)))
)
_GONE = str.maketrans("", "", BLANKS + UNSEEN)
# Letters of Cyrillic and Greek that look like Latin ones, in lower case.
_LATIN = str.maketrans(
    "\u0430\u0435\u043e\u0440\u0441\u0443\u0445\u0456\u0458\u0455\u03bf", "aeopcyxijso"
)
JOINED = re.compile(r"(?<=[^\W\d_])[-_\u2010-\u2015]+(?=[^\W\d_])")  # between two letters
NUMBER = re.compile(r"[+-]?\d{1,15}(?:\.\d{1,15})?", re.ASCII)
_KINDS = {
    dict: "a struct",
    Mapping: "a struct",
    list: "a list",
    tuple: "a list",
    set: "a set",
    np.ndarray: "an array",
    datetime.date: "a date",
    datetime.time: "a time of day",
    datetime.timedelta: "a duration",
    np.datetime64: "a date",
    np.timedelta64: "a duration",
}  # the first that fits; datetime is a date


def strip(text: str) -> str:
    """`text` without blanks at its ends: white space of any kind, and characters without width."""
    return text.strip(BLANKS)


def text_cell(value: object) -> str | None:
    """A cell as text, its blanks kept.

    Text stays as it is, bytes are UTF-8 (Parquet columns without the mark of text), numbers are
    spelled as they are written.

    Args:
        value: What a reader found: text, bytes, a number, a truth value, None, or a NumPy scalar of
            these.

    Returns:
        The text; None for a gap: None, NaN, not-a-time, or text that has nothing but blanks.

    Raises:
        DataError: The cell is no text (a list, a struct, a date, an infinite number, …), or not
            valid Unicode. The message begins with a verb ("is a list, …"), to follow the caller's
            file, line and column.
    """
    if type(value) is not str:
        value = _as_text(value)
    if value is None:
        return None
    if len(value) > CELL_CHARACTERS:
        raise DataError(f"has {len(value):,} characters, more than {CELL_CHARACTERS:,}")
    if not value.isascii():
        _check_unicode(value)
    return value if strip(value) else None


def without_zero_bytes(text: str | None) -> str | None:
    """The text itself; DataError for a zero byte, which a table that people wrote does not have.

    Stores may hold one, so imports and exports let it through.
    """
    if text is not None and "\0" in text:
        raise DataError(f"'{shown(text, 40)}' holds a zero byte, which is no text")
    return text


def _as_text(value: object) -> str | None:
    """What is not a plain str as one, or None; raises DataError for what is no text."""
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value[()]
    times = np.datetime64 | np.timedelta64
    if value is None or value is np.ma.masked or (isinstance(value, times) and np.isnat(value)):
        return None
    if isinstance(value, np.generic) and not isinstance(value, times | np.void):
        value = value.item()
    if isinstance(value, bytes | bytearray | memoryview):
        # columns of a fixed width are filled up with zeros
        return _decode(bytes(value).rstrip(b"\0"))
    if isinstance(value, bool | int | float | decimal.Decimal):
        return _spelled(value)
    if isinstance(value, str | uuid.UUID):
        return str(value)
    kind = next(
        (name for cls, name in _KINDS.items() if isinstance(value, cls)),
        f"of type {type(value).__name__}",
    )
    raise DataError(f"is {kind}, expected text")


def name_cell(value: object) -> str | None:
    """`text_cell` without blanks at its ends, for what names something.

    Raises DataError as that does.
    """
    text = text_cell(value)
    return None if text is None else strip(text)


def _decode(raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"is bytes that are not UTF-8 (0x{raw[error.start]:02x} at byte {error.start:,})"
        ) from None


def _spelled(number: bool | int | float | decimal.Decimal) -> str | None:
    if isinstance(number, bool):
        return str(number)
    if isinstance(number, int):
        if number.bit_length() > INTEGER_BITS:
            raise DataError(f"is a whole number of more than {INTEGER_BITS:,} bits, expected text")
        return str(number)
    if math.isnan(number):
        return None
    if math.isinf(number):
        raise DataError(f"is {number}, expected text or a finite number")
    return str(number)


def _check_unicode(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        half = f"U+{ord(text[error.start]):04X}"
        raise DataError(
            f"'{shown(text, 40)}' holds half a character ({half}, one of a surrogate pair), which "
            "is not valid Unicode"
        ) from None


def warn_near_duplicates(names: Iterable[str | None], what: str = "labels") -> list[str]:
    """Names that a person would take for one: they differ only by case, by blanks, hyphens or what
    is not seen, by Unicode's composition, or are one number (1 and 1.0).

    Args:
        names: Names, in any number and order; None is passed over.
        what: What they are, in the plural, for the line.

    Returns:
        No line, or one that names the first such groups: "labels that differ only by case or
        blanks: 'Joy' and 'joy'".
    """
    groups: dict[str, list[str]] = {}
    for name in sorted({name for name in names if name is not None}):
        groups.setdefault(_plain(name), []).append(name)
    alike = [group for group in groups.values() if len(group) > 1]
    if not alike:
        return []
    said = (
        "differ only by case",
        "differ only by case or blanks",
        "look alike (case, blanks, hyphens or Unicode form)",
        "are one number, spelled otherwise",
    )
    level = max(map(_difference, alike))
    some = []
    for group in alike[:3]:
        some.append(" and ".join(f"'{shown(name, 40)}'" for name in group[:3]))
    more = f" and {len(alike) - 3:,} more" if len(alike) > 3 else ""
    return [
        f"{what} that {said[level]}: {'; '.join(some)}{more}; they count as different: write them "
        "alike if they are one"
    ]


# What other programs write into a text where there is nothing: what pandas.read_csv takes for a
# gap, not-a-time, the gaps of MySQL and Hive, of JavaScript, SAS and ARFF, and the cells of a
# spreadsheet whose formula failed.
GAP_WORDS = frozenset(
    (
        "#N/A #NA -NaN -nan <NA> N/A NA NULL NaN None n/a nan null 1.#IND 1.#QNAN -1.#IND "
        "-1.#QNAN NaT \\N (null) undefined ? - -- . #DIV/0! #NAME? #NUM! #REF! #VALUE!"
    ).split()
)


def warn_gap_words(
    values: Iterable[str | None], what: str, remedy: str = "leave the cell empty"
) -> list[str]:
    """Values that are words by their spelling and may be another program's gaps.

    Args:
        values: The cells of a column, each row's.
        what: What they are, in the plural, for the line.
        remedy: What to do where nothing is meant; "WORD" stands for the most frequent of them.

    Returns:
        No line, or one that counts them: "labels that may stand for a gap: 'nan' (2)".
    """
    found = Counter(value for value in values if value in GAP_WORDS)
    if not found:
        return []
    most = found.most_common(3)
    told = ", ".join(f"'{word}' ({count:,})" for word, count in most)
    more = f" and {len(found) - 3:,} more" if len(found) > 3 else ""
    done = remedy.replace("WORD", most[0][0])
    return [
        f"{what} that may stand for a gap: {told}{more}; they count as words: where nothing is "
        f"meant, {done}"
    ]


def _plain(name: str) -> str:
    plain = normalize("NFKC", name).casefold().translate(_GONE).replace("i\u0307", "i")
    if NUMBER.fullmatch(plain):
        return f"{float(plain):g}"
    return JOINED.sub("", plain).translate(_LATIN).rstrip(".,;:")


def _difference(group: list[str]) -> int:
    """0: by case; 1: by blanks as well; 2: by hyphens, composed and decomposed characters, or other
    forms of them; 3: numbers.
    """
    if len({name.casefold() for name in group}) == 1:
        return 0
    if all(NUMBER.fullmatch(name) for name in group):
        return 3
    return 1 if len({name.casefold().translate(_GONE) for name in group}) == 1 else 2


# --- cells of tables that mer writes, which a spreadsheet would run as a formula

# First characters of a formula; also the wide forms, which spreadsheets of East Asian locales take.
TRIGGERS = "=+@\t\r\n\uff1d\uff0b\uff0d\uff20-"
GUARDED = re.compile(f"'*[{TRIGGERS}]")


def guarded(cell: str) -> str:
    """`cell` as a spreadsheet takes it for text: one that begins with one of `TRIGGERS` (after any
    number of apostrophes) gets one apostrophe in front. The way back takes one away from cells of
    that form only, so every text survives: `=1+1` <-> `'=1+1`, `'=1+1` <-> `''=1+1`,
    `'tis` <-> `'tis`.

    >>> guarded("=1+1"), guarded("'tis"), guarded("a=b")
    ("'=1+1", "'tis", 'a=b')
    """
    return f"'{cell}" if GUARDED.match(cell) else cell


def unguarded(cell: str) -> str:
    """The text that `guarded` was given.

    >>> unguarded("'=1+1"), unguarded("'tis")
    ('=1+1', "'tis")
    """
    return cell[1:] if cell.startswith("'") and GUARDED.match(cell) else cell
