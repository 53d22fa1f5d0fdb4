"""What a store says of itself (header, modalities, the columns of its table), and how each of
these is kept as flat arrays.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import isfinite

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mer.pipeline.errors import DataError
from mer.pipeline.runtime.limits import DIM, HEADER_BYTES, JSON_LEVELS
from mer.pipeline.runtime.terminal import first_line, plural
from mer.pipeline.runtime.terms import TASKS, check_folds

FORMAT_VERSION = 2  # as it is written
FOLDS_VERSION = 3  # as the head of a store is written whose rows have published folds
UNIMODAL_VERSION = 4  # … whose rows have unimodal labels
VERSIONS = (1, 2, 3, 4)  # as heads are read
SHARD_VERSIONS = (1, 2)  # as shards are
SHARD_FORMAT = "mer-shard"
DTYPES = ("float16", "float32")
NAME = r"[a-z][a-z0-9_]{0,31}"
RESERVED = {"ids", "crc32", "duration", "flags", "meta"}  # names a shard uses itself
LAYERS = "layers"  # no feature set has this name: `audio.layers` are the layer means of audio
HALF_MAX = 65519.99  # the largest magnitude that still rounds to a finite float16 (65504)

# The caller's columns of the table (their meaning is that of pipeline.manifest.SCHEMA); the store
# adds duration, n_<modality>..., shard and shard_row.
COLUMNS = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("session", pa.string()),
        pa.field("dialogue", pa.string()),
        pa.field("speaker", pa.string()),
        pa.field("position", pa.int32()),
        pa.field("label", pa.string()),
        pa.field("targets", pa.list_(pa.float32())),
        pa.field("text", pa.string()),
        pa.field("tags", pa.list_(pa.string())),
    ]
)
# Columns that a head has only where a row says something in them; a table then has them, too.
LATER = pa.schema(
    [pa.field("folds", pa.list_(pa.string())), pa.field("unimodal", pa.list_(pa.string()))]
)
EVERY = pa.schema([*COLUMNS, *LATER])


def columns_of(names: Iterable[str]) -> list[str]:
    """The caller's columns of a table, or of a head, that has columns of these names."""
    there = set(names)
    return [*COLUMNS.names, *(name for name in LATER.names if name in there)]


@dataclass(frozen=True)
class ModalityInfo:
    """One kind of features.

    `dim` is the count of numbers per step; `frame_rate` is in steps per second, and None for tokens
    and for one vector per utterance.
    """

    dim: int
    frame_rate: float | None = None
    encoder: str = ""  # hub id, path name, or "imported"
    revision: str = ""
    layer: str = ""
    dtype: str = "float16"  # as stored: float32 also when a value of a shard did not fit float16
    # False for a built-in or randomly initialised encoder, whose features carry no knowledge.
    trained: bool = True
    extra: dict = field(default_factory=dict)
    layers: int = 0  # layer means of each utterance; 0: none are kept
    layer_dtype: str = "float16"  # of the layer means, as `dtype`
    stack: tuple[int, ...] = ()  # layers whose frames stand side by side in a step; (): one layer

    @property
    def width(self) -> int:
        """Numbers per layer."""
        return self.dim // max(1, len(self.stack))

    def to_dict(self) -> dict:
        """As JSON has it. What format version 1 does not know is left out where it says nothing, so
        that the same features are described, and hashed, as they were.
        """
        out = {**asdict(self), "stack": list(self.stack)}
        if not self.layers:
            del out["layers"], out["layer_dtype"]
        if not self.stack:
            del out["stack"]
        return out

    @classmethod
    def from_dict(cls, raw: dict) -> ModalityInfo:
        """What `to_dict` gave; raises TypeError for what is no such thing."""
        return cls(**{**raw, "stack": tuple(raw.get("stack", ()))})

    def check(self, name: str) -> None:
        """Raise ValueError unless every value is of its type."""
        counted = is_count(self.dim) and 0 < self.dim <= DIM
        demand(counted, f"its header's dim of {name} is not a number from 1")
        number = self.frame_rate is None or type(self.frame_rate) in (int, float)
        demand(number, f"its header's frame rate of {name} is not a number")
        known = self.dtype in DTYPES
        demand(known, f"its header's dtype of {name} is not one of {', '.join(DTYPES)}")
        texts = all(isinstance(text, str) for text in (self.encoder, self.revision, self.layer))
        demand(texts, f"its header's encoder, revision or layer of {name} is not a text")
        noted = isinstance(self.trained, bool) and isinstance(self.extra, dict)
        demand(noted, f"its header's notes on {name} are not what they were")
        overflow = self.extra.get("overflow", 0)
        demand(is_count(overflow), f"its header's overflow of {name} is not a count")
        stacked = all(is_count(layer) for layer in self.stack)
        even = self.dim % max(1, len(self.stack)) == 0
        demand(stacked and even, f"its header's stack of {name} is not one of layers of its dim")
        kept = is_count(self.layers) and self.layers * self.width <= DIM
        kept = kept and self.layer_dtype in DTYPES
        demand(kept, f"its header's layers of {name} are not what they were")


