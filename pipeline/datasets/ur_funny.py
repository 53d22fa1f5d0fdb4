"""UR-FUNNY v2 (Hasan et al. 2019): a video for each utterance, and pickles of dictionaries by id:
humour (0 or 1), the sentences, the ids of each part.

A pickle is read as data: what it may make are Python's own containers, numbers and texts, and
numpy's numbers.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mer.pipeline.datasets.corpora import CorpusInfo, LabelSet
from mer.pipeline.datasets.corpustable import Line, find_tables, tell_absent
from mer.pipeline.datasets.filenames import prepare_with
from mer.pipeline.datasets.findings import Findings
from mer.pipeline.errors import DataError
from mer.pipeline.manifest import Manifest
from mer.pipeline.runtime.columnar import reason, require_regular
from mer.pipeline.runtime.limits import TABLE_BYTES
from mer.pipeline.runtime.terminal import shown

SENTENCES, FOLDS = "language_sdk.pkl", "data_folds.pkl"
PUNCHLINE = "punchline_sentence"
# what numpy's numbers are made of, by the names of its versions
NUMBERS = {("numpy", "dtype")} | {
    (f"numpy.{core}.multiarray", "scalar") for core in ("core", "_core")
}


def prepare(
    root: Path, info: CorpusInfo, *, labels: str | None = None
) -> tuple[Manifest, Findings]:
    """The manifest of UR-FUNNY under `root`."""
    return prepare_with(_read, root, info, labels)


def _read(
    root: Path, info: CorpusInfo, chosen: LabelSet, findings: Findings
) -> dict[str, Line] | None:
    """Id -> its humour, its punchline and its part."""
    assert info.table is not None
    places = {}
    for name in (*info.table.names, SENTENCES, FOLDS):
        found = find_tables(root, [name])
        if not found:
            tell_absent(root, info, [name])
        places[name] = found[0]
    source = places[info.table.names[0]]
    sentences = _load(places[SENTENCES])
    part_of: dict[str, str] = {}
    for part, ids in _load(places[FOLDS]).items():
        if not isinstance(ids, list | tuple):
            raise DataError(f"{places[FOLDS]}: {shown(part, 40)} is not a list of ids")
        part_of |= {str(id): str(part) for id in ids}
    lines = {}
    for row, (id, humour) in enumerate(_load(source).items()):
        if str(humour) not in chosen.source:
            raise DataError(
                f"{source}: {shown(id, 40)} has label '{shown(humour, 40)}', not 0 or 1"
            )
        said = sentences.get(id)
        text = said.get(PUNCHLINE, "") if isinstance(said, dict) else ""
        cells = {"id": str(id), "humour": str(humour), "text": str(text)}
        cells["split"] = part_of.get(str(id), "")
        lines[str(id)] = Line(str(id), cells, source, row)
    return lines


class _Data(pickle.Unpickler):
    """Makes containers, texts and numbers only."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in NUMBERS:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it wants to run {module}.{name}")


def _load(path: Path) -> Mapping[Any, Any]:
    """A pickle of a dictionary."""
    require_regular(path)
    if (size := path.stat().st_size) > TABLE_BYTES:
        raise DataError(f"{path}: {size:,} bytes, more than {TABLE_BYTES:,}")
    try:
        value = _Data(io.BytesIO(path.read_bytes())).load()
    # what is damaged raises nearly anything
    except Exception as error:
        raise DataError(f"{path}: not a readable pickle of data ({reason(error)})") from None
    if not isinstance(value, dict):
        raise DataError(f"{path}: expected a dictionary by id")
    return value
