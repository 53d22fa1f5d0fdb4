"""One closed shard: frames of many utterances end to end, in one contiguous array per modality."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import h5py
import numpy as np

from mer.pipeline.errors import DataError, StoreError, StoreVersionError
from mer.pipeline.runtime.limits import DIM, HEADER_BYTES
from mer.pipeline.runtime.terminal import plural
from mer.pipeline.store import arrays
from mer.pipeline.store.schema import (
    DTYPES,
    FORMAT_VERSION,
    HALF_MAX,
    LAYERS,
    SHARD_FORMAT,
    SHARD_VERSIONS,
    VERSIONS,
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

PIECE_BYTES = 16 << 20  # of float32 that are held against their checksums at a time


class ShardWriter:
    """Collects utterances and publishes them as one shard.

    It is a context manager: a clean exit publishes, an exception leaves nothing behind. The same
    input gives the same bytes. Utterances are held in memory (as given, at most float32) until
    then: 64 to 256 MB make a good shard.

    Attributes:
        overflow: For each modality, how many values did not fit float16: that modality of the shard
            is then float32.

    Args:
        path: Where the shard is to appear.
        modalities: Names, and the count of numbers per step (D) of each.
        dtype: "float16" or "float32", as the features are stored; or that for each modality.
        meta: What the writer notes of the shard, as JSON has it.
        key: What the shard was made from, for writers that resume.
        layers: For each modality that has layer means, how many (L).
        layer_dtype: As `dtype`, of the layer means.

    Raises:
        DataError: A modality, its dim or its layers cannot be stored, or a dtype is unknown.

    >>> writer = ShardWriter("shard-00000.h5", {"audio": 2})
    >>> writer.add("u0", {"audio": np.ones((3, 2))}, duration=0.06)
    >>> len(writer)
    1
    """

    def __init__(
        self,
        path: str | Path,
        modalities: Mapping[str, int],
        *,
        dtype: str | Mapping[str, str] = "float16",
        meta: dict | None = None,
        key: str = "",
        layers: Mapping[str, int] | None = None,
        layer_dtype: str | Mapping[str, str] = "float16",
    ) -> None:
        dtypes = _by_modality(dtype, modalities)
        layer_dtypes = _by_modality(layer_dtype, modalities)
        for given in (*dtypes.values(), *layer_dtypes.values()):
            if given not in DTYPES:
                raise DataError(f"{path}: dtype '{given}' is not one of {', '.join(DTYPES)}")
        for name, dim in modalities.items():
            if not is_modality(name):
                raise DataError(
                    f"{path}: '{name}' cannot name a modality; use lower-case letters, digits and "
                    "'_', e.g. audio or audio.egemaps"
                )
            if not 1 <= dim <= DIM:
                raise DataError(f"{path}: modality {name} has dim {dim}, expected 1 to {DIM:,}")
        if not modalities:
            raise DataError(f"{path}: a shard needs at least one modality")
        self.layers = {name: int(count) for name, count in (layers or {}).items() if count}
        for name, count in self.layers.items():
            if name not in modalities or not 1 <= count <= DIM:
                raise DataError(
                    f"{path}: {plural(count, 'layer')} of {name}, which the shard cannot hold"
                )
        self.path = Path(path)
        self.modalities = {name: int(dim) for name, dim in modalities.items()}
        self.dtypes = dtypes
        self.layer_dtypes = layer_dtypes
        self.meta = meta or {}
        self.key = key
        self.overflow = dict.fromkeys(modalities, 0)
        self._ids: dict[str, int] = {}
        self._frames: dict[str, list[np.ndarray]] = {name: [] for name in modalities}
        # None where the modality is absent
        self._means: dict[str, list] = {name: [] for name in self.layers}
        self._width: dict[str, int] = {}  # numbers per layer, as the first layer means have them
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
        layer_means: Mapping[str, np.ndarray | None] | None = None,
    ) -> None:
        """Add one utterance.

        Args:
            id: Its name, unique in the store.
            features: For each modality (T, D), or (D,) for one step; T = 0 or None where it is
                absent. Any kind of real numbers, all finite.
            duration: In seconds; NaN where it is not known.
            flags: 32 bits of the caller's.
            layer_means: For each modality of `layers` that is there, (L, width): the mean of every
                layer over the true steps.

        Raises:
            DataError: The id is empty, no text or there already; features or layer means are of
                another shape, no numbers, or not finite; there are features without layer means.
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
        given = layer_means or {}
        means = {
            name: self._checked_means(id, name, given.get(name), bool(len(frames[name])))
            for name in self.layers
        }
        unknown = given.keys() - means.keys()
        if unknown:
            raise DataError(
                f"{self.path}: {id} has layer means of {sorted(unknown)[0]}, of which the shard "
                "keeps none"
            )
        for name, mean in means.items():
            self._means[name].append(mean)
        for name, x in frames.items():
            self._frames[name].append(x)
            narrowed = self.dtypes[name] == "float16" and x.dtype != np.float16
            if narrowed and x.size and largest(x) > HALF_MAX:
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
        return self._finite(id, name, x)

    def _checked_means(
        self, id: str, name: str, x: np.ndarray | None, there: bool
    ) -> np.ndarray | None:
        """(L, width), as `_finite` gives it; None where the modality is absent."""
        if x is None and not there:
            return None
        if x is None or not there:
            which = "layer means" if there else "frames"
            raise DataError(f"{self.path}: {id}: {name} has no {which}, but the other of the two")
        x = np.asarray(x)
        count, width = self.layers[name], self._width.get(name, x.shape[-1] if x.ndim else 0)
        if x.shape != (count, width) or not 1 <= count * width <= DIM:
            raise DataError(
                f"{self.path}: {id}: the layer means of {name} have shape {x.shape}, expected "
                f"({count}, {width})"
            )
        self._width[name] = width
        return self._finite(id, f"the layer means of {name}", x)

    def _finite(self, id: str, name: str, x: np.ndarray) -> np.ndarray:
        """A copy in float16 or float32; DataError for what is no number or not finite."""
        if x.dtype.kind not in "fiub":
            raise DataError(
                f"{self.path}: {id}: {name} has dtype {x.dtype}, expected floating point"
            )
        with np.errstate(over="ignore"):
            x = np.array(x, np.float16 if x.dtype == np.float16 else np.float32, order="C")
        if not largest(x) < np.inf:
            bad = int((~np.isfinite(x)).sum())
            odd = ("value that is", "values that are")
            raise DataError(
                f"{self.path}: {id}: {name} has {plural(bad, *odd)} NaN or infinite; features "
                "must be finite"
            )
        return x

    def close(self) -> None:
        """Publish the shard; a clean exit of the context calls it.

        Raises:
            DataError: `meta` is not JSON, or the path is a device or a pipe.
            OSError: The disk is full, the folder cannot be written, …
        """
        kinds = []
        for name, dim in self.modalities.items():
            overflow = self.overflow[name]
            dtype = "float32" if overflow else self.dtypes[name]
            self._frames[name] = [x.astype(dtype, copy=False) for x in self._frames[name]]
            kind = {"name": name, "dim": dim, "dtype": dtype, "overflow": overflow}
            kinds.append(kind | self._close_means(name))
        attrs, data = compose(
            kinds,
            list(self._ids),
            self._frames.__getitem__,
            self._means.__getitem__,
            duration=self._duration,
            flags=self._flags,
            meta=self.meta,
            key=self.key,
        )
        arrays.write(self.path, attrs={"/": attrs}, arrays=data)

    def _close_means(self, name: str) -> dict[str, dict]:
        """What is recorded of the layer means of a modality, which are then of one dtype, zero
        where it is absent; nothing where it has none.
        """
        if name not in self.layers:
            return {}
        means, shape = self._means[name], (self.layers[name], self._width.get(name, 0))
        wide = any(x is not None and x.size and largest(x) > HALF_MAX for x in means)
        dtype = "float32" if wide else self.layer_dtypes[name]
        self._means[name] = [
            np.zeros(shape, dtype) if x is None else x.astype(dtype, copy=False) for x in means
        ]
        return {LAYERS: {"count": shape[0], "width": shape[1], "dtype": dtype}}

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind, error, trace) -> None:
        if kind is None:
            self.close()
        self._frames.clear()
        self._means.clear()


