"""Patterns for names of files: `{speaker}_{sentence}_{emotion}_{level}.wav`.

A pattern stands for the end of a path: with one folder in it, `{emotion}/{speaker}_{number}`, it is
held against the last folder and the name, wherever they lie. A field holds no separator of its part
of the path (what stands between fields there and is neither letter nor digit), so that a name has
one reading at most. `*` stands for anything within a part.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from mer.pipeline.errors import DataError
from mer.pipeline.runtime.terminal import shown

MEDIA = (  # what names of media files end in, the best first
    ".wav",
    ".flac",
    ".ogg",
    ".opus",
    ".mp3",
    ".m4a",
    ".aac",
    ".mp4",
    ".mkv",
    ".webm",
    ".avi",
    ".mov",
    ".aiff",
    ".aif",
    ".au",
)
PIECE = re.compile(r"\{([^{}]*)\}|(\*)|([^{}*]+)")
FIELD = re.compile(r"([a-z][a-z0-9_]*)(?::(.+))?", re.DOTALL)
IN_TEMPLATE = re.compile(r"\{(\w+)\}")
LETTERS, DIGITS, ANY = "letters", "digits", "any"
KINDS = {LETTERS: r"[^\W\d_]+", DIGITS: r"\d+", ANY: r"[^/]+"}
MOST_CHARACTERS = 500  # of a pattern
MOST_WIDTH = 200  # characters of a field of fixed width
WIDTH = re.compile(r"[1-9]\d{0,2}", re.ASCII)
HELP = (
    "{name}, {name:2} (so many characters), {name:letters}, {name:digits}, {name:a|b}, {name:any}"
)


@dataclass(frozen=True)
class Pattern:
    """A pattern as it was written. Raises DataError, when it is made, for one that cannot be read.

    `text` may end in the ending of media files; without one any of them is taken.
    """

    text: str

    def __post_init__(self) -> None:
        _ = self._compiled

    @property
    def names(self) -> tuple[str, ...]:
        """Its fields, in their order."""
        return tuple(self._compiled.groupindex)

    @property
    def levels(self) -> int:
        """How many of a path's parts it is held against: 1 for the name alone."""
        return self.text.count("/") + 1

    @cached_property
    def suffix(self) -> str:
        """The ending that it asks for, in small letters; empty for any."""
        ends = (suffix for suffix in MEDIA if self.text.lower().endswith(suffix))
        return next(ends, "")

    def match(self, path: str) -> dict[str, str] | None:
        """What each field holds in a path, with `/` between its parts.

        Args:
            path: Of a media file, with its ending.

        Returns:
            Field -> text; None where the path is not of this form.
        """
        stem, dot, suffix = path.rpartition(".")
        if self.suffix and (dot + suffix).lower() != self.suffix:
            return None
        tail = "/".join(stem.split("/")[-self.levels :])
        found = self._compiled.fullmatch(tail)
        return found.groupdict() if found else None

    @cached_property
    def _compiled(self) -> re.Pattern[str]:
        if len(self.text) > MOST_CHARACTERS:
            raise self._wrong(f"more than {MOST_CHARACTERS} characters")
        body = self.text[: len(self.text) - len(self.suffix)]
        seen: set[str] = set()
        parts = []
        for part in body.split("/"):
            if not part:
                raise self._wrong("a part between slashes is empty; write it without a / in front")
            parts.append(self._part(part, seen))
        if not seen:
            raise self._wrong(f"no field; fields are written {HELP}")
        return re.compile("/".join(parts), re.DOTALL)

    def _part(self, part: str, seen: set[str]) -> str:
        """One part of the path as a regular expression; its fields are added to `seen`."""
        pieces = list(PIECE.finditer(part))
        if "".join(piece[0] for piece in pieces) != part:
            raise self._wrong("a { or } without its other half")
        literals = "".join(piece[3] or "" for piece in pieces)
        separators = {re.escape(sign) for sign in literals if not sign.isalnum()}
        inside = f"[^/{''.join(sorted(separators))}]+"
        out, open_field = [], ""
        for piece in pieces:
            if piece[3] is not None:
                out.append(re.escape(piece[3]))
                open_field = ""
                continue
            if piece[2] is not None:
                out.append("[^/]*")
                continue
            name, what, bounded = self._field(piece[1], inside)
            if open_field and not bounded:
                raise self._wrong(
                    f"nothing between {open_field} and {name}; give one a form, as "
                    f"{{{name}:2}}, {{{name}:letters}} or {{{name}:digits}}"
                )
            open_field = "" if bounded else name
            if name in seen:
                out.append(f"(?P={name})")
            else:
                seen.add(name)
                out.append(f"(?P<{name}>{what})")
        return "".join(out)

    def _field(self, text: str, inside: str) -> tuple[str, str, bool]:
        """Name, regular expression, and whether its form alone says where it ends."""
        found = FIELD.fullmatch(text)
        if not found:
            raise self._wrong(f"{{{shown(text, 40)}}} is no field; fields are written {HELP}")
        name, form = found.groups()
        if form is None:
            return name, inside, False
        if form in KINDS:
            return name, KINDS[form], form != ANY
        if WIDTH.fullmatch(form) and int(form) <= MOST_WIDTH:
            return name, f"[^/]{{{form}}}", True
        if "|" not in form:
            raise self._wrong(
                f"{{{shown(text, 40)}}}: a form is a number of characters, letters, digits, any, "
                "or words with | between them"
            )
        words = sorted(form.split("|"), key=len, reverse=True)
        return name, f"(?:{'|'.join(map(re.escape, words))})", True

    def _wrong(self, why: str) -> DataError:
        return DataError(f"pattern '{shown(self.text, 100)}': {why}")


def fields_of(template: str) -> list[str]:
    """The fields of a template, `{speaker}-{number}`."""
    return IN_TEMPLATE.findall(template)


def has_fields(template: str, fields: Mapping[str, str]) -> bool:
    """Whether all fields of a template are there."""
    return all(name in fields for name in fields_of(template))


def fill(template: str, fields: Mapping[str, str]) -> str:
    """A template, `{speaker}-{number}`, with what the fields hold. Raises DataError for a field
    that is not there.
    """
    try:
        return IN_TEMPLATE.sub(lambda match: fields[match[1]], template)
    except KeyError as error:
        raise DataError(
            f"'{shown(template, 100)}': no field {error}; there are {', '.join(fields)}"
        ) from None
