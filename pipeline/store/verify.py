"""Every checksum of a store.

`reader` builds on this file (`FeatureStore.verify`, `verify_shards`), so it asks of a store only
what `Verifiable` names.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa

from mer.pipeline.errors import MerError
from mer.pipeline.runtime.files import sha256_file
from mer.pipeline.runtime.progress import SILENT, Silent
from mer.pipeline.runtime.terminal import plural
from mer.pipeline.store.head import MemberRecord, ShardRecord
from mer.pipeline.store.schema import LAYERS, Damage
from mer.pipeline.store.shard import Shard


class Verifiable(Protocol):
    """What of an open store is needed to check it."""

    path: Path
    shards: list[ShardRecord]
    members: list[MemberRecord]

    def member(self, number: int) -> Verifiable: ...
    def shard(self, number: int) -> Shard: ...
    def table(self) -> pa.Table: ...


def damages(store: Verifiable, progress: Silent = SILENT) -> list[Damage]:
    """The damaged shards of an open store, and why; empty when every byte is as written.

    Those of a joined store are its members' and the members that cannot be used.
    """
    found = []
    for number, member in enumerate(store.members):
        try:
            found += damages(store.member(number), progress)
        except (MerError, OSError) as error:
            message = str(error).removeprefix(f"{member.path}: ")
            found.append(Damage(number, str(member.path), message, str(store.path)))
    if not store.shards:
        return found
    with progress.task("verifying", len(store.shards), "shards", brief=True) as advance:
        for number, record in enumerate(store.shards):
            reason = _check(store, number)
            if reason:
                found.append(Damage(number, str(record.path), reason, str(store.path)))
            advance(1)
    return found


def _check(store: Verifiable, number: int) -> str | None:
    """Why a shard cannot be used; None when every byte of it is as written."""
    record = store.shards[number]
    try:
        shard = store.shard(number)
        bad = {name: list(shard.mismatches(name)) for name in shard.modalities}
        for name, kind in shard.modalities.items():
            shard.pooled(name)
            if LAYERS in kind:
                means = list(shard.differing_layer_means(name, range(len(shard))))
                bad[f"layer means of {name}"] = means
        # A shard inside the head file has none recorded: a file cannot hold its own sha256.
        whole = not record.sha256 or sha256_file(record.path) == record.sha256
    except (MerError, OSError) as error:
        return str(error).removeprefix(f"{record.path}: ").split("; run `mer")[0]
    rows = sorted(set().union(*bad.values()))
    if rows:
        names = ", ".join(name for name in bad if bad[name])
        differ = ("utterance differs from its checksums", "utterances differ from their checksums")
        return (
            f"{len(rows):,} of {plural(len(shard), *differ)} ({names}; first "
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
