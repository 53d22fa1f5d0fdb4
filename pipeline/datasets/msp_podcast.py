"""MSP-Podcast (Lotfian and Busso 2019): clips by name and a table of consensus labels, as its TOML
says; with `raters` also the table of what each rater chose, a line for each rater of each clip.

Release 1.6 and 2.0 have the rater's class in a column; those between have it in one cell with all
else that the rater said: `WORKER00000325; Neutral; Neutral,Concerned; A:4.0; V:4.0; D:4.0;`.
"""

from __future__ import annotations

import io
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from mer.pipeline.datasets import filenames
from mer.pipeline.datasets.corpora import CorpusInfo, LabelSet
from mer.pipeline.datasets.corpustable import find_tables, read_lines, tell_absent
from mer.pipeline.datasets.findings import Findings
from mer.pipeline.datasets.raters import OUTSIDE, check_task, with_shares
from mer.pipeline.datasets.textfiles import dialect, read_text
from mer.pipeline.errors import DataError
from mer.pipeline.manifest import Manifest
from mer.pipeline.runtime.terminal import listed, shown

RATINGS = "labels_detailed.csv"
CLIP, CLASS, ALL_IN_ONE = "FileName", "EmoClass_Major", "EmoDetail"  # its columns
NO_AGREEMENT = "X"
CODES = {  # what raters call a class -> its code; what they write themselves is of none
    "angry": "A",
    "contempt": "C",
    "disgust": "D",
    "fear": "F",
    "happy": "H",
    "neutral": "N",
    "sad": "S",
    "surprise": "U",
}


def prepare(
    root: Path, info: CorpusInfo, *, labels: str | None = None, raters: bool = False
) -> tuple[Manifest, Findings]:
    """The manifest of MSP-Podcast under `root`. With `raters` rows keep how their raters divided
    over the classes; those without agreement, if all of it is within the label set, stay for that.
    """
    if not raters:
        return filenames.prepare(root, info, labels=labels)
    chosen = info.label_set(labels)
    check_task(info.name, chosen.task)
    tables = find_tables(root, [RATINGS]) if root.is_dir() else []
    if root.is_dir() and not tables:
        tell_absent(root, info, [RATINGS])
    manifest, findings = filenames.prepare_with(
        read_lines, root, info, labels, undecided=NO_AGREEMENT
    )
    undecided = frozenset(u.id for u in manifest.rows if u.label is None)
    votes_of = _votes(tables[0], chosen)
    rows = []
    for u in with_shares(manifest.rows, votes_of, undecided, chosen.labels, findings):
        if u.label is None and u.targets is None:
            findings.dropped[f"label {NO_AGREEMENT}"].append(shown(u.id))
        else:
            rows.append(u)
    return replace(manifest, rows=tuple(rows)), findings


def _votes(path: Path, labels: LabelSet) -> Mapping[str, Counter[str]]:
    """Id -> class, or OUTSIDE -> how many raters chose it."""
    reader = dialect(path).reader(io.StringIO(read_text(path), newline=""))
    header: list[str] = next(reader, [])
    place = next((header.index(name) for name in (CLASS, ALL_IN_ONE) if name in header), None)
    if CLIP not in header or place is None:
        raise DataError(
            f"{path}: expected the columns {CLIP} and {CLASS} or {ALL_IN_ONE}; found "
            f"{listed(header)}"
        )
    clip, in_one = header.index(CLIP), header[place] == ALL_IN_ONE
    votes_of: dict[str, Counter[str]] = defaultdict(Counter)
    for cells in filter(None, reader):
        if len(cells) <= max(clip, place):
            raise DataError(
                f"{path}: line {reader.line_num} has fewer columns than the header; the file may "
                "be truncated"
            )
        said = cells[place]
        if in_one:
            _, _, said = said.partition(";")
            said = said.partition(";")[0]
        code = CODES.get(said.strip().lower(), "")
        id = cells[clip].strip().removesuffix(".wav")
        votes_of[id][labels.source.get(code, OUTSIDE)] += 1
    return votes_of
