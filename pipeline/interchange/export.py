"""A store as other tools' files: which rows, and which format writes them."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from mer.pipeline.errors import DataError
from mer.pipeline.interchange.copying import Copy, in_split
from mer.pipeline.interchange.formats import EXPORTS, writer
from mer.pipeline.runtime.files import near
from mer.pipeline.runtime.limits import SUBSET_BYTES
from mer.pipeline.runtime.progress import SILENT, Silent
from mer.pipeline.runtime.terminal import did_you_mean, plural, shown
from mer.pipeline.runtime.terms import SPLITS
from mer.pipeline.store.reader import FeatureStore

READS = {"single": 2}  # times that a format reads each array, where it is not once


def export(
    store: FeatureStore,
    to: str,
    out: str | os.PathLike,
    *,
    subset: str | None = None,
    plain_cells: bool = False,
    with_provenance: bool = False,
    progress: Silent = SILENT,
) -> tuple[int, bool]:
    """Write a store, or a part of it, in another format. It appears whole or not at all.

    Args:
        store: The store.
        to: The format, one of `formats.EXPORTS`.
        out: The file or folder to make.
        subset: A split, or a file with one id per line; None is every row.
        plain_cells: Leave cells of index.csv as they are that a spreadsheet would run.
        with_provenance: Keep what the header says of the machine: host and absolute paths.
        progress: Shows how far it is.

    Returns:
        The number of utterances, and whether anything was written: False when `out` holds these
        very bytes already.

    Raises:
        StoreError: A shard is damaged; nothing is left at `out`.
        DataError: Something else is at `out`, the subset is none, or the format cannot hold these
            rows.
    """
    rows = select(store, subset)
    total = len(rows) * len(store.header.modalities) * READS.get(to, 1)
    with progress.task("exporting", total, "arrays", brief=True) as advance:
        copy = Copy(store, rows, plain_cells, with_provenance, advance)
        return len(rows), writer(to)(copy, Path(out))


def left_out(store: FeatureStore, to: str) -> list[str]:
    """A line for each thing of a store that an export to a format does not hold."""
    modalities = [name for name, info in store.header.modalities.items() if info.layers]
    if not modalities or EXPORTS[to].layers:
        return []
    able = [name for name, form in EXPORTS.items() if form.layers]
    return [
        f"the layer means of {', '.join(modalities)} are left out: {to} has no place for them; "
        f"{', '.join(able)} have"
    ]


def select(store: FeatureStore, subset: str | None) -> np.ndarray:
    """(n,) int64 rows of a subset, in the store's order.

    Raises DataError for what is neither a split with utterances nor a file of ids that are there.
    """
    table = store.table()
    if subset is None:
        return np.arange(len(store))
    if subset and subset in SPLITS:
        rows = in_split(table, subset)
        if not len(rows):
            raise DataError(f"{store.path}: no utterance has split '{subset}'")
        return rows
    if not Path(subset).is_file():
        raise DataError(
            f"--subset {shown(subset)}: neither a split (train, dev, test) nor a file with one id "
            f"per line{did_you_mean(subset, SPLITS) or near(subset)}"
        )
    wanted = read_ids(Path(subset))
    if not wanted:
        raise DataError(f"{subset}: no id in it; write one in each line")
    ids = table["id"].to_pylist()
    rows = np.array([i for i, row_id in enumerate(ids) if row_id in wanted], np.int64)
    if len(rows) < len(wanted):
        unknown = wanted.keys() - set(ids)
        raise DataError(
            f"{subset}: {len(unknown):,} of {plural(len(wanted), 'id is', 'ids are')} not in "
            f"{store.path}, first "
            f"'{shown(min(unknown))}'; leave them out, or name another store"
        )
    return rows


def read_ids(path: Path) -> dict[str, None]:
    """The ids of a file with one in each line, in their order.

    Raises:
        DataError: It is not text, or larger than any list of ids.
    """
    if path.stat().st_size > SUBSET_BYTES:
        raise DataError(
            f"{path}: more than {SUBSET_BYTES:,} bytes; --subset takes a file with one id per line"
        )
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: not UTF-8 (byte 0x{error.object[error.start]:02x}); --subset takes a text "
            "file with one id per line"
        ) from None
    return dict.fromkeys(filter(None, text.split("\n")))
