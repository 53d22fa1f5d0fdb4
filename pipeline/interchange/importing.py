"""What a reader of a foreign format hands over, as a store."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from mer.pipeline.errors import DataError, MerError
from mer.pipeline.interchange.foreign import Features, Foreign, ImportOptions, layers_of
from mer.pipeline.interchange.ragged import NUMBERS
from mer.pipeline.runtime.files import folders_for, naming, refuse_link, temporary_for
from mer.pipeline.runtime.hold import hold
from mer.pipeline.runtime.limits import IMPORT_UTTERANCE_BYTES
from mer.pipeline.runtime.progress import SILENT, Advance, Silent
from mer.pipeline.runtime.terminal import plural, shown
from mer.pipeline.store import (
    FeatureStore,
    ModalityInfo,
    ShardWriter,
    build_index,
    refuse_twin,
    shards_of,
    verify_shards,
)
from mer.pipeline.store.schema import canonical

Dtypes = str | dict[str, str]  # as features are stored: all of them, or by modality
SHARD_BYTES = 128 << 20  # of features held until a shard is written


@dataclass
class ImportReport:
    """What the user is told of an import."""

    utterances: int
    splits: dict[str, int]
    replaced: dict[str, int]  # values that were NaN or infinite and are 0 now, per modality
    absent: dict[str, int]  # utterances without that modality
    notes: list[str]
    written: bool = True  # False: the store was there already, from this very content


def write_store(
    foreign: Foreign,
    out: str | os.PathLike,
    options: ImportOptions,
    *,
    force: bool = False,
    lock: bool = True,
    progress: Silent = SILENT,
) -> tuple[FeatureStore, ImportReport]:
    """Write shards and head beside each other, as extraction does. NaN and infinite values become 0
    and are counted.

    A store that is at `out` already is left as it is when it was made of the same content with the
    same meaning, is made again when it is such a one and damaged, and is refused otherwise, unless
    `force`.

    Args:
        foreign: What the reader of a format found.
        out: Where the head file goes; its shards go into a folder beside it.
        options: What the user says: frame rates and dtype are used here.
        force: Replace what is at `out`.
        lock: Hold the folder of the shards; False on a file system without locks.
        progress: Shows how far it is.

    Returns:
        The store, opened, and what to tell the user.

    Raises:
        DataError: Bad content; something else at `out`; another run is writing there.
        OSError: Names the file that could not be written.
    """
    out = Path(out)
    if not foreign.rows:
        raise DataError(f"{foreign.path}: no utterances")
    dtype = _dtype(foreign, options)
    infos = _infos(foreign, options)
    refuse_twin(out)
    folder = shards_of(out)
    refuse_link(folder)
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder}: not a folder of this store; remove it, or name another --out")
    if os.path.lexists(out) and not force:
        found = _finished(foreign, out, infos, dtype)
        if found is not None:
            return found
    with folders_for(out), naming(out), _held(folder, lock):
        if os.path.lexists(out):
            temporary_for(out)  # refuses a device
            out.unlink()  # first: a head over shards that are being replaced would be a lie
        with progress.task("importing", len(foreign.rows), "utterances", brief=True) as advance:
            return _write(foreign, out, folder, infos, dtype, advance)


def _dtype(foreign: Foreign, options: ImportOptions) -> Dtypes:
    """How features are stored: as the user says, else as the exported store had all of them, else
    float32; what is joined, each modality as it was.
    """
    if options.dtype:
        return options.dtype
    kept = foreign.header.modalities if foreign.header else {}
    were = {name: kept[name].dtype if name in kept else "float32" for name in foreign.dims}
    if foreign.kind == "join":
        return were
    return "float16" if set(were.values()) == {"float16"} else "float32"


def _layer_dtypes(foreign: Foreign) -> dict[str, str]:
    """How the layer means of each modality are stored: what is joined as it was, else float16."""
    dtypes = dict.fromkeys(foreign.dims, "float16")
    if foreign.kind == "join" and foreign.header:
        dtypes |= {name: foreign.header.modalities[name].layer_dtype for name in foreign.layers}
    return dtypes


def _infos(foreign: Foreign, options: ImportOptions) -> dict[str, ModalityInfo]:
    """What the store says of each modality: as the exported store did, and what the user adds."""
    kept = foreign.header.modalities if foreign.header else {}
    unknown = options.frame_rates.keys() - foreign.dims.keys()
    if unknown:
        raise DataError(
            f"{foreign.path}: no features of {shown(min(unknown), 40)}, which --frame-rate names; "
            f"it has {', '.join(foreign.dims)}"
        )
    infos = {}
    for modality, dim in foreign.dims.items():
        info = kept.get(modality, ModalityInfo(dim=dim, encoder="imported"))
        rate = options.frame_rates.get(modality, info.frame_rate)
        stack = info.stack if info.dim == dim else ()
        infos[modality] = replace(info, dim=dim, frame_rate=rate, layers=0, stack=stack)
    return infos


def _finished(
    foreign: Foreign,
    out: Path,
    infos: Mapping[str, ModalityInfo],
    dtype: Dtypes,
) -> tuple[FeatureStore, ImportReport] | None:
    """The store at `out`, when it was made of this content; None when it was and is damaged;
    DataError when it was not.
    """
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
    alike = store.header.task == foreign.task and len(store) == len(foreign.rows)
    if "content" not in provenance or not alike:
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
    store.
    """

    def __init__(
        self,
        foreign: Foreign,
        infos: Mapping[str, ModalityInfo],
        dtype: Dtypes,
    ) -> None:
        self.foreign = foreign
        self.infos = infos
        self.replaced, self.absent = dict.fromkeys(foreign.dims, 0), dict.fromkeys(foreign.dims, 0)
        self.replaced |= dict.fromkeys(map(layers_of, foreign.layers), 0)
        # utterances that begin, and that end, with a step of zeros
        self.begin, self.end = dict.fromkeys(foreign.dims, 0), dict.fromkeys(foreign.dims, 0)
        self._hash = hashlib.sha256()
        meaning: list = [
            foreign.kind,
            foreign.dataset,
            foreign.task,
            foreign.labels,
            foreign.language,
            dtype,
            {modality: info.to_dict() for modality, info in infos.items()},
        ]
        self.layer_dtypes = _layer_dtypes(foreign)
        # What says nothing is left out, so that earlier imports are known again.
        wide = [name for name, kind in self.layer_dtypes.items() if kind != "float16"]
        said = {"layers in float32": wide, "flags": foreign.flags if any(foreign.flags) else []}
        meaning += [{name: value} for name, value in said.items() if value]
        self._hash.update(canonical(meaning).encode())

    def add(self, row: dict, features: Features) -> dict[str, np.ndarray | None]:
        """The features of a row, and their layer means, finite, as they are to be stored."""
        out: dict[str, np.ndarray | None] = {}
        self._hash.update(repr(sorted(row.items())).encode("utf-8", "backslashreplace"))
        for modality in self.foreign.dims:
            given = features.get(modality)
            self._check_shape(row, modality, given)
            kept, bad = finite(given)
            out[modality] = kept
            self.replaced[modality] += bad
            self.absent[modality] += kept is None or not kept.size
            if kept is not None and kept.dtype.kind in NUMBERS:
                self._take(modality, kept)
                if kept.ndim == 2 and len(kept) > 1 and kept.any():
                    self.begin[modality] += not kept[0].any()
                    self.end[modality] += not kept[-1].any()
        for modality in self.foreign.layers:
            frames, name = out[modality], layers_of(modality)
            means, bad = finite(features.get(name))
            there = frames is not None and frames.size > 0
            # An absent modality has layer means of zero in a file that needs a number everywhere.
            means = None if means is not None and not there and not means.any() else means
            if there != (means is not None):
                raise DataError(
                    f"{self.foreign.path}: {shown(row['id'], 40)} has {modality} or {name} without "
                    "the other; leave both out, or neither"
                )
            expected = self.foreign.layers[modality], self.infos[modality].width
            if means is not None and means.shape != expected:
                raise DataError(
                    f"{self.foreign.path}: {shown(row['id'], 40)}: {name} has shape {means.shape}, "
                    f"expected {expected}"
                )
            self.replaced[name] += bad
            out[name] = means
            if means is not None:
                self._take(name, means)
        return out

    def _take(self, name: str, x: np.ndarray) -> None:
        """An array into the digest."""
        self._hash.update(f"\n{name} {x.dtype.str} {x.shape}\n".encode())
        self._hash.update(x.tobytes())

    def _check_shape(self, row: dict, modality: str, given: np.ndarray | None) -> None:
        """Raises DataError for features of another width than in the other rows, or too many."""
        if given is None:
            return
        dim = self.foreign.dims[modality]
        if given.size and (given.ndim not in (1, 2) or given.shape[-1] != dim):
            raise DataError(
                f"{self.foreign.path}: {shown(row['id'], 40)}: {modality} has shape {given.shape}, "
                f"expected (T, {dim}) or ({dim},), as in the other rows; save it again so"
            )
        if given.size * np.dtype(np.float32).itemsize > IMPORT_UTTERANCE_BYTES:
            raise DataError(
                f"{self.foreign.path}: {modality} of '{shown(row['id'], 40)}' has shape "
                f"{given.shape}, more than {IMPORT_UTTERANCE_BYTES >> 20:,} MiB for one utterance"
            )

    def digest(self) -> str:
        return self._hash.hexdigest()

    def report(self, store: FeatureStore, *, written: bool = True) -> ImportReport:
        splits = Counter(row.get("split") or "" for row in self.foreign.rows)
        notes = [*self.foreign.notes, *self._padding()]
        return ImportReport(len(store), dict(splits), self.replaced, self.absent, notes, written)

    def _padding(self) -> Iterator[str]:
        """Lines on what looks like padding, where the reader has no lengths to hold it against."""
        for modality, begin in self.begin.items():
            end = self.end[modality]
            if modality not in self.foreign.padded and (begin or end):
                yield (
                    f"{modality}: {plural(begin, 'utterance begins', 'utterances begin')} and "
                    f"{end:,} end with steps that are all zero; kept: cut them off if they are "
                    "padding"
                )