@dataclass(frozen=True)
class Header:
    """What a store says of itself, once for all its utterances.

    `task` is one of TASKS; `labels` name the classes in the order of their numbers, or the targets;
    `language` is a code such as "en"; `modalities` stand in the order of the shards.
    """

    dataset: str
    task: str  # single | multi | regression
    labels: tuple[str, ...]
    language: str
    modalities: dict[str, ModalityInfo]
    fingerprint: str = ""  # key of the recipe; empty when the features were made elsewhere
    recipe: dict = field(default_factory=dict)
    # What may differ from run to run (times, host) stands here only, never in a shard.
    provenance: dict = field(default_factory=dict)
    version: int = FORMAT_VERSION

    def to_json(self) -> str:
        """The header as canonical JSON. Raises DataError for values that JSON does not have."""
        modalities = {name: info.to_dict() for name, info in self.modalities.items()}
        return canonical({**asdict(self), "modalities": modalities})

    @classmethod
    def from_json(cls, text: str) -> Header:
        """The header again; raises ValueError or TypeError when it is not what the format says."""
        raw = read_json(text.encode(), "its header")
        named = isinstance(raw, dict) and isinstance(raw.get("modalities"), dict)
        demand(named, "its header is not an object")
        modalities = {
            name: ModalityInfo.from_dict(info) for name, info in raw.pop("modalities").items()
        }
        demand(isinstance(raw.get("labels"), list), "its header's labels are not a list")
        header = cls(**{**raw, "labels": tuple(raw["labels"]), "modalities": modalities})
        header._check()
        return header

    def _check(self) -> None:
        """Raise ValueError unless every value is of its type."""
        demand(self.version in VERSIONS, "its header is of a format version that is not read")
        for name in ("dataset", "language", "fingerprint"):
            demand(isinstance(getattr(self, name), str), f"its header's {name} is not a text")
        demand(self.task in TASKS, f"its header's task is not one of {', '.join(TASKS)}")
        texts = all(isinstance(label, str) for label in self.labels)
        demand(texts, "its header's labels are not texts")
        objects = isinstance(self.recipe, dict) and isinstance(self.provenance, dict)
        demand(objects, "its header's recipe or provenance is not an object")
        demand(bool(self.modalities), "its header has no modality")
        for name, info in self.modalities.items():
            demand(is_modality(name), "its header has a modality without a proper name")
            info.check(name)


@dataclass(frozen=True)
class Damage:
    """One shard, or member of a joined store, that cannot be used, and why.

    `shard` is its number in the head file `store`, which is the one to repair.
    """

    shard: int
    path: str
    reason: str
    store: str


