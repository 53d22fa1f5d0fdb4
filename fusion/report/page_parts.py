"""What a page of `mer report` is made of: its parts, their tables and their pictures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mer.fusion.measures.tables import Table
from mer.fusion.report.drawing import Scene, scene
from mer.fusion.report.gathering import ReadRun
from mer.fusion.report.pictures import Picture


@dataclass(frozen=True)
class PageTable:
    """A table of the page; `name` is that of its files, `links` lead from its first cells."""

    id: str
    name: str
    table: Table
    links: tuple[str, ...] = ()


@dataclass(frozen=True)
class PagePicture:
    """A picture of the page; `name` is that of its files; `run` has its cache (None: no run)."""

    id: str
    name: str
    picture: Picture
    scene: Scene
    run: Path | None = None


@dataclass(frozen=True)
class Part:
    """A comparison, or a run."""

    id: str
    title: str
    notes: tuple[str, ...] = ()
    explained: tuple[str, ...] = ()
    facts: tuple[tuple[str, str], ...] = ()
    tables: tuple[PageTable, ...] = ()
    pictures: tuple[PagePicture, ...] = ()
    config: str = ""


@dataclass(frozen=True)
class Report:
    """All that a page shows."""

    lead: str
    glossary: str
    comparisons: tuple[Part, ...]
    overview: PageTable
    provenance: Part
    left_out: PageTable | None
    runs: tuple[Part, ...]

    @property
    def parts(self) -> tuple[Part, ...]:
        """All parts that have tables or pictures, in the order of the page."""
        return (*self.comparisons, self.provenance, *self.runs)

    def all_tables(self) -> Iterator[PageTable]:
        """Every table, in the order of the page."""
        yield self.overview
        for part in self.parts:
            yield from part.tables
        if self.left_out is not None:
            yield self.left_out

    def all_pictures(self) -> Iterator[PagePicture]:
        """Every picture, in the order of the page."""
        for part in self.parts:
            yield from part.pictures


@dataclass(frozen=True)
class Named:
    """A run under the name that the page has for it, and the id of its section."""

    name: str
    id: str
    read: ReadRun

    def is_at(self, path: Path) -> bool:
        """Whether the run lies in that folder."""
        return self.read.run.path.resolve() == path.resolve()

    @property
    def context(self) -> str:
        """The kind of conversation context that the run has seen."""
        return self.read.scores.context or "none"


def pictured(
    picture: Picture, id: str, file: str | None = None, run: Path | None = None
) -> PagePicture:
    name = f"{file or id}-{picture.name}"
    return PagePicture(f"{id}-{picture.name}", name, picture, scene(picture), run)