def _write(
    foreign: Foreign,
    out: Path,
    folder: Path,
    infos: Mapping[str, ModalityInfo],
    dtype: Dtypes,
    advance: Advance,
) -> tuple[FeatureStore, ImportReport]:
    tally = Tally(foreign, infos, dtype)
    shards: list[Path] = []
    try:
        _write_shards(foreign, folder, tally, shards, dtype, advance)
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
    foreign: Foreign,
    folder: Path,
    tally: Tally,
    shards: list[Path],
    dtype: Dtypes,
    advance: Advance,
) -> None:
    """Every row of `foreign` into shards of bounded size, whose paths go into `shards`."""
    rows, pieces = iter(foreign.rows), iter(foreign.frames())
    flags = iter(foreign.flags or [0] * len(foreign.rows))
    row = next(rows, None)
    while row is not None:
        shards.append(folder / f"shard-{len(shards):05d}.h5")
        held = 0
        with ShardWriter(
            shards[-1],
            foreign.dims,
            dtype=dtype,
            meta={"imported": foreign.kind},
            layers=foreign.layers,
            layer_dtype=tally.layer_dtypes,
        ) as writer:
            while row is not None and held < SHARD_BYTES:
                features = tally.add(row, next(pieces))
                held += sum(x.nbytes for x in features.values() if x is not None)
                means = {name: features.pop(layers_of(name)) for name in foreign.layers}
                duration = row.get("duration", float("nan"))
                writer.add(
                    row["id"],
                    features,
                    duration=duration,
                    flags=next(flags),
                    layer_means=means,
                )
                row = next(rows, None)
                advance(1)


@contextmanager
def _held(folder: Path, lock: bool) -> Iterator[None]:
    """The hold that extraction takes, on the folder of the shards; a folder that was made for
    nothing goes again.
    """
    made = not folder.exists()
    try:
        with hold(folder / ".hold", lock=lock):
            yield
    except BaseException:
        if made:
            with suppress(OSError):  # not empty: shards that the next run replaces
                (folder / ".hold").unlink(missing_ok=True)
                folder.rmdir()
        raise


def finite(x: np.ndarray | None) -> tuple[np.ndarray | None, int]:
    """(float16 or float32 without NaN and infinity, number of values that were set to 0).

    What is no number stays as it is: the writer of the shard names it.
    """
    if x is None:
        return None, 0
    x = np.asarray(x)
    if x.dtype.kind not in NUMBERS:
        return x, 0
    with np.errstate(over="ignore", invalid="ignore"):
        x = x.astype(np.float16 if x.dtype == np.float16 else np.float32)
    bad = ~np.isfinite(x)
    count = int(bad.sum())
    if count:
        x[bad] = 0
    return x, count