def canonical(value) -> str:
    r"""JSON that is the same text for the same value; the order of keys is kept, since that of
    modalities means something.

    Half a surrogate pair, which is how Python spells a byte of a file name that is no UTF-8, is
    escaped as JSON does, \udcXX, and comes back.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise DataError(f"not expressible in JSON: {error}") from None
    return text.encode("utf-8", "backslashreplace").decode()


def demand(condition: bool, otherwise: str) -> None:
    """Raise ValueError, which readers turn into one line, unless `condition` holds."""
    if not condition:
        raise ValueError(otherwise)


def is_count(value: object) -> bool:
    """Whether `value` is a whole number from 0 that fits an int64."""
    return type(value) is int and 0 <= value < 1 << 63


def is_modality(name: str) -> bool:
    """Whether `name` may name a modality, `audio`, or one more feature set of it, `audio.egemaps`.

    "n_" begins the columns of lengths.
    """
    modality, dot, feature_set = name.partition(".")
    if modality in RESERVED or modality.startswith("n_") or feature_set == LAYERS:
        return False
    parts = (modality, feature_set) if dot else (modality,)
    return all(re.fullmatch(NAME, part) for part in parts)


def read_json(raw: bytes, what: str, *, limit: int = HEADER_BYTES):
    """The value of JSON that somebody else may have written.

    Args:
        raw: UTF-8.
        what: Names it in an error.
        limit: Bytes that are read at most.

    Raises:
        ValueError: It is not JSON, too long, nested too deeply, or has numbers that are not finite.
    """
    demand(
        len(raw) <= limit, f"{what} has {len(raw):,} bytes, more than the {limit:,} that are read"
    )
    try:
        value = json.loads(raw.decode(), parse_constant=_no_number)
    except RecursionError:
        raise ValueError(f"{what} is nested too deeply") from None
    level, items = 0, [value]
    while items:
        level += 1
        demand(level <= JSON_LEVELS, f"{what} is nested too deeply")
        inner: list = []
        for item in items:
            finite = not isinstance(item, float) or isfinite(item)
            demand(finite, f"{what} has a number that is not finite")
            if isinstance(item, dict):
                inner.extend(item.values())
            elif isinstance(item, list):
                inner.extend(item)
        items = inner
    return value


def _no_number(name: str):
    raise ValueError(f"JSON has no {name}")


def blob(text: str) -> np.ndarray:
    """Text as an array of its UTF-8 bytes. Raises DataError when it could not be read again."""
    raw = text.encode()
    if len(raw) > HEADER_BYTES:
        raise DataError(
            f"{len(raw):,} bytes of header or notes, more than the {HEADER_BYTES:,} that can be "
            "read again; leave some out"
        )
    return np.frombuffer(raw, np.uint8)


def normalise(table: pa.Table | Sequence[Mapping]) -> pa.Table:
    """The caller's rows with exactly the columns of COLUMNS, and those of LATER that say something.

    Columns that are absent are null, the split "" and the tags empty. Raises DataError for a row
    without an id, for values of another type and for folds that are not NAME=PART.
    """
    try:
        if not isinstance(table, pa.Table):
            table = _table_of(table)
        if "id" not in table.column_names or table["id"].null_count:
            raise DataError("table: every row needs an 'id'")
        columns = [_normalised(table, field_) for field_ in COLUMNS]
        rows = pa.Table.from_arrays(columns, schema=COLUMNS)
        for field_ in LATER:
            column = _normalised(table, field_)
            if pc.any(pc.greater(pc.list_value_length(column), 0)).as_py():
                rows = rows.append_column(field_, column)
    except (pa.ArrowException, TypeError, UnicodeEncodeError) as error:
        raise DataError(f"table: {first_line(error)}") from None
    if "folds" in rows.column_names:
        for id, entries in zip(rows["id"].to_pylist(), rows["folds"].to_pylist(), strict=True):
            check_folds("table", id, entries)
    return rows


def _table_of(rows: Sequence[Mapping]) -> pa.Table:
    """Rows as a table, with what is absent as null."""
    columns = {}
    for field_ in EVERY:
        values = [row.get(field_.name) for row in rows]
        if pa.types.is_integer(field_.type):
            _check_whole(field_.name, values)
        columns[field_.name] = pa.array(values, field_.type)
    return pa.table(columns)


def _check_whole(name: str, values: Sequence[object]) -> None:
    """Raise DataError for a fraction, of which Arrow would keep the whole part."""
    for value in values:
        if isinstance(value, float | np.floating) and not float(value).is_integer():
            raise DataError(f"table: {name} {value} is no whole number; null where none is known")


def _normalised(table: pa.Table, field_: pa.Field) -> pa.Array:
    """One column of the caller's table, or nulls, in one piece."""
    name, kind = field_.name, field_.type
    known = name in table.column_names
    column = table[name].cast(kind) if known else pa.nulls(len(table), kind)
    if name == "split":
        column = pc.fill_null(column, "")
    elif name in ("tags", *LATER.names):
        column = pc.if_else(pc.is_null(column), pa.scalar([], kind), column)
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def pack_strings(values: Sequence[str | None]) -> tuple[np.ndarray, np.ndarray]:
    """Strings as the features are laid out: (UTF-8 bytes end to end, int64 offsets (n+1,))."""
    raw = [b"" if value is None else value.encode() for value in values]
    return np.frombuffer(b"".join(raw), np.uint8), _offsets([len(text) for text in raw])


