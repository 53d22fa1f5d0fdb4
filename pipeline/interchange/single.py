"""A store in one file. It is written only: what it is read by is the store's own reader."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from mer.pipeline.interchange.copying import Copy, new_file
from mer.pipeline.store import arrays, head, shard
from mer.pipeline.store.schema import LAYERS, Header, columns_of


def write(copy: Copy, out: Path) -> bool:
    """Write one file that is a store by itself: a head with its one shard inside. It streams,
    whatever the size.

    Args:
        copy: The rows of a store.
        out: The file.

    Returns:
        Whether anything was written.

    Raises:
        DataError: Something else is at `out`.
        StoreError: A shard is damaged.
    """
    header = copy.header()
    table = copy.table()
    attrs, data = _shard(copy, header, table)
    columns = {
        "shard": np.zeros(len(copy.rows)),
        "shard_row": np.arange(len(copy.rows)),
        "duration": table["duration"].to_numpy(),
        "flags": copy.store.flags[copy.rows],
    }
    for modality in header.modalities:
        columns[f"n_{modality}"] = table[f"n_{modality}"].to_numpy()
    record = head.ShardRecord(out, 0, "", str(attrs["identity"]), head.EMBEDDED)
    head_attrs, everything = head.compose(
        header, table.select(columns_of(table.column_names)), columns, [""], [record]
    )
    for name, array in data.items():
        everything[f"{head.EMBEDDED}/{name}"] = array
    with new_file(out) as place:
        arrays.write(
            place.path, attrs={"/": head_attrs, f"/{head.EMBEDDED}": attrs}, arrays=everything
        )
    return place.written


def _shard(copy: Copy, header: Header, table: pa.Table) -> tuple[dict, dict]:
    """(attributes, arrays) of one shard with every row of the copy."""
    kinds = []
    for modality, info in header.modalities.items():
        overflow = info.extra.get("overflow", 0)
        kind = {"name": modality, "dim": info.dim, "dtype": info.dtype, "overflow": overflow}
        if info.layers:
            kind[LAYERS] = {
                "count": info.layers,
                "width": info.width,
                "dtype": info.layer_dtype,
            }
        kinds.append(kind)

    def frames(modality: str) -> Iterator[np.ndarray]:
        dtype = header.modalities[modality].dtype
        for row in copy.rows:
            yield copy.frames(modality, row, "stored").astype(dtype, copy=False)

    def means(modality: str) -> Iterator[np.ndarray]:
        dtype = header.modalities[modality].layer_dtype
        for row in copy.rows:
            yield copy.layer_means(modality, row).astype(dtype)

    return shard.compose(
        kinds,
        table["id"].to_pylist(),
        frames,
        means,
        duration=table["duration"].to_numpy(),
        flags=copy.store.flags[copy.rows],
        meta={},
        key=header.fingerprint,
    )
