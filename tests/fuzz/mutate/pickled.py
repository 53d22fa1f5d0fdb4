"""Pickles by their opcodes: other values, calls, deep and shared nesting, memos that explode."""

from __future__ import annotations

import pickle
import pickletools
import struct
from pathlib import Path

import numpy as np

from tests.fuzz.mutate import raw

STOP = b"."


class Call:
    """Pickles as a call of `function`, which nobody must make."""

    def __init__(self, function, *args) -> None:
        self.function, self.args = function, args

    def __reduce__(self):
        return self.function, self.args


def value_ops(rng: np.random.Generator) -> bytes:
    """Opcodes that push one value, of any kind, some of them endless when they are looked at."""
    deep = int(rng.choice([60, 1000, 100_000]))
    made = [
        lambda: b"N", lambda: b"\x88", lambda: b"J\xff\xff\xff\xff", lambda: b"K\x07",
        lambda: b"G" + struct.pack(">d", raw.choice(rng, [np.nan, np.inf, 1e300, -1.0])),
        lambda: b"I" + b"9" * int(rng.choice([10, 4000, 10_000])) + b"\n",
        lambda: b"\x8a\xff" + b"\x7f" * 255,
        lambda: b"L" + b"9" * 5000 + b"L\n",
        lambda: b"X\x03\x00\x00\x00\xed\xa0\x80",
        lambda: b"X" + struct.pack("<I", 100_000) + b"a" * 100_000,
        lambda: b"C\x02\xff\xfe", lambda: b"]", lambda: b"}", lambda: b")",
        lambda: b"]" * deep + b"a" * (deep - 1),
        lambda: b")" + b"\x85" * deep,
        # a list that holds the one before it twice, and so on: 2**n to whoever walks it
        lambda: b"]\x94" + b"".join(shared(i) for i in range(min(deep, 60))),
        # a tuple likewise: 3**n
        lambda: b")" + b"22\x87" * 40,
        # a list that holds itself
        lambda: b"]\x942a",
        lambda: b"(" * deep + b"t" * deep,
        lambda: b"]" + b"(" + b"N" * 100_000 + b"e",
        lambda: b"\x8e" + struct.pack("<Q", 1 << 40),
        lambda: b"B" + struct.pack("<I", 0xFFFFFFFF),
        lambda: b"c__builtin__\nset\n", lambda: b"\x8f", lambda: b"\x97", lambda: b"Ppersid\n",
        lambda: b"j" + struct.pack("<I", 12345),
        lambda: array_ops(rng),
    ]  # fmt: skip
    return raw.choice(rng, made)()


def shared(level: int) -> bytes:
    """[previous, previous] with the previous list on the stack and in the memo."""
    return b"q" + bytes([level]) + b"0](h" + bytes([level]) + b"h" + bytes([level]) + b"e"


def array_ops(rng: np.random.Generator) -> bytes:
    """An array, told to be something that its bytes are not."""
    arrays = [
        np.zeros((3, 2), np.float32), np.array(["a", None, 1], object), np.zeros((0, 3)),
        np.array(["x", "yy"]), np.array([b"x"]), np.zeros(3, ">i8"), np.zeros(3, "c8"),
        np.zeros(3, "datetime64[s]"), np.zeros(2, [("a", "f4")]), np.float32(3), np.str_("x"),
        np.array([[[1]]], object), np.asfortranarray(np.ones((3, 4))), np.zeros(4, bool),
        np.array([np.zeros(3), np.zeros((2, 2))], object), np.full((3, 4, 5), np.nan),
    ]  # fmt: skip
    data = pickle.dumps(raw.choice(rng, arrays), protocol=4)
    body = data[2:-1]
    if body[:1] == b"\x95":  # a frame may not lie within another
        body = body[9:]
    return body.replace(b"K\x03", b"K\x04") if rng.integers(2) else body