def unpack_strings(data: np.ndarray, offsets: np.ndarray) -> pa.Array:
    """The strings again. Raises ValueError for offsets that do not fit and for what is no UTF-8."""
    check_offsets(offsets, len(data))
    array = pa.LargeStringArray.from_buffers(
        len(offsets) - 1, pa.py_buffer(np.ascontiguousarray(offsets)), pa.py_buffer(data)
    )
    array.validate(full=True)
    return array.cast(pa.string())


def check_offsets(offsets: np.ndarray, total: int) -> None:
    """Raise ValueError unless `offsets` cut an array of `total` rows into consecutive pieces."""
    begins = len(offsets) > 0 and offsets[0] == 0
    # Neighbours are compared, since their differences may overflow.
    if not begins or offsets[-1] != total or (offsets[1:] < offsets[:-1]).any():
        raise ValueError("offsets do not fit the data")


def encode_column(name: str, column: pa.Array) -> dict[str, np.ndarray]:
    """A column as flat arrays: NAME/x, also NAME/offsets for strings and lists, and NAME/valid
    where null is possible.
    """
    kind = column.type
    out: dict[str, np.ndarray] = {}
    if pa.types.is_string(kind):
        out[f"{name}/x"], out[f"{name}/offsets"] = pack_strings(column.to_pylist())
    elif pa.types.is_list(kind):
        out[f"{name}/offsets"] = _offsets(pc.fill_null(pc.list_value_length(column), 0).to_pylist())
        flat = column.flatten()
        if pa.types.is_string(kind.value_type):
            out[f"{name}/x"], out[f"{name}/item_offsets"] = pack_strings(flat.to_pylist())
        else:
            out[f"{name}/x"] = flat.to_numpy(zero_copy_only=False).astype("<f4")
    else:
        out[f"{name}/x"] = pc.fill_null(column, 0).to_numpy(zero_copy_only=False)
    if EVERY.field(name).nullable:
        out[f"{name}/valid"] = pc.is_valid(column).to_numpy(zero_copy_only=False).astype("u1")
    return out


def decode_column(name: str, kind: pa.DataType, arrays: Mapping[str, np.ndarray]) -> pa.Array:
    """The column again; raises ValueError when its arrays do not fit together."""
    x = arrays[f"{name}/x"]
    valid = arrays.get(f"{name}/valid")
    if pa.types.is_string(kind):
        column = unpack_strings(x, arrays[f"{name}/offsets"])
    elif pa.types.is_list(kind):
        if pa.types.is_string(kind.value_type):
            items = unpack_strings(x, arrays[f"{name}/item_offsets"])
        else:
            items = pa.array(x)
        offsets = arrays[f"{name}/offsets"]
        check_offsets(offsets, len(items))
        column = pa.LargeListArray.from_arrays(pa.array(offsets), items).cast(kind)
    else:
        column = pa.array(x, kind)
    if valid is None:
        return column
    if len(valid) != len(column):
        raise ValueError(
            f"column {name} has {len(valid)} validity marks for {plural(len(column), 'row')}"
        )
    return pc.if_else(pa.array(valid != 0), column, pa.scalar(None, kind))


def column_arrays(name: str) -> dict[str, str]:
    """The arrays that hold a column, with their element types."""
    field_ = EVERY.field(name)
    if pa.types.is_string(field_.type):
        parts = {"x": "u1", "offsets": "<i8"}
    elif pa.types.is_list(field_.type):
        parts = {"x": "<f4", "offsets": "<i8"}
        if pa.types.is_string(field_.type.value_type):
            parts |= {"x": "u1", "item_offsets": "<i8"}
    else:
        parts = {"x": "<i4"}
    if field_.nullable:
        parts["valid"] = "u1"
    return {f"{name}/{part}": dtype for part, dtype in parts.items()}


def _offsets(lengths: Sequence[int]) -> np.ndarray:
    """Where pieces of these lengths begin and end: int64 (n+1,), beginning with 0."""
    return np.concatenate([[0], np.cumsum(np.asarray(lengths, "<i8"))]).astype("<i8")
