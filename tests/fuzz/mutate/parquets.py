"""Parquet: columns of every Arrow type, names twice or missing, runs of millions of equal rows,
metadata of another kind.
"""

from __future__ import annotations

import datetime
import decimal
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.fuzz.mutate import raw, texts

DAY = datetime.date(2024, 2, 29)
TIME = datetime.datetime(2024, 2, 29, 12, 0, 1)
BOMB_ROWS = 20_000_000  # of one value each: a few kB of Parquet

# type, and values of it that fit a row of any table
TYPES: list[tuple[pa.DataType, list]] = [
    (pa.null(), [None]), (pa.bool_(), [True, False, None]), (pa.int8(), [-128, 127, None]),
    (pa.int64(), [2**63 - 1, -1, 0]), (pa.uint64(), [2**64 - 1, 0]),
    (pa.float16(), [np.float16(1), np.float16(np.nan)]),
    (pa.float32(), [1.5, float("nan"), None]), (pa.float64(), [float("inf"), -0.0, 1e300]),
    (pa.string(), ["a", "", None, "\0"]), (pa.large_string(), ["a", None]),
    (pa.string_view(), ["a", None]), (pa.binary(), [b"\xff\xfe", b"", None]),
    (pa.large_binary(), [b"\xff"]), (pa.binary(3), [b"abc"]),
    (pa.date32(), [DAY, None]), (pa.date64(), [DAY, None]), (pa.time32("s"), [datetime.time(1)]),
    (pa.time64("us"), [datetime.time(1)]), (pa.timestamp("s"), [TIME, None]),
    (pa.timestamp("ns"), [2**63 - 1, -(2**63) + 1]), (pa.timestamp("us", "Europe/Berlin"), [TIME]),
    (pa.timestamp("ns", "Not/AZone"), [1]), (pa.timestamp("ms", "+25:99"), [1]),
    (pa.timestamp("us"), [2**62]), (pa.date32(), [2**31 - 1]), (pa.date64(), [2**62]),
    (pa.duration("ns"), [1, 2**62]), (pa.duration("s"), [2**62, None]),
    (pa.decimal128(38, 10), [decimal.Decimal("1.5"), None]),
    (pa.decimal256(76, 0), [decimal.Decimal(10) ** 70]),
    (pa.list_(pa.float32()), [[1.0], [], None]), (pa.list_(pa.string()), [["a", None], None]),
    (pa.list_(pa.list_(pa.float32())), [[[1.0], [1.0, 2.0]], [None], []]),
    (pa.list_(pa.list_(pa.list_(pa.int8()))), [[[[1]]], None]),
    (pa.list_(pa.list_(pa.float32(), 4)), [[[1.0] * 4], [], None]),
    (pa.list_(pa.float32(), 0), [[]]), (pa.list_(pa.float64(), 4), [[1.0] * 4, None]),
    (pa.large_list(pa.int64()), [[2**53 + 1], None]), (pa.list_(pa.bool_()), [[True]]),
    (pa.list_(pa.float16()), [[np.float16(1)]]), (pa.list_(pa.null()), [[None], []]),
    (pa.list_(pa.timestamp("s")), [[TIME]]), (pa.list_(pa.decimal128(5, 1)), [[None]]),
    (pa.struct([("a", pa.int8()), ("b", pa.string())]), [{"a": 1, "b": "x"}, None]),
    (pa.struct([]), [{}]), (pa.map_(pa.string(), pa.int8()), [[("a", 1)], None]),
    (pa.list_(pa.struct([("a", pa.int8())])), [[{"a": 1}], [None]]),
    (pa.dictionary(pa.int8(), pa.string()), ["a", "b", None]),
    (pa.dictionary(pa.int32(), pa.int64()), [1, None]),
    (pa.list_(pa.dictionary(pa.int8(), pa.string())), [["a"], None]),
]  # fmt: skip