def _by_modality(dtype: str | Mapping[str, str], modalities: Iterable[str]) -> dict[str, str]:
    """A dtype for each modality, of one for all of them or of that already."""
    return dict.fromkeys(modalities, dtype) if isinstance(dtype, str) else dict(dtype)


def compose(
    kinds: list[dict],
    ids: Sequence[str],
    frames: Callable[[str], Iterable[np.ndarray]],
    means: Callable[[str], Iterable[np.ndarray]],
    *,
    duration: Sequence[float],
    flags: Sequence[int],
    meta: dict,
    key: str,
) -> tuple[dict[str, str | int], dict[str, np.ndarray | arrays.Stream]]:
    """What a shard is made of.

    Args:
        kinds: name, dim, dtype and overflow of each modality; of one with layer means also
            "layers": their count, width and dtype.
        ids: Names of the n utterances.
        frames: Yields, for a modality, the (T, D) of every utterance, in order. It is called twice
            per modality (for the checksums, then for writing), so that a shard larger than memory
            can be streamed.
        means: Likewise the (L, width) of every utterance, for a modality with layer means.
        duration: (n,) seconds.
        flags: (n,) 32 bits of the writer's.
        meta: What the writer notes, as JSON has it.
        key: What the shard was made from.

    Returns:
        The attributes and the arrays of the file.
    """
    data: dict[str, np.ndarray] = {}  # what its own checksum covers
    bulk: dict[str, np.ndarray | arrays.Stream] = {}
    data["ids/x"], data["ids/offsets"] = pack_strings(ids)
    data["crc32"] = np.zeros((len(ids), len(kinds)), "<u4")
    data["duration"], data["flags"] = np.asarray(duration, "<f8"), np.asarray(flags, "<u4")
    recorded = []
    for column, kind in enumerate(kinds):
        name, dim = kind["name"], kind["dim"]
        lengths, pooled = np.zeros(len(ids), "<i8"), np.zeros((len(ids), dim), "<f4")
        for row, x in enumerate(frames(name)):
            lengths[row], data["crc32"][row, column] = len(x), checksum(x)
            if len(x):
                pooled[row] = x.mean(axis=0, dtype=np.float64)
        data[f"{name}/offsets"] = np.concatenate([[0], np.cumsum(lengths)]).astype("<i8")
        bulk[f"{name}/pooled"] = pooled
        dtype = np.dtype(kind["dtype"]).newbyteorder("<").str
        shape = (int(lengths.sum()), dim)
        bulk[f"{name}/x"] = arrays.Stream(dtype, shape, frames(name))
        if LAYERS in kind:
            sums = [checksum(x) for x in means(name)]
            data[f"{name}/{LAYERS}_crc32"] = np.array(sums, "<u4")
            bulk[f"{name}/{LAYERS}"] = _stream(kind[LAYERS], len(ids), means(name))
        recorded.append({**kind, "pooled_crc32": checksum(pooled)})
    data["meta"] = blob(canonical({"modalities": recorded, "meta": meta}))
    attrs: dict[str, str | int] = {"format": SHARD_FORMAT, "version": FORMAT_VERSION, "key": key}
    return {**attrs, "identity": arrays.digest(attrs, data)}, {**data, **bulk}


