"""CSV and JSON lines as people, spreadsheets and enemies write them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from tests.fuzz.mutate import raw, texts

COLUMNS = 1_000_000
ENCODINGS = ["utf-16", "utf-16-le", "utf-32", "cp1252", "utf-8-sig", "shift_jis"]


def csv_file(path: Path, rng: np.random.Generator) -> None:
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    names = lines[0].split(",")
    at, line = int(rng.integers(len(names))), int(rng.integers(1, len(lines)))
    cells = lines[line].split(",")
    cell = min(at, len(cells) - 1)
    match rng.integers(17):
        case 0 | 1:
            path.write_bytes(raw.mutate(text.encode(), rng))
            return
        case 2:
            cells[cell] = raw.choice(rng, raw.WORDS).replace("\n", " ")
        case 3:
            cells[cell] = '"' + raw.choice(rng, raw.WORDS)  # never closed
        case 4:
            cells[cell] = '"' + raw.choice(rng, ["a\nb", 'a""b', "a,b", "a\r\nb"]) + '"'
        case 5:
            cells[cell] = f'a"{cells[cell]}"b'
        case 6:
            del cells[cell]
        case 7:
            cells += [""] * int(rng.integers(1, 4))
        case 8:
            names[at] = raw.choice(rng, [*names, "", " id", "ID", "\0", "a" * 100_000, '"x'])
        case 9:
            path.write_bytes(text.encode(raw.choice(rng, ENCODINGS), "replace"))
            return
        case 10:
            path.write_bytes(text.replace(",", raw.choice(rng, [";", "\t", "|", ", "])).encode())
            return
        case 11:
            path.write_text("sep=,\n" + text)
            return
        case 12:
            path.write_bytes(text.replace("\n", raw.choice(rng, ["\r", "\r\n", "\n\n"])).encode())
            return
        case 13:
            wide = ",".join(map(str, range(COLUMNS)))
            path.write_text(f"{wide}\n" * 2 if rng.integers(2) else f"{lines[0]},{wide}\n{wide}\n")
            return
        case 14:
            path.write_text("\n".join([lines[0], *lines[1:] * 2]))
            return
        case 15:
            path.write_text("\n".join(raw.choice(rng, [[lines[0]], lines[1:], [], ["\ufeff"]])))
            return
        case 16:
            cells[cell] = "9" * 10_000 if rng.integers(2) else "x" * (12 << 20)
    lines[0], lines[line] = ",".join(names), ",".join(cells)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def jsonl_file(path: Path, rng: np.random.Generator) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    line = int(rng.integers(len(lines)))
    row = json.loads(lines[line])
    key = raw.choice(rng, sorted(row))
    match rng.integers(10):
        case 0:
            raw.bytes_of(path, rng)
            return
        case 1:
            lines[line] = json.dumps(row | {key: raw.HALF})
        case 2:
            lines[line] = json.dumps(row | {raw.HALF: 1})
        case 3:
            number = raw.choice(rng, ["9" * 10_000, "1e400", "NaN", "-Infinity", "0.1" * 3])
            lines[line] = json.dumps(row)[:-1] + f', "{key}": {number}}}'
        case 4:
            lines[line] = "[" * texts.DEEP + "]" * texts.DEEP
        case 5:
            wide = dict.fromkeys(map(str, range(200_000)), 1)
            lines[line] = json.dumps(row | wide)
        case 6:
            path.write_bytes("\n".join(lines).encode(raw.choice(rng, ENCODINGS), "replace"))
            return
        case 7:
            path.write_text(json.dumps([json.loads(each) for each in lines], indent=1))
            return
        case 8:
            lines[line] = '{"id": ' + '{"id": ' * 500 + "1" + "}" * 501
        case 9:
            lines[line] = texts.spelled(texts.change(row, rng), rng).decode("utf-8", "replace")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
