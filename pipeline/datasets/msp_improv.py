"""MSP-IMPROV (Busso et al. 2017): clips by name, and a text file with a line for each:
`UTD-IMPROV-S01A-F01-S-FM01.avi; N; A:3.000000; V:3.500000; D:3.000000; …`, followed by a line for
each rater. Public loaders find it as Evalution.txt or Evaluation.txt.
"""

from __future__ import annotations

import re
from pathlib import Path

from mer.pipeline.datasets.corpora import CorpusInfo, LabelSet
from mer.pipeline.datasets.corpustable import Line, find_tables, tell_absent
from mer.pipeline.datasets.filenames import prepare_with
from mer.pipeline.datasets.findings import Findings
from mer.pipeline.datasets.textfiles import read_text
from mer.pipeline.errors import DataError
from mer.pipeline.manifest import Manifest
from mer.pipeline.runtime.terminal import shown

CLIP = re.compile(r"UTD-IMPROV-(\S+)\.avi\s*;\s*([A-Z])\s*;(.*)")
NUMBER = re.compile(r"([AVDN])\s*:\s*([-+.\w]+)")
# what the letters of its numbers stand for
COLUMNS = {"A": "arousal", "V": "valence", "D": "dominance", "N": "naturalness"}


def prepare(
    root: Path, info: CorpusInfo, *, labels: str | None = None
) -> tuple[Manifest, Findings]:
    """The manifest of MSP-IMPROV under `root`."""
    return prepare_with(_read, root, info, labels)


def _read(
    root: Path, info: CorpusInfo, chosen: LabelSet, findings: Findings
) -> dict[str, Line] | None:
    """Id -> the line of each clip."""
    assert info.table is not None
    sources = find_tables(root, info.table.names)
    if not sources:
        tell_absent(root, info, info.table.names)
    lines: dict[str, Line] = {}
    for number, text in enumerate(read_text(sources[0]).split("\n")):
        if not text.startswith("UTD-"):
            continue
        found = CLIP.match(text)
        if not found:
            raise DataError(
                f"{sources[0]}: line {number + 1} begins like a clip's and is none: "
                f"{shown(text, 80)}"
            )
        name, emotion, rest = found.groups()
        id = f"MSP-IMPROV-{name}"
        if id in lines:
            raise DataError(f"{sources[0]}: line {number + 1}: {shown(id, 60)} is there twice")
        cells = {"id": id, "emotion": emotion, **dict.fromkeys(COLUMNS.values(), "")}
        cells |= {COLUMNS[letter]: value for letter, value in NUMBER.findall(rest)}
        lines[id] = Line(id, cells, sources[0], number)
    return lines