def mutate(path: Path, rng: np.random.Generator) -> None:
    data = path.read_bytes()
    match rng.integers(8):
        case 0:
            path.write_bytes(raw.mutate(data, rng))
        case 1:
            path.write_bytes(hostile(rng))
        case 2:
            path.write_bytes(b"\x80\x04" + value_ops(rng) + STOP)
        case 3 | 4:
            path.write_bytes(replaced(data, rng))
        case 5:
            path.write_bytes(reordered(data, rng))
        case _:
            content = pickle.loads(data)
            change(content, rng)
            path.write_bytes(pickle.dumps(content, protocol=int(rng.integers(6))))


def hostile(rng: np.random.Generator) -> bytes:
    """Calls. Whoever makes one of them leaves a mark beside the canary."""
    mark = "../canary/executed"
    made = [Call(open, mark, "w"), Call(exec, f"open({mark!r}, 'w')"), Call(np.memmap, mark, "u1")]
    call = raw.choice(rng, made)
    return pickle.dumps({"train": {"id": ["a"], "audio": call}}, protocol=int(rng.integers(6)))


def operations(data: bytes) -> list[tuple[int, int]]:
    """(begin, end) of every opcode with its argument."""
    begins = [at for _, _, at in pickletools.genops(data)]
    return list(zip(begins, [*begins[1:], len(data)], strict=True))


def unframed(data: bytes) -> bytes:
    """Without the opcodes of framing, whose lengths an edit would make wrong."""
    kept = [data[a:b] for a, b in operations(data) if data[a : a + 1] != b"\x95"]
    return b"".join(kept)


def replaced(data: bytes, rng: np.random.Generator) -> bytes:
    """One value of the pickle is another, with all the rest in its place."""
    data = unframed(data)
    pushes = b"NKMJG\x88\x89X\x8cC]})"
    found = [(a, b) for a, b in operations(data) if data[a] in pushes]
    a, b = raw.choice(rng, found)
    return data[:a] + value_ops(rng) + data[b:]


def reordered(data: bytes, rng: np.random.Generator) -> bytes:
    """Opcodes twice, left out, or exchanged."""
    data = unframed(data)
    parts = [data[a:b] for a, b in operations(data)]
    for _ in range(rng.integers(1, 4)):
        i, j = (int(x) for x in rng.integers(len(parts), size=2))
        match rng.integers(3):
            case 0:
                parts.insert(i, parts[j])
            case 1 if len(parts) > 1:
                del parts[i]
            case 2:
                parts[i], parts[j] = parts[j], parts[i]
    return b"".join(parts)


def change(content: dict, rng: np.random.Generator) -> None:
    """One entry of a split of another type or length."""
    split = content[raw.choice(rng, ["train", "valid", "test"])]
    key = raw.choice(rng, sorted(split))
    n = len(split["id"])
    ragged = np.empty(n, object)
    for i in range(n):
        ragged[i] = np.ones((i + 1, 3), np.float32)
    odd = [
        None, [], "x", 3, {}, {"a": 1}, np.zeros(0), np.zeros(()), list(range(n)), [None] * n,
        [[1]] * n, ["a" * 1000] * n, [b"\xff"] * n, [np.nan] * n, np.zeros((n, 0, 3)), ragged,
        np.zeros((n, 2, 3, 4)), np.full((n, 2, 3), 1e300), np.zeros((n, 2, 3), complex),
        list(ragged), [[]] * n, (1,) * n, [10**30] * n, ["\ud800"] * n, [True] * n,
        np.array([None] * n), np.zeros((n + 1, 2, 3)), np.zeros((n, 2, 3), np.float16) + np.inf,
    ]  # fmt: skip
    match rng.integers(4):
        case 0:
            del split[key]
        case 1:
            content[raw.choice(rng, ["train", "extra", 5, b"x"])] = raw.choice(rng, odd)
        case _:
            split[key] = raw.choice(rng, odd)
