"""The media files that the rows of a table name."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from mer.pipeline.datasets.files import hidden
from mer.pipeline.datasets.findings import Findings
from mer.pipeline.datasets.pattern import MEDIA
from mer.pipeline.datasets.tablefile import Table
from mer.pipeline.errors import DataError
from mer.pipeline.runtime.terminal import shown


@dataclass(frozen=True)
class MediaRoot:
    """What the paths of a table are relative to, and the option that says so."""

    folder: Path
    option: str


def media_paths(
    table: Table, field: str, ids: list[str | None], root: MediaRoot, findings: Findings
) -> list[str | None]:
    """Paths of the field, audio or video, relative to `root`, which they may not leave.

    A name without an extension is looked up among the media files there. Backslashes of Windows are
    read as slashes where only that names a file, which is counted.
    """
    folders = _Folders(os.path.abspath(root.folder))
    out: list[str | None] = []
    for i, value in enumerate(table.column(field)):
        if value is None:
            out.append(None)
            continue
        if "\\" in value and not folders.has(value) and folders.has(value.replace("\\", "/")):
            value = value.replace("\\", "/")
            findings.repairs[f"backslashes in {field} read as /"].append(
                shown(ids[i] or f"row{i + 1}")
            )
        found = folders.find(value)
        if not found:
            raise DataError(
                f"{table.at(i)} has {field} '{shown(value)}', which is not a file within "
                f"{folders.base} ({root.option})"
            )
        if len(found) > 1:
            names = [os.path.basename(path) for path in found[:4]]
            raise DataError(
                f"{table.at(i)} has {field} '{shown(value)}', which may be {' or '.join(names)}; "
                "give the extension"
            )
        out.append(found[0])
    return out


class _Folders:
    """The media files below a folder, each folder listed once."""

    def __init__(self, base: str):
        self.base = base
        # As written -> (relative to the base, file name or stem -> files); "" is outside of it.
        self._known: dict[str, tuple[str, dict[str, list[str]]]] = {}

    def has(self, value: str) -> bool:
        """Whether a file of that name, with or without its extension, lies there."""
        path = os.path.join(self.base, value)
        return os.path.exists(path) or any(os.path.exists(path + suffix) for suffix in MEDIA)

    def find(self, value: str) -> list[str]:
        """The files that a name may mean, relative to the base; none when it leads out of it. A
        file that is not there is taken by its name.
        """
        folder, slash, name = value.rpartition("/")
        folder += slash  # "/" stays the root
        if folder not in self._known:
            self._known[folder] = self._open(folder)
        relative, stems = self._known[folder]
        if not relative or name in ("", ".", "..") or "\0" in name:
            return []
        files = stems.get(name, [name])
        return files if relative == "." else [f"{relative}/{file}" for file in files]

    def _open(self, folder: str) -> tuple[str, dict[str, list[str]]]:
        full = os.path.normpath(os.path.join(self.base, folder))
        below = self.base.rstrip(os.sep) + os.sep
        if "\0" in folder or (full != self.base and not full.startswith(below)):
            return "", {}
        return os.path.relpath(full, self.base), _listing(full)


def _listing(folder: str) -> dict[str, list[str]]:
    """File name or stem -> the media files that it may mean."""
    try:
        names = sorted(name for name in os.listdir(folder) if not hidden(name))
    except OSError:
        return {}
    stems: dict[str, list[str]] = {}
    for name in names:
        stem, suffix = os.path.splitext(name)
        if suffix.lower() in MEDIA:
            stems.setdefault(stem, []).append(name)
    for name in names:
        # a folder of pictures beside a film is no file of that name
        if name not in stems or not os.path.isdir(os.path.join(folder, name)):
            stems[name] = [name]
    return stems
