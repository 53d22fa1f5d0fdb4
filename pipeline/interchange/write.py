"""What every door hands over, and how it becomes a store."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from pipeline.errors import DataError
from pipeline.store import FeatureStore, Header, ModalityInfo, ShardWriter, build_index
from pipeline.store.arrays import refuse_link, temporary_for

SHARD_BYTES = 128 << 20  # of features held until a shard is written


@dataclass(frozen=True)
class Options:
    """What the user says of a foreign file; None and empty leave it to the file."""

    dataset: str | None = None
    task: str | None = None  # single | multi | regression
    labels: tuple[str, ...] = ()  # names of the classes; for labels given as numbers, in the order of the numbers
    language: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)  # field -> name in the file (columns.FIELDS)
    features: Mapping[str, str] = field(default_factory=dict)  # modality -> name in the file
    frame_rates: Mapping[str, float] = field(default_factory=dict)  # modality -> steps per second
    dtype: str | None = None  # float16 | float32; by default as an exported store says, else float32


@dataclass
class Foreign:
    """A foreign file, read but not yet stored. `frames()` yields, row by row, {modality: (T, D), (D,) or None}."""

    path: Path
    kind: str
    dataset: str
    task: str
    labels: tuple[str, ...]
    language: str
    rows: list[dict]  # columns of the store's table, and duration
    dims: dict[str, int]
    frames: Callable[[], Iterable[Mapping[str, np.ndarray | None]]]
    header: Header | None = None  # of the store that this was exported from
    notes: list[str] = field(default_factory=list)
    source: dict = field(default_factory=dict)


@dataclass
class Report:
    """What the user is told."""

    utterances: int
    splits: dict[str, int]
    replaced: dict[str, int]  # values that were NaN or infinite and are 0 now, per modality
    absent: dict[str, int]  # utterances without that modality
    notes: list[str]


def write_store(foreign: Foreign, out: str | os.PathLike, options: Options, *, force: bool = False) -> tuple[FeatureStore, Report]:
    """Write shards and head beside each other, as extraction does. NaN and infinite values become 0 and are counted."""
    out = Path(out)
    folder = out.parent / f"{out.name.removesuffix('.h5')}.shards"
    refuse_link(folder)
    if os.path.lexists(out):
        if not force:
            raise DataError(f"{out}: exists already; name another --out, or replace it with --force")
        temporary_for(out)  # refuses a device
        out.unlink()  # first: a head over shards that are being replaced would be a lie
    if not foreign.rows:
        raise DataError(f"{foreign.path}: no utterances")
    kept = foreign.header.modalities if foreign.header else {}
    dtypes = {kept[m].dtype for m in foreign.dims if m in kept}
    dtype = options.dtype or ("float16" if dtypes == {"float16"} and foreign.dims.keys() <= kept.keys() else "float32")
    replaced, absent = dict.fromkeys(foreign.dims, 0), dict.fromkeys(foreign.dims, 0)
    shards: list[Path] = []
    rows, pieces = iter(foreign.rows), iter(foreign.frames())
    row = next(rows, None)
    while row is not None:
        shards.append(folder / f"shard-{len(shards):05d}.h5")
        held = 0
        with ShardWriter(shards[-1], foreign.dims, dtype=dtype, meta={"imported": foreign.kind}) as writer:
            while row is not None and held < SHARD_BYTES:
                features = {}
                for m, x in next(pieces).items():
                    features[m], bad = finite(x)
                    replaced[m] += bad
                    held += 0 if features[m] is None else features[m].nbytes
                for m in foreign.dims:
                    absent[m] += features.get(m) is None or not features[m].size
                writer.add(row["id"], features, duration=row.get("duration", float("nan")))
                row = next(rows, None)
    for left in set(folder.glob("shard-?????.h5")) - set(shards):
        left.unlink()  # of an earlier import that was stopped before its head, or replaced
    infos = {}
    for m, dim in foreign.dims.items():
        base = asdict(kept[m]) if m in kept else {"encoder": "imported"}
        infos[m] = ModalityInfo(**base | {"dim": dim} | ({"frame_rate": options.frame_rates[m]} if m in options.frame_rates else {}))
    provenance = {
        "imported": foreign.kind, "file": foreign.path.name, **foreign.source,
        "replaced_non_finite": replaced, "notes": foreign.notes,
    }  # fmt: skip
    if foreign.header:
        provenance["exported_from"] = foreign.header.fingerprint
    store = build_index(
        out, shards, foreign.rows, dataset=foreign.dataset, task=foreign.task, labels=foreign.labels, modalities=infos,
        language=foreign.language, provenance=provenance,
    )  # fmt: skip
    splits = dict(Counter(row.get("split") or "" for row in foreign.rows))
    return store, Report(len(store), splits, replaced, absent, foreign.notes)


def finite(x: np.ndarray | None) -> tuple[np.ndarray | None, int]:
    """(float16 or float32 without NaN and infinity, number of values that were set to 0)."""
    if x is None:
        return None, 0
    x = np.asarray(x)
    if x.dtype.kind not in "fiub":
        return x, 0  # the writer names it
    with np.errstate(over="ignore"):
        x = x.astype(np.float16 if x.dtype == np.float16 else np.float32)
    bad = ~np.isfinite(x)
    count = int(bad.sum())
    if count:
        x[bad] = 0
    return x, count


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