def _stream(layers: dict, n: int, means: Iterable[np.ndarray]) -> arrays.Stream:
    """The layer means of n utterances, one after the other."""
    dtype = np.dtype(layers["dtype"]).newbyteorder("<").str
    return arrays.Stream(dtype, (n, layers["count"], layers["width"]), means)


def largest(x: np.ndarray) -> float:
    """Largest magnitude in `x`, NaN or infinity if there is one.

    Halves are compared by their bits, for which every machine has instructions.
    """
    if x.dtype == np.float16:
        return float(np.array((x.view(np.uint16) & 0x7FFF).max()).view(np.float16))
    return float(max(x.max(), -x.min()))


def checksum(x: np.ndarray) -> int:
    """The crc32 of an array's bytes; 0 for one without any."""
    return zlib.crc32(np.ascontiguousarray(x).data) if x.size else 0


class Shard:
    """A published shard, open for reading.

    Everything small is read and checked here; frames are mapped, not read.

    Attributes:
        path: The file.
        key: What the shard was made from.
        meta: What its writer noted.
        modalities: name, dim, dtype, overflow and pooled_crc32 of each, by its name, and "layers"
            (count, width, dtype) of one with layer means.
        ids: Names of the n utterances.
        duration: (n,) float64, seconds.
        flags: (n,) uint32, bits of the writer's.
        crc32: (n, modalities) uint32, of the frames.
        offsets: For each modality, where its utterances begin and end: (n+1,) int64, in steps.
        layers_crc32: For each modality with layer means their checksums, (n,) uint32.

    Args:
        path: The file.
        group: Where in the file it lies: a store of a single file holds its one shard in a group.
        remedy: What mends it where it cannot be read, for the message.

    Raises:
        DataError: There is no such file.
        StoreError: It is damaged, or no shard.
        StoreVersionError: It is of a format version that this code does not read.
    """

    def __init__(self, path: str | os.PathLike, group: str = "/", *, remedy: str = "") -> None:
        self.path = Path(path)
        self._group = group
        self._remedy = remedy
        self._mapped: dict[str, np.ndarray] = {}
        with arrays.opened(self.path, "shard", self._remedy) as root:
            self.bytes = self.path.stat().st_size
            file = arrays.group_of(root, group)
            check_format(file, self.path, SHARD_FORMAT, "shard")
            attrs = {name: arrays.attribute(file, name) for name in ("format", "version", "key")}
            data = {"ids/x": arrays.read(file, "ids/x", "u1")}
            data["ids/offsets"] = arrays.read(file, "ids/offsets", "<i8")
            data["meta"] = arrays.read(file, "meta", "u1", limit=HEADER_BYTES)
            kinds, self.meta = _described(data["meta"].tobytes())
            self.modalities: dict[str, dict] = {kind["name"]: kind for kind in kinds}
            data["crc32"] = self.crc32 = arrays.read(file, "crc32", "<u4", 2)
            data["duration"] = self.duration = arrays.read(file, "duration", "<f8")
            data["flags"] = self.flags = arrays.read(file, "flags", "<u4")
            self.offsets: dict[str, np.ndarray] = {}
            self.layers_crc32: dict[str, np.ndarray] = {}
            for name, kind in self.modalities.items():
                place = f"{name}/offsets"
                data[place] = self.offsets[name] = arrays.read(file, place, "<i8")
                if LAYERS in kind:
                    place = f"{name}/{LAYERS}_crc32"
                    data[place] = self.layers_crc32[name] = arrays.read(file, place, "<u4")
            self.identity = str(arrays.attribute(file, "identity"))
            if self.identity != arrays.digest(attrs, data):
                raise ValueError("its index does not match its own checksum")
            self.key = str(attrs["key"])
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
        """Frames of consecutive utterances.

        Args:
            modality: One of `modalities`.
            start: The first row.
            stop: The row behind the last.

        Returns:
            (sum T, D) in the stored dtype, a read-only view of the file.
        """
        offsets = self.offsets[modality]
        first, last = int(offsets[start]), int(offsets[stop])
        return self._mapped[modality][first:last]

    def pooled(self, modality: str) -> np.ndarray:
        """The mean over each utterance's frames.

        Args:
            modality: One of `modalities`.

        Returns:
            (n, D) float32; zeros where an utterance has no frames.

        Raises:
            StoreError: The means do not match their checksum.
        """
        with arrays.opened(self.path, "shard", self._remedy) as file:
            kind = self.modalities[modality]
            size = 4 * len(self) * kind["dim"]
            pooled = arrays.read(
                arrays.group_of(file, self._group), f"{modality}/pooled", "<f4", 2, limit=size
            )
            if pooled.shape != (len(self), kind["dim"]) or checksum(pooled) != kind["pooled_crc32"]:
                raise ValueError(f"{modality}/pooled does not match its checksum")
            return pooled

    def layer_means(self, modality: str) -> np.ndarray:
        """The mean of every layer over each utterance's steps.

        Args:
            modality: One of `modalities` that has layer means.

        Returns:
            (n, L, width) in the stored dtype, a read-only view of the file; zeros where an
            utterance has no frames. The width is 0 where none of the shard has any.
        """
        return self._mapped[f"{modality}/{LAYERS}"]

    def check(self, modality: str, x: np.ndarray, start: int, stop: int, *, remedy: str) -> None:
        """Hold frames against their checksums.

        Args:
            modality: One of `modalities`.
            x: The frames of the utterances [start, stop), as `frames` gives them.
            start: The first row.
            stop: The row behind the last.
            remedy: What mends it, for the message.

        Raises:
            StoreError: They do not match.
        """
        bad = next(self.differing(modality, x, start, stop), None)
        if bad is not None:
            raise self._mismatch(modality, bad, remedy)

    def check_layer_means(self, modality: str, rows: np.ndarray, *, remedy: str) -> None:
        """Hold layer means against their checksums.

        Args:
            modality: One of `modalities` that has layer means.
            rows: (k,) of the shard.
            remedy: What mends it, for the message.

        Raises:
            StoreError: They do not match.
        """
        bad = next(self.differing_layer_means(modality, rows), None)
        if bad is not None:
            raise self._mismatch(f"the layer means of {modality}", bad, remedy)

    def _mismatch(self, what: str, row: int, remedy: str) -> StoreError:
        return StoreError(
            f"{self.path}: {what} of '{self.ids[row]}' does not match its checksum; {remedy}"
        )

    def mismatches(self, modality: str) -> Iterator[int]:
        """Rows whose frames do not match their crc32; reads the shard in pieces of bounded size."""
        offsets = self.offsets[modality]
        steps = max(1, PIECE_BYTES // (4 * self.modalities[modality]["dim"]))
        start = 0
        while start < len(self):
            last = int(np.searchsorted(offsets, offsets[start] + steps, side="right")) - 1
            stop = max(start + 1, last)
            yield from self.differing(modality, self.frames(modality, start, stop), start, stop)
            start = stop

    def differing(self, modality: str, x: np.ndarray, start: int, stop: int) -> Iterator[int]:
        """The rows among `start` to `stop` (not included) whose frames do not have the stored
        crc32. `x` holds the frames of these rows, end to end.
        """
        offsets, column = self.offsets[modality], list(self.modalities).index(modality)
        for row in range(start, stop):
            part = x[offsets[row] - offsets[start] : offsets[row + 1] - offsets[start]]
            if checksum(part) != self.crc32[row, column]:
                yield row

    def differing_layer_means(self, modality: str, rows: Iterable[int]) -> Iterator[int]:
        """The rows among `rows` whose layer means do not have the stored crc32."""
        means, sums = self.layer_means(modality), self.layers_crc32[modality]
        for row in rows:
            if checksum(means[row]) != sums[row]:
                yield int(row)

    def _map(self, file: h5py.File, name: str, kind: dict) -> None:
        """Map the frames and the layer means where they lie."""
        x = arrays.dataset(file, f"{name}/x")
        if x.ndim != 2 or x.shape[1] != kind["dim"] or x.dtype.name != kind["dtype"]:
            raise ValueError(
                f"{name}/x is {x.shape} {x.dtype}, recorded as (T, {kind['dim']}) {kind['dtype']}"
            )
        if len(self.offsets[name]) != len(self.ids) + 1:
            raise ValueError(
                f"{name} has {len(self.offsets[name]) - 1:,} of "
                f"{plural(len(self.ids), 'utterance')}"
            )
        check_offsets(self.offsets[name], x.shape[0])
        self._mapped[name] = self._view(x)
        if LAYERS not in kind:
            return
        layers = kind[LAYERS]
        means = arrays.dataset(file, f"{name}/{LAYERS}")
        shape = (len(self.ids), layers["count"], layers["width"])
        if means.shape != shape or means.dtype.name != layers["dtype"]:
            raise ValueError(
                f"{name}/{LAYERS} is {means.shape} {means.dtype}, recorded as {shape} "
                f"{layers['dtype']}"
            )
        if len(self.layers_crc32[name]) != len(self.ids):
            raise ValueError(f"the checksums of {name}/{LAYERS} are not those of its utterances")
        self._mapped[f"{name}/{LAYERS}"] = self._view(means)

    def _view(self, x: h5py.Dataset) -> np.ndarray:
        """A read-only view of an array where it lies."""
        if x.size == 0:
            return np.empty(x.shape, x.dtype)
        # A plain array over the map: slicing np.memmap itself costs twice as much.
        return np.asarray(np.memmap(self.path, x.dtype, "r", arrays.place(x), x.shape))


def _described(raw: bytes) -> tuple[list[dict], dict]:
    """What a shard says of its modalities, and what its writer noted; raises ValueError when it is
    not what the format says.
    """
    meta = read_json(raw, "its description")
    noted = isinstance(meta, dict) and isinstance(meta.get("meta"), dict)
    demand(noted, "its description is not an object")
    kinds = meta.get("modalities")
    demand(isinstance(kinds, list) and bool(kinds), "its description has no modalities")
    for kind in kinds:
        named = isinstance(kind, dict) and isinstance(kind.get("name"), str)
        demand(named, "its description has a modality without a name")
        name = kind["name"]
        demand(is_modality(name), "its description has a modality without a proper name")
        counted = is_count(kind.get("dim")) and 0 < kind["dim"] <= DIM
        demand(counted, f"its dim of {name} is not a number from 1")
        known = kind.get("dtype") in DTYPES
        demand(known, f"its dtype of {name} is not one of {', '.join(DTYPES)}")
        counts = is_count(kind.get("overflow")) and is_count(kind.get("pooled_crc32"))
        demand(counts, f"its counts of {name} are not numbers from 0")
        if LAYERS in kind:
            _check_layers(name, kind[LAYERS])
    names = {kind["name"] for kind in kinds}
    demand(len(names) == len(kinds), "its description has a modality twice")
    return kinds, meta["meta"]


def _check_layers(name: str, layers) -> None:
    """Raise ValueError unless `layers` is what a shard says of the layer means of a modality."""
    demand(isinstance(layers, dict), f"its layers of {name} are not an object")
    counts = is_count(layers.get("count")) and is_count(layers.get("width"))
    counts = counts and layers["count"] > 0 and layers["count"] * max(1, layers["width"]) <= DIM
    demand(counts, f"its layers of {name} are not numbers from 1")
    known = layers.get("dtype") in DTYPES
    demand(known, f"its dtype of the layers of {name} is not one of {', '.join(DTYPES)}")


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
    known = SHARD_VERSIONS if expected == SHARD_FORMAT else VERSIONS
    if version not in known:
        *others, last = known
        raise StoreVersionError(
            f"{path}: {what} of format version {version}, this mer reads "
            f"{', '.join(map(str, others))} and {last}; use a mer that fits"
        )
