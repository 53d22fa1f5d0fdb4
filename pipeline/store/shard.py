"""One closed shard: frames of many utterances end to end, one contiguous array a modality."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import h5py
import numpy as np

from mer.pipeline.errors import DataError, StoreError, StoreVersionError
from mer.pipeline.runtime.limits import DIM, HEADER_BYTES
from mer.pipeline.store import arrays
from mer.pipeline.store.schema import (
    DTYPES,
    FORMAT_VERSION,
    HALF_MAX,
    SHARD_FORMAT,
    blob,
    canonical,
    check_offsets,
    demand,
    is_count,
    is_modality,
    pack_strings,
    read_json,
    unpack_strings,
)


class ShardWriter:
    """Collects utterances and publishes them as one shard on a clean exit; on an exception nothing
    appears.

    The same input gives the same bytes. Utterances are held in memory (as given, at most float32)
    until then: 64-256 MB is a good shard. `overflow` counts, per modality, the values that did not
    fit float16: that modality of the shard is then float32.
    """

    def __init__(
        self,
        path: str | Path,
        modalities: Mapping[str, int],
        *,
        dtype: str = "float16",
        meta: dict | None = None,
        key: str = "",
    ) -> None:
        if dtype not in DTYPES:
            raise DataError(f"{path}: dtype '{dtype}' is not one of {', '.join(DTYPES)}")
        for name, dim in modalities.items():
            if not is_modality(name):
                raise DataError(
                    f"{path}: '{name}' cannot name a modality; use lower-case letters, digits and "
                    "'_', e.g. audio"
                )
            if not 1 <= dim <= DIM:
                raise DataError(f"{path}: modality {name} has dim {dim}, expected 1 to {DIM:,}")
        if not modalities:
            raise DataError(f"{path}: a shard needs at least one modality")
        self.path = Path(path)
        self.modalities = {name: int(dim) for name, dim in modalities.items()}
        self.dtype = dtype
        self.meta = meta or {}
        self.key = key
        self.overflow = dict.fromkeys(modalities, 0)
        self._ids: dict[str, int] = {}
        self._frames: dict[str, list[np.ndarray]] = {name: [] for name in modalities}
        self._duration: list[float] = []
        self._flags: list[int] = []

    def __len__(self) -> int:
        return len(self._ids)

    def add(
        self,
        id: str,
        features: Mapping[str, np.ndarray | None],
        *,
        duration: float = float("nan"),
        flags: int = 0,
    ) -> None:
        """`features[m]` (T, D) or (D,), T = 0 or None when absent; `duration` in seconds; `flags`
        32 bits of the caller's.
        """
        if not id:
            raise DataError(f"{self.path}: empty id; every utterance needs one")
        try:
            id.encode()
        except UnicodeEncodeError:
            raise DataError(f"{self.path}: id {id!r} is not text (half a surrogate pair)") from None
        if id in self._ids:
            raise DataError(f"{self.path}: id '{id}' twice in one shard")
        unknown = features.keys() - self.modalities.keys()
        if unknown:
            raise DataError(
                f"{self.path}: {id} has modality '{sorted(unknown)[0]}', the shard holds "
                f"{', '.join(self.modalities)}"
            )
        frames = {name: self._checked(id, name, features.get(name)) for name in self.modalities}
        for name, x in frames.items():
            self._frames[name].append(x)
            if (
                self.dtype == "float16"
                and x.dtype != np.float16
                and x.size
                and largest(x) > HALF_MAX
            ):
                self.overflow[name] += int((np.abs(x) > HALF_MAX).sum())
        self._ids[id] = len(self._ids)
        self._duration.append(duration)
        self._flags.append(flags)

    def _checked(self, id: str, name: str, x: np.ndarray | None) -> np.ndarray:
        """(T, D) finite, float16 or float32, not shared with the caller."""
        dim = self.modalities[name]
        x = np.empty((0, dim), np.float16) if x is None else np.asarray(x)
        x = x[None] if x.ndim == 1 and x.size else x
        if x.size == 0:
            return np.empty((0, dim), np.float16)
        if x.ndim != 2 or x.shape[1] != dim:
            raise DataError(f"{self.path}: {id}: {name} has shape {x.shape}, expected (T, {dim})")
        if x.dtype.kind not in "fiub":
            raise DataError(
                f"{self.path}: {id}: {name} has dtype {x.dtype}, expected floating point"
            )
        with np.errstate(over="ignore"):
            x = np.array(x, np.float16 if x.dtype == np.float16 else np.float32, order="C")
        if not largest(x) < np.inf:
            bad = int((~np.isfinite(x)).sum())
            raise DataError(
                f"{self.path}: {id}: {name} has {bad} values that are NaN or infinite; features "
                "must be finite"
            )
        return x

    def close(self) -> None:
        """Publish the shard. Called by a clean exit of the context."""
        dtypes = {
            m: "float32" if self.dtype == "float32" or self.overflow[m] else "float16"
            for m in self.modalities
        }
        for m, frames in self._frames.items():
            self._frames[m] = [x.astype(dtypes[m], copy=False) for x in frames]
        kinds = [
            {"name": m, "dim": d, "dtype": dtypes[m], "overflow": self.overflow[m]}
            for m, d in self.modalities.items()
        ]
        attrs, data = compose(
            kinds,
            list(self._ids),
            self._frames.__getitem__,
            duration=self._duration,
            flags=self._flags,
            meta=self.meta,
            key=self.key,
        )
        arrays.write(self.path, attrs={"/": attrs}, arrays=data)

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind, error, trace) -> None:
        if kind is None:
            self.close()
        self._frames.clear()


def compose(
    kinds: list[dict],
    ids: Sequence[str],
    frames: Callable[[str], Iterable[np.ndarray]],
    *,
    duration: Sequence[float],
    flags: Sequence[int],
    meta: dict,
    key: str,
) -> tuple[dict[str, str | int], dict[str, np.ndarray | arrays.Stream]]:
    """Attributes and arrays of a shard.

    `frames(m)` yields the (T, D) of every id, in order; it is called twice a modality (checksums,
    then writing), so that a shard larger than memory can be streamed.
    """
    data: dict[str, np.ndarray | arrays.Stream] = {}
    bulk: dict[str, np.ndarray | arrays.Stream] = {}
    data["ids/x"], data["ids/offsets"] = pack_strings(ids)
    data["crc32"] = np.zeros((len(ids), len(kinds)), "<u4")
    data["duration"], data["flags"] = np.asarray(duration, "<f8"), np.asarray(flags, "<u4")
    recorded = []
    for j, kind in enumerate(kinds):
        m, lengths, pooled = (
            kind["name"],
            np.zeros(len(ids), "<i8"),
            np.zeros((len(ids), kind["dim"]), "<f4"),
        )
        for i, x in enumerate(frames(m)):
            lengths[i], data["crc32"][i, j] = len(x), checksum(x)
            if len(x):
                pooled[i] = x.mean(axis=0, dtype=np.float64)
        data[f"{m}/offsets"] = np.concatenate([[0], np.cumsum(lengths)]).astype("<i8")
        bulk[f"{m}/pooled"] = pooled
        bulk[f"{m}/x"] = arrays.Stream(
            np.dtype(kind["dtype"]).newbyteorder("<").str,
            (int(lengths.sum()), kind["dim"]),
            frames(m),
        )
        recorded.append({**kind, "pooled_crc32": checksum(pooled)})
    data["meta"] = blob(canonical({"modalities": recorded, "meta": meta}))
    attrs = {"format": SHARD_FORMAT, "version": FORMAT_VERSION, "key": key}
    return {**attrs, "identity": arrays.digest(attrs, data)}, {**data, **bulk}


def largest(x: np.ndarray) -> float:
    """Largest magnitude in `x`, NaN or infinity if there is one.

    Halves are compared by their bits, for which every machine has instructions.
    """
    if x.dtype == np.float16:
        return float(np.array((x.view(np.uint16) & 0x7FFF).max()).view(np.float16))
    return float(max(x.max(), -x.min()))


def checksum(x: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(x)) if x.size else 0


class Shard:
    """A published shard, open for reading.

    Everything small is read and checked here; frames are mapped, not read.

    `group` is where in the file it lies: a store of a single file holds its one shard in a group.
    """

    def __init__(self, path: str | Path, group: str = "/") -> None:
        self.path = Path(path)
        self._group = group
        self._mapped: dict[str, np.ndarray] = {}
        with arrays.opened(self.path, "shard") as root:
            self.bytes = self.path.stat().st_size
            file = arrays.group_of(root, group)
            check_format(file, self.path, SHARD_FORMAT, "shard")
            attrs = {name: arrays.attribute(file, name) for name in ("format", "version", "key")}
            data = {
                name: arrays.read(file, name, dtype)
                for name, dtype in (("ids/x", "u1"), ("ids/offsets", "<i8"))
            }
            data["meta"] = arrays.read(file, "meta", "u1", limit=HEADER_BYTES)
            kinds, self.meta = _described(data["meta"].tobytes())
            self.modalities: dict[str, dict] = {kind["name"]: kind for kind in kinds}
            data["crc32"] = self.crc32 = arrays.read(file, "crc32", "<u4", 2)  # (n, modalities)
            data["duration"] = self.duration = arrays.read(file, "duration", "<f8")
            data["flags"] = self.flags = arrays.read(file, "flags", "<u4")
            self.offsets: dict[str, np.ndarray] = {}
            for name in self.modalities:
                data[f"{name}/offsets"] = self.offsets[name] = arrays.read(
                    file, f"{name}/offsets", "<i8"
                )
            self.identity = arrays.attribute(file, "identity")
            if self.identity != arrays.digest(attrs, data):
                raise ValueError("its index does not match its own checksum")
            self.key: str = attrs["key"]
            self.ids: list[str] = unpack_strings(data["ids/x"], data["ids/offsets"]).to_pylist()
            if not len(self.crc32) == len(self.duration) == len(self.flags) == len(self.ids):
                raise ValueError("its columns differ in length")
            if self.crc32.shape[1] != len(self.modalities):
                raise ValueError("its checksums are not those of its modalities")
            for name, kind in self.modalities.items():
                self._map(file, name, kind)

    def __len__(self) -> int:
        return len(self.ids)

    def frames(self, modality: str, start: int, stop: int) -> np.ndarray:
        """Frames of the consecutive utterances [start, stop): (sum T, D) in the stored dtype, a
        read-only view of the file.
        """
        offsets = self.offsets[modality]
        first, last = int(offsets[start]), int(offsets[stop])
        return self._mapped[modality][first:last]

    def pooled(self, modality: str) -> np.ndarray:
        """(n, D) float32, mean over each utterance's frames; zeros where it has none."""
        with arrays.opened(self.path, "shard") as file:
            kind = self.modalities[modality]
            size = 4 * len(self) * kind["dim"]
            pooled = arrays.read(
                arrays.group_of(file, self._group), f"{modality}/pooled", "<f4", 2, limit=size
            )
            if pooled.shape != (len(self), kind["dim"]) or checksum(pooled) != kind["pooled_crc32"]:
                raise ValueError(f"{modality}/pooled does not match its checksum")
            return pooled

    def check(self, modality: str, x: np.ndarray, start: int, stop: int, *, store: Path) -> None:
        """Raise StoreError unless `x`, the frames of the utterances [start, stop), match their
        checksums; `store` is for the message.
        """
        bad = next(self.differing(modality, x, start, stop), None)
        if bad is not None:
            raise StoreError(
                f"{self.path}: {modality} of '{self.ids[bad]}' does not match its checksum; run "
                f"`mer verify --repair {store}`"
            )

    def mismatches(self, modality: str) -> Iterator[int]:
        """Rows whose frames do not match their crc32; reads the shard in pieces of bounded size."""
        offsets, limit = (
            self.offsets[modality],
            max(1, (16 << 20) // (4 * self.modalities[modality]["dim"])),
        )
        start = 0
        while start < len(self):
            stop = max(
                start + 1, int(np.searchsorted(offsets, offsets[start] + limit, side="right")) - 1
            )
            yield from self.differing(modality, self.frames(modality, start, stop), start, stop)
            start = stop

    def differing(self, modality: str, x: np.ndarray, start: int, stop: int) -> Iterator[int]:
        """Rows whose crc32 is not that of their frames in `x`, which are those of the utterances
        [start, stop).
        """
        offsets, crc = self.offsets[modality], self.crc32[:, list(self.modalities).index(modality)]
        for i in range(start, stop):
            part = x[offsets[i] - offsets[start] : offsets[i + 1] - offsets[start]]
            if checksum(part) != crc[i]:
                yield i

    def _map(self, file: h5py.File, name: str, kind: dict) -> None:
        """Map the frames where they lie."""
        x = arrays.dataset(file, f"{name}/x")
        if x.ndim != 2 or x.shape[1] != kind["dim"] or x.dtype.name != kind["dtype"]:
            raise ValueError(
                f"{name}/x is {x.shape} {x.dtype}, recorded as (T, {kind['dim']}) {kind['dtype']}"
            )
        if len(self.offsets[name]) != len(self.ids) + 1:
            raise ValueError(
                f"{name} has {len(self.offsets[name]) - 1} utterances of {len(self.ids)}"
            )
        check_offsets(self.offsets[name], x.shape[0])
        if x.size == 0:
            self._mapped[name] = np.empty(x.shape, x.dtype)
            return
        # A plain array over the map: slicing np.memmap itself costs twice as much.
        self._mapped[name] = np.asarray(
            np.memmap(self.path, x.dtype, "r", arrays.place(x), x.shape)
        )


def _described(raw: bytes) -> tuple[list[dict], dict]:
    """What a shard says of its modalities, and what its writer noted; raises ValueError when it is
    not what the format says.
    """
    meta = read_json(raw, "its description")
    demand(
        isinstance(meta, dict) and isinstance(meta.get("meta"), dict),
        "its description is not an object",
    )
    kinds = meta.get("modalities")
    demand(isinstance(kinds, list) and bool(kinds), "its description has no modalities")
    for kind in kinds:
        demand(
            isinstance(kind, dict) and isinstance(kind.get("name"), str),
            "its description has a modality without a name",
        )
        demand(is_modality(kind["name"]), "its description has a modality without a proper name")
        demand(
            is_count(kind.get("dim")) and 0 < kind["dim"] <= DIM,
            f"its dim of {kind['name']} is not a number from 1",
        )
        demand(
            kind.get("dtype") in DTYPES,
            f"its dtype of {kind['name']} is not one of {', '.join(DTYPES)}",
        )
        counts = is_count(kind.get("overflow")) and is_count(kind.get("pooled_crc32"))
        demand(counts, f"its counts of {kind['name']} are not numbers from 0")
    demand(
        len({kind["name"] for kind in kinds}) == len(kinds), "its description has a modality twice"
    )
    return kinds, meta["meta"]


def check_format(file: h5py.Group, path: Path, expected: str, what: str) -> None:
    """Raise unless the file says it is `expected`, of the version this code reads."""
    found = arrays.attribute(file, "format") if "format" in file.attrs else None
    if found == SHARD_FORMAT != expected:
        raise StoreError(f"{path}: this is a shard; open the head file that names it")
    if found != expected:
        raise StoreError(
            f"{path}: HDF5, but not a mer {what}; features made elsewhere come in with `mer import`"
        )
    version = arrays.attribute(file, "version")
    if version != FORMAT_VERSION:
        raise StoreVersionError(
            f"{path}: {what} of format version {version}, this mer reads {FORMAT_VERSION}; use a "
            "mer that fits"
        )
