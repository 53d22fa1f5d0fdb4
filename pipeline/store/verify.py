"""Every checksum of a store."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from mer.pipeline.errors import MerError
from mer.pipeline.store.head import sha256
from mer.pipeline.store.reader import FeatureStore
from mer.pipeline.store.schema import Damage


def verify_shards(store: FeatureStore | str | os.PathLike) -> list[Damage]:
    """The damaged shards and why; empty when every byte is as written.

    Raises when the head file itself is unusable.
    """
    if not isinstance(store, FeatureStore):
        store = FeatureStore(Path(store), check=False)
    found = []
    for number, record in enumerate(store.shards):
        reason = _check(store, number)
        if reason:
            found.append(Damage(number, str(record.path), reason))
    return found


def _check(store: FeatureStore, number: int) -> str | None:
    record = store.shards[number]
    try:
        shard = store.shard(number)
        bad = {m: list(shard.mismatches(m)) for m in shard.modalities}
        for m in shard.modalities:
            shard.pooled(m)
        # a file cannot hold its own sha256
        whole = not record.sha256 or sha256(record.path) == record.sha256
    except (MerError, OSError) as error:
        return str(error).removeprefix(f"{record.path}: ").split("; run `mer")[0]
    rows = sorted({row for rows in bad.values() for row in rows})
    if rows:
        names = ", ".join(m for m in bad if bad[m])
        return (
            f"{len(rows)} of {len(shard)} utterances differ from their checksums ({names}; first "
            f"'{shard.ids[rows[0]]}')"
        )
    if not whole:
        return "its bytes differ from the recorded sha256"
    here = np.flatnonzero(store.table()["shard"].to_numpy() == number)
    at = store.table()["shard_row"].to_numpy()[here]
    ids = store.table()["id"].take(here).to_pylist()
    if [shard.ids[i] for i in at] != ids:
        return "its utterances are not the ones the head file lists"
    return None