def odd_column(n: int, rng: np.random.Generator) -> pa.Array:
    kind, values = raw.choice(rng, TYPES)
    given = [values[i % len(values)] for i in range(n)]
    try:
        return pa.array(given, kind)
    except (pa.ArrowException, TypeError, ValueError):  # what Arrow does not make of Python's
        return pa.array([None] * n, kind)


def mutate(path: Path, rng: np.random.Generator) -> None:
    """One change of the table, written with any of the options Parquet has."""
    table = pq.read_table(path)
    names = table.column_names
    at = int(rng.integers(len(names)))
    n = len(table)
    match rng.integers(13):
        case 0:
            raw.bytes_of(path, rng)
            return
        case 1 | 2 | 3 | 4:
            column = odd_column(n, rng)
            table = table.set_column(at, pa.field(names[at], column.type), column)
        case 5:
            table = table.append_column(names[at], table.column(at))  # the same name twice
        case 6:
            table = table.remove_column(at)
        case 7:
            new = raw.choice(rng, raw.WORDS)
            table = table.rename_columns([new if i == at else c for i, c in enumerate(names)])
        case 8:
            table = table.replace_schema_metadata(metadata(table, rng))
        case 9:
            table = values(table, at, rng)
        case 10:
            table = table.slice(0, int(rng.integers(2)))
        case 11:
            table = pa.concat_tables([table] * int(rng.integers(2, 4)))
        case 12:
            bomb(path, table, rng)
            return
    write(path, table, rng)


def write(path: Path, table: pa.Table, rng: np.random.Generator) -> None:
    options: list[dict] = [
        {}, {"compression": "none"}, {"compression": "zstd", "row_group_size": 1},
        {"use_dictionary": False}, {"version": "1.0"}, {"use_deprecated_int96_timestamps": True},
        {"write_statistics": False, "data_page_version": "2.0"}, {"store_schema": False},
    ]  # fmt: skip
    before = path.read_bytes()
    try:
        pq.write_table(table, path, **raw.choice(rng, options))
    except (pa.ArrowException, OSError, ValueError):  # a type that Parquet has no room for
        path.write_bytes(raw.mutate(before, rng))


def metadata(table: pa.Table, rng: np.random.Generator) -> dict | None:
    held = dict(table.schema.metadata or {})
    if b"mer" not in held or not rng.integers(6):
        return {"mer": raw.choice(rng, [b"", b"\xff", b"null", b"[]", b"{}", b"3"])}
    if not rng.integers(6):
        return None
    return held | {b"mer": texts.spelled(texts.change(json.loads(held[b"mer"]), rng), rng)}


def values(table: pa.Table, at: int, rng: np.random.Generator) -> pa.Table:
    """Other values of the same type."""
    field = table.schema.field(at)
    odd: Callable = {
        "string": lambda: raw.choice(rng, [*raw.WORDS, None]),
        "int32": lambda: raw.choice(rng, [-1, 2**31 - 1, 0, None]),
        "double": lambda: raw.choice(rng, [float("nan"), float("inf"), -1.0, 1e300, 0.0, None]),
    }.get(str(field.type), lambda: None)
    given = table.column(at).to_pylist()
    for i in rng.integers(len(given), size=3) if given else ():
        given[int(i)] = odd()
    field = field.with_nullable(True)
    return table.set_column(at, field, pa.array(given, field.type))


def bomb(path: Path, table: pa.Table, rng: np.random.Generator) -> None:
    """Millions of equal rows in a few kB."""
    indices = pa.array(np.zeros(BOMB_ROWS, np.int32))
    columns = {}
    for name in table.column_names:
        kind = table.schema.field(name).type
        if pa.types.is_string(kind):
            columns[name] = pa.DictionaryArray.from_arrays(indices, pa.array(["x"]))
        elif rng.integers(2) or not columns:
            columns[name] = pa.nulls(BOMB_ROWS, pa.int8())
    made = pa.table(columns).replace_schema_metadata(table.schema.metadata)
    pq.write_table(made, path, compression="zstd", row_group_size=BOMB_ROWS, store_schema=False)
