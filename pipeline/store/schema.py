"""What a store says: header, modalities, the columns of its table, and how each is kept as flat
arrays.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mer.pipeline.errors import DataError

FORMAT_VERSION = 1
HEAD_FORMAT = "mer-feats"
SHARD_FORMAT = "mer-shard"
TASKS = ("single", "multi", "regression")
SPLITS = ("train", "dev", "test", "")
MODALITY = r"[a-z][a-z0-9_]{0,31}"
RESERVED = {"ids", "crc32", "duration", "flags", "meta"}  # names a shard uses itself
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


@dataclass(frozen=True)
class ModalityInfo:
    """One kind of features.

    `frame_rate` in steps per second; None for tokens and utterance-level vectors.
    """

    dim: int
    frame_rate: float | None = None
    encoder: str = ""  # hub id, path name, or "imported"
    revision: str = ""
    layer: str = ""
    dtype: str = "float16"  # as stored: float32 also when a value of a shard did not fit float16
    # False: a built-in or randomly initialised encoder; its features carry no knowledge
    trained: bool = True
    extra: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Header:
    dataset: str
    task: str  # single | multi | regression
    labels: tuple[str, ...]
    language: str
    modalities: dict[str, ModalityInfo]
    fingerprint: str = ""  # key of the recipe; empty when the features were made elsewhere
    recipe: dict = field(default_factory=dict)
    # may be volatile (times, host): lives here only, never in a shard
    provenance: dict = field(default_factory=dict)
    version: int = FORMAT_VERSION

    def to_json(self) -> str:
        return canonical(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Header:
        raw = json.loads(text)
        modalities = {name: ModalityInfo(**info) for name, info in raw.pop("modalities").items()}
        return cls(**{**raw, "labels": tuple(raw["labels"]), "modalities": modalities})


@dataclass(frozen=True)
class Damage:
    """One shard that cannot be used, and why. `shard` is its number in the head file."""

    shard: int
    path: str
    reason: str


def canonical(value) -> str:
    r"""JSON that is the same text for the same value (dict order is kept: the order of modalities
    means something). Half a surrogate pair, which is how Python spells a byte of a file name that
    is no UTF-8, is escaped as JSON does, \udcXX, and comes back.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise DataError(f"not expressible in JSON: {error}") from None
    return text.encode("utf-8", "backslashreplace").decode()


def blob(text: str) -> np.ndarray:
    return np.frombuffer(text.encode(), np.uint8)


def normalise(table: pa.Table | Sequence[Mapping]) -> pa.Table:
    """The caller's rows with exactly the columns of COLUMNS; absent ones are null (split: "", tags:
    empty).
    """
    try:
        if not isinstance(table, pa.Table):
            table = pa.table(
                {f.name: pa.array([row.get(f.name) for row in table], f.type) for f in COLUMNS}
            )
        if "id" not in table.column_names or table["id"].null_count:
            raise DataError("table: every row needs an 'id'")
        n, columns = len(table), []
        for f in COLUMNS:
            column = (
                table[f.name].cast(f.type) if f.name in table.column_names else pa.nulls(n, f.type)
            )
            if f.name == "split":
                column = pc.fill_null(column, "")
            elif f.name == "tags":
                column = pc.if_else(pc.is_null(column), pa.scalar([], f.type), column)
            columns.append(
                column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
            )
        return pa.Table.from_arrays(columns, schema=COLUMNS)
    except (pa.ArrowException, TypeError, UnicodeEncodeError) as error:
        raise DataError(f"table: {str(error).splitlines()[0]}") from None


def pack_strings(values: Sequence[str | None]) -> tuple[np.ndarray, np.ndarray]:
    """Strings -> (utf-8 bytes end to end, int64 offsets (n+1,)); the layout of the features, for
    text.
    """
    raw = [b"" if v is None else v.encode() for v in values]
    return np.frombuffer(b"".join(raw), np.uint8), _offsets([len(r) for r in raw])


def unpack_strings(data: np.ndarray, offsets: np.ndarray) -> pa.Array:
    check_offsets(offsets, len(data))
    array = pa.LargeStringArray.from_buffers(
        len(offsets) - 1, pa.py_buffer(np.ascontiguousarray(offsets)), pa.py_buffer(data)
    )
    array.validate(full=True)
    return array.cast(pa.string())


def check_offsets(offsets: np.ndarray, total: int) -> None:
    """Raise ValueError unless `offsets` cut an array of `total` rows into consecutive pieces."""
    if len(offsets) < 1 or offsets[0] != 0 or offsets[-1] != total or (np.diff(offsets) < 0).any():
        raise ValueError("offsets do not fit the data")


def encode_column(name: str, column: pa.Array) -> dict[str, np.ndarray]:
    """A column as flat arrays: NAME/x (+ NAME/offsets for strings and lists, + NAME/valid where
    null is possible).
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
    if COLUMNS.field(name).nullable:
        out[f"{name}/valid"] = pc.is_valid(column).to_numpy(zero_copy_only=False).astype("u1")
    return out


def decode_column(name: str, kind: pa.DataType, arrays: Mapping[str, np.ndarray]) -> pa.Array:
    """The column again; raises ValueError when its arrays do not fit together."""
    x = arrays[f"{name}/x"]
    valid = arrays.get(f"{name}/valid")
    if pa.types.is_string(kind):
        column = unpack_strings(x, arrays[f"{name}/offsets"])
    elif pa.types.is_list(kind):
        items = (
            unpack_strings(x, arrays[f"{name}/item_offsets"])
            if pa.types.is_string(kind.value_type)
            else pa.array(x)
        )
        offsets = arrays[f"{name}/offsets"]
        check_offsets(offsets, len(items))
        column = pa.LargeListArray.from_arrays(pa.array(offsets), items).cast(kind)
    else:
        column = pa.array(x, kind)
    if valid is None:
        return column
    if len(valid) != len(column):
        raise ValueError(f"column {name} has {len(valid)} validity marks for {len(column)} rows")
    return pc.if_else(pa.array(valid != 0), column, pa.scalar(None, kind))


def column_arrays(name: str) -> dict[str, str]:
    """The arrays that hold a column, with their element types."""
    field_ = COLUMNS.field(name)
    if pa.types.is_string(field_.type):
        parts = {"x": "u1", "offsets": "<i8"}
    elif pa.types.is_list(field_.type):
        text = pa.types.is_string(field_.type.value_type)
        parts = {"x": "u1" if text else "<f4", "offsets": "<i8"} | (
            {"item_offsets": "<i8"} if text else {}
        )
    else:
        parts = {"x": "<i4"}
    if field_.nullable:
        parts["valid"] = "u1"
    return {f"{name}/{part}": dtype for part, dtype in parts.items()}


def _offsets(lengths: Sequence[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(np.asarray(lengths, "<i8"))]).astype("<i8")
