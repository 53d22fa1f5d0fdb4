"""What every door hands over, and how it becomes a store."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from mer.pipeline.errors import DataError, MerError
from mer.pipeline.runtime.files import folders_for, naming, refuse_link, temporary_for
from mer.pipeline.runtime.hold import hold
from mer.pipeline.runtime.limits import IMPORT_UTTERANCE_BYTES
from mer.pipeline.runtime.terminal import shown
from mer.pipeline.store import (
    FeatureStore,
    Header,
    ModalityInfo,
    ShardWriter,
    build_index,
    verify_shards,
)
from mer.pipeline.store.schema import canonical

SHARD_BYTES = 128 << 20  # of features held until a shard is written


@dataclass(frozen=True)
class Options:
    """What the user says of a foreign file; None and empty leave it to the file."""

    dataset: str | None = None
    task: str | None = None  # single | multi | regression
    labels: tuple[
        str, ...
    ] = ()  # names of the classes; for labels given as numbers, in the order of the numbers
    language: str | None = None
    columns: Mapping[str, str] = field(
        default_factory=dict
    )  # field -> name in the file (columns.FIELDS)
    features: Mapping[str, str] = field(default_factory=dict)  # modality -> name in the file
    frame_rates: Mapping[str, float] = field(default_factory=dict)  # modality -> steps per second
    dtype: str | None = (
        None  # float16 | float32; by default as an exported store says, else float32
    )
    unlabelled: str | None = (
        None  # the label that means there is none; "none": every label is a class
    )


@dataclass
class Foreign:
    """A foreign file, read but not yet stored. `frames()` yields, row by row, {modality: (T, D),
    (D,) or None}."""

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
    written: bool = True  # False: the store was there already, from this very content


def write_store(
    foreign: Foreign, out: str | os.PathLike, options: Options, *, force: bool = False
) -> tuple[FeatureStore, Report]:
    """Write shards and head beside each other, as extraction does. NaN and infinite values become 0
    and are counted.

    A store that is at `out` already is left as it is when it was made of the same content with the
    same meaning, is made again when it is such a one and damaged, and is refused otherwise, unless
    `force`.

    Raises:
        DataError: bad content; something else at `out`; another run is writing there.
        OSError: names the file that could not be written.
    """
    out = Path(out)
    if not foreign.rows:
        raise DataError(f"{foreign.path}: no utterances")
    kept = foreign.header.modalities if foreign.header else {}
    dtypes = {kept[m].dtype for m in foreign.dims if m in kept}
    dtype = options.dtype or (
        "float16" if dtypes == {"float16"} and foreign.dims.keys() <= kept.keys() else "float32"
    )
    infos = {}
    for m, dim in foreign.dims.items():
        base = asdict(kept[m]) if m in kept else {"encoder": "imported"}
        infos[m] = ModalityInfo(
            **base
            | {"dim": dim}
            | ({"frame_rate": options.frame_rates[m]} if m in options.frame_rates else {})
        )
    folder = out.parent / f"{out.name.removesuffix('.h5')}.shards"
    refuse_link(folder)
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder}: not a folder of this store; remove it, or name another --out")
    if os.path.lexists(out) and not force:
        found = _finished(foreign, out, infos, dtype)
        if found is not None:
            return found
    with folders_for(out), naming(out), _held(folder):
        if os.path.lexists(out):
            temporary_for(out)  # refuses a device
            out.unlink()  # first: a head over shards that are being replaced would be a lie
        return _write(foreign, out, folder, infos, dtype)


def _finished(
    foreign: Foreign, out: Path, infos: Mapping[str, ModalityInfo], dtype: str
) -> tuple[FeatureStore, Report] | None:
    """The store at `out`, when it was made of this content; None when it was and is damaged;
    DataError when it was not."""
    other = DataError(
        f"{out}: exists already, from other content or options; name another --out, or replace it "
        "with --force"
    )
    if out.is_dir():
        raise other
    try:
        store = FeatureStore(out, check=False)
    except MerError:
        raise other from None
    provenance = store.header.provenance
    if (
        "content" not in provenance
        or store.header.task != foreign.task
        or len(store) != len(foreign.rows)
    ):
        raise other
    tally = Tally(foreign, infos, dtype)
    for row, features in zip(foreign.rows, foreign.frames(), strict=True):
        tally.add(row, features)
    if tally.digest() != provenance["content"]:
        raise other
    if verify_shards(store):
        foreign.notes.append("the store that was there is damaged, and is made again")
        return None
    return store, tally.report(store, written=False)


class Tally:
    """What goes into a store, counted and hashed on the way: the same digest means the same
    store."""

    def __init__(self, foreign: Foreign, infos: Mapping[str, ModalityInfo], dtype: str) -> None:
        self.foreign = foreign
        self.replaced, self.absent = dict.fromkeys(foreign.dims, 0), dict.fromkeys(foreign.dims, 0)
        self._hash = hashlib.sha256()
        said = [
            foreign.kind,
            foreign.dataset,
            foreign.task,
            foreign.labels,
            foreign.language,
            dtype,
        ]
        self._hash.update(
            canonical([*said, {m: asdict(info) for m, info in infos.items()}]).encode()
        )

    def add(
        self, row: dict, features: Mapping[str, np.ndarray | None]
    ) -> dict[str, np.ndarray | None]:
        """The features of a row, finite, as they are to be stored."""
        out = {}
        self._hash.update(repr(sorted(row.items())).encode("utf-8", "backslashreplace"))
        for m in self.foreign.dims:
            x, dim = features.get(m), self.foreign.dims[m]
            if x is not None and x.size and (x.ndim not in (1, 2) or x.shape[-1] != dim):
                raise DataError(
                    f"{self.foreign.path}: {shown(row['id'], 40)}: {m} has shape {x.shape}, "
                    f"expected (T, {dim}) or ({dim},), as in the other rows; save it again so"
                )
            if x is not None and x.size * 4 > IMPORT_UTTERANCE_BYTES:
                raise DataError(
                    f"{self.foreign.path}: {m} of '{shown(row['id'], 40)}' has shape {x.shape}, "
                    "more than "
                    f"{IMPORT_UTTERANCE_BYTES >> 20:,} MiB for one utterance"
                )
            x, bad = finite(x)
            out[m] = x
            self.replaced[m] += bad
            self.absent[m] += x is None or not x.size
            if x is not None and x.dtype.kind in "fiub":
                self._hash.update(f"\n{m} {x.dtype.str} {x.shape}\n".encode())
                self._hash.update(memoryview(np.ascontiguousarray(x)).cast("B") if x.size else b"")
        return out

    def digest(self) -> str:
        return self._hash.hexdigest()

    def report(self, store: FeatureStore, *, written: bool = True) -> Report:
        splits = dict(Counter(row.get("split") or "" for row in self.foreign.rows))
        return Report(len(store), splits, self.replaced, self.absent, self.foreign.notes, written)


def _write(
    foreign: Foreign, out: Path, folder: Path, infos: Mapping[str, ModalityInfo], dtype: str
) -> tuple[FeatureStore, Report]:
    tally = Tally(foreign, infos, dtype)
    shards: list[Path] = []
    try:
        _write_shards(foreign, folder, tally, shards, dtype)
        store = build_index(
            out,
            shards,
            foreign.rows,
            dataset=foreign.dataset,
            task=foreign.task,
            labels=foreign.labels,
            modalities=infos,
            language=foreign.language,
            provenance=_provenance(foreign, tally),
        )
    except BaseException:
        for path in shards:
            path.unlink(missing_ok=True)
        raise
    for left in set(folder.glob("shard-?????.h5")) - set(shards):
        left.unlink()  # of an earlier import that was stopped before its head, or replaced
    return store, tally.report(store)


def _provenance(foreign: Foreign, tally: Tally) -> dict:
    made = {
        "imported": foreign.kind,
        "file": foreign.path.name,
        **foreign.source,
        "content": tally.digest(),
        "replaced_non_finite": tally.replaced,
        "notes": foreign.notes,
    }
    return made | ({"exported_from": foreign.header.fingerprint} if foreign.header else {})


def _write_shards(
    foreign: Foreign, folder: Path, tally: Tally, shards: list[Path], dtype: str
) -> None:
    """Every row of `foreign` into shards of bounded size, whose paths go into `shards`."""
    rows, pieces = iter(foreign.rows), iter(foreign.frames())
    row = next(rows, None)
    while row is not None:
        shards.append(folder / f"shard-{len(shards):05d}.h5")
        held = 0
        with ShardWriter(
            shards[-1], foreign.dims, dtype=dtype, meta={"imported": foreign.kind}
        ) as writer:
            while row is not None and held < SHARD_BYTES:
                features = tally.add(row, next(pieces))
                held += sum(x.nbytes for x in features.values() if x is not None)
                writer.add(row["id"], features, duration=row.get("duration", float("nan")))
                row = next(rows, None)


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """The hold that extraction takes, on the folder of the shards; a folder that was made for
    nothing goes again."""
    made = not folder.exists()
    try:
        with hold(folder / ".hold"):
            yield
    except BaseException:
        if made:
            with suppress(OSError):  # not empty: shards that the next run replaces
                (folder / ".hold").unlink(missing_ok=True)
                folder.rmdir()
        raise


def finite(x: np.ndarray | None) -> tuple[np.ndarray | None, int]:
    """(float16 or float32 without NaN and infinity, number of values that were set to 0)."""
    if x is None:
        return None, 0
    x = np.asarray(x)
    if x.dtype.kind not in "fiub":
        return x, 0  # the writer names it
    with np.errstate(over="ignore", invalid="ignore"):
        x = x.astype(np.float16 if x.dtype == np.float16 else np.float32)
    bad = ~np.isfinite(x)
    count = int(bad.sum())
    if count:
        x[bad] = 0
    return x, count
