"""JSON, TOML and the header of safetensors: other types, deep nesting, huge numbers."""

from __future__ import annotations

import json
import struct
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w

from tests.fuzz.mutate import raw

TOML_VALUES = [
    "nan", "-inf", "0x" + "f" * 5000, "1e400", '"' + "x" * 60_000 + '"', "[" + "1," * 5000 + "]",
    "1979-05-27T07:32:00Z", "true", "''", '"\\u0000"', "{a.b.c=1}", "[[1],[2]]", "-1",
    "9223372036854775807", "99999", "0.5", '"none"', '"concat"', '"drkf"',
    "{" + ".".join("a" * 20_000) + "=1}",
]  # fmt: skip
DEEP = 100_000  # levels of nesting: more than any recursion survives


def nasty(rng: np.random.Generator) -> Any:
    """A value of any JSON type."""
    odd = [None, True, -1, 0, 10**30, 1e308, float("nan"), float("inf"), [], {}, [[]], {"": {}}]
    return raw.choice(rng, [*odd, [None] * 10, {"a": None}, *raw.WORDS, raw.HALF])


def places(value: Any, path: tuple = ()) -> list[tuple]:
    """Paths of everything in a JSON value."""
    found = [path]
    inner = value.items() if isinstance(value, dict) else enumerate(value[:3])
    for key, item in inner:
        found += places(item, (*path, key)) if isinstance(item, dict | list) else [(*path, key)]
    return found


def change(value: Any, rng: np.random.Generator) -> Any:
    """`value` with one to three of its parts replaced, removed or renamed."""
    for _ in range(rng.integers(1, 4)):
        if not isinstance(value, dict | list):
            return value
        path = raw.choice(rng, places(value))
        if not path:
            if not rng.integers(4):
                return nasty(rng)
            continue
        holder = value
        for key in path[:-1]:
            holder = holder[key]
        match rng.integers(4):
            case 0:
                del holder[path[-1]]
            case 1 if isinstance(holder, dict):
                holder[raw.choice(rng, raw.WORDS)] = holder.pop(path[-1])
            case 2:
                part = holder[path[-1]]
                holder[path[-1]] = -part if isinstance(part, int | float) else [part]
            case _:
                holder[path[-1]] = nasty(rng)
    return value


def spelled(value: Any, rng: np.random.Generator) -> bytes:
    """JSON text of `value`, now and then with something in it that no dict can hold."""
    text = json.dumps(value)
    match rng.integers(12):
        case 0:
            text = '{"a":' * DEEP + "1" + "}" * DEEP
        case 1:
            text = "[" * DEEP
        case 2:
            text = text.replace(":", ": " + "9" * 10_000 + ", ", 1)
        case 3:
            at = int(rng.integers(len(text) + 1))
            text = text[:at] + "[" * 3000 + "]" * 3000 + text[at:]
        case 4:
            return raw.mutate(text.encode(), rng)
        case 5:
            return text.encode("utf-16")
        case 6:
            return b"\xef\xbb\xbf" + text.encode()
        case 7:
            text = text.replace("{", '{"twice": 1, "twice": {"twice": []}, ', 1)
        case 8:
            digits = str(int(rng.integers(1, 10)))
            text = text.replace(digits, "9" * 10_000, 1)
    return text.encode("utf-8", "surrogatepass")


def json_bytes(data: bytes, rng: np.random.Generator) -> bytes:
    return spelled(change(json.loads(data), rng), rng)


def json_file(path: Path, rng: np.random.Generator) -> None:
    path.write_bytes(json_bytes(path.read_bytes(), rng))


def jsonl_file(path: Path, rng: np.random.Generator) -> None:
    """One line of a file of JSON lines."""
    lines = path.read_bytes().splitlines()
    at = int(rng.integers(len(lines)))
    lines[at] = json_bytes(lines[at], rng)
    path.write_bytes(b"\n".join(lines) + b"\n")


def toml_file(path: Path, rng: np.random.Generator) -> None:
    text = path.read_text()
    match rng.integers(10):
        case 0:
            path.write_bytes(raw.mutate(text.encode(), rng))
        case 1:
            path.write_text(text + "\n" + ".".join(["a"] * 50_000) + " = 1\n")
        case 2:
            path.write_text("seed = " + "9" * 10_000 + "\n" + text)
        case 3:
            path.write_text("x = " + "[" * DEEP + "]" * DEEP + "\n" + text)
        case 4:
            path.write_text(text + "\n[" + "]\n[".join(f"t{i}" for i in range(20_000)) + "]\n")
        case 5:
            path.write_bytes(text.encode("utf-16"))
        case 6:
            lines = text.splitlines()
            at = int(rng.integers(len(lines)))
            lines[at] = f"{lines[at].partition('=')[0] or 'x '}= {raw.choice(rng, TOML_VALUES)}"
            path.write_text("\n".join(lines) + "\n")
        case _:
            value = change(tomllib.loads(text), rng)
            try:
                path.write_text(tomli_w.dumps(value))
            except (TypeError, AttributeError, UnicodeEncodeError):  # null, or no table at all
                path.write_text(f"model = {value!r}", errors="replace")


def safetensors_file(path: Path, rng: np.random.Generator) -> None:
    """Names, types, shapes and offsets of the header; its length; the bytes behind it."""
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header, body = json.loads(data[8 : 8 + size]), data[8 + size :]
    tensor = raw.choice(rng, sorted(header.keys() - {"__metadata__"}))
    match rng.integers(9):
        case 0:
            path.write_bytes(raw.mutate(data, rng))
            return
        case 1:
            header[tensor]["dtype"] = raw.choice(rng, ["F64", "I8", "BOOL", "F8_E4M3", "X", 3])
        case 2:
            header[tensor]["shape"] = raw.choice(rng, [[], [1 << 40, 1 << 40], [-1], [0], "x"])
        case 3:
            a, b = header[tensor]["data_offsets"]
            odd = [[b, a], [a, b + 8], [0, 1 << 62], [a], [-1, b], [a, b - 1]]
            header[tensor]["data_offsets"] = raw.choice(rng, odd)
        case 4:
            header[raw.choice(rng, raw.WORDS)] = header.pop(tensor)
        case 5:
            header["__metadata__"] = nasty(rng)
        case 6:
            body = np.frombuffer(body, np.uint8) ^ np.uint8(rng.integers(1, 256))
            body = body.tobytes()
        case 7:
            length = raw.choice(rng, raw.NUMBERS)
            path.write_bytes(struct.pack("<Q", length) + data[8:])
            return
        case 8:
            header = change(header, rng)
    text = spelled(header, rng)
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)
