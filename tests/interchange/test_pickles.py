"""Pickles read as data: everything data reads the same as with pickle, everything else is refused
and nothing runs.
"""

from __future__ import annotations

import collections
import os
import pickle
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mer.pipeline.errors import DataError
from mer.pipeline.interchange import pickles
from mer.pipeline.interchange.pickles import load

ROOT = Path(__file__).parents[2]


def loaded(tmp_path: Path, raw: bytes):
    (tmp_path / "x.pkl").write_bytes(raw)
    return load(tmp_path / "x.pkl")


def equal(a, b) -> bool:
    if isinstance(a, np.ndarray):
        if not isinstance(b, np.ndarray) or a.shape != b.shape:
            return False
        a, b = (x.astype(x.dtype.newbyteorder("=")) for x in (a, b))  # NumPy swaps some on loading
        if a.dtype != b.dtype:
            return False
        if a.dtype == object:
            return all(map(equal, a.ravel().tolist(), b.ravel().tolist()))
        return a.tobytes() == b.tobytes()
    if isinstance(a, dict):
        return list(a) == list(b) and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(equal, a, b))
    return type(a) is type(b) and (a == b or a != a)


plain_arrays = hnp.arrays(
    st.one_of(
        hnp.floating_dtypes(sizes=(16, 32, 64)),
        hnp.integer_dtypes(),
        hnp.unsigned_integer_dtypes(),
        st.just(np.dtype(bool)),
        hnp.unicode_string_dtypes(max_len=4),
    ),
    hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
)
atoms = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary(), plain_arrays
)
values = st.recursive(
    atoms,
    lambda v: st.one_of(
        st.lists(v),
        st.lists(v).map(tuple),
        st.dictionaries(st.text() | st.integers(), v),
        st.lists(v, min_size=1).map(lambda items: [*items, items[0]]),
    ),
    max_leaves=12,
)


@given(value=values, protocol=st.integers(0, 5))
@settings(max_examples=100, deadline=None)
def test_data_is_read_as_pickle_reads_it(value, protocol, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "value.pkl"
    path.write_bytes(pickle.dumps(value, protocol))
    assert equal(load(path), pickle.loads(path.read_bytes()))


@pytest.mark.parametrize("protocol", range(6))
def test_what_feature_pickles_are_made_of(tmp_path, protocol):
    x = np.arange(24, dtype="<f4").reshape(2, 3, 4)
    value = {
        "f": np.asfortranarray(x[0]),
        "big": x.astype(">f8"),
        "text": np.array(["a", None, "é"], dtype=object),
        "scalar": np.float32(2.5),
        "n": np.int64(7),
        "nested": np.array([[1, 2], [3]], dtype=object),
        "od": collections.OrderedDict(a=1),
        "empty": np.empty((0, 5)),
        "bytes": b"\x00\xff",
        "again": x,
        "x": x,
        "long": 10**50,
    }
    got = loaded(tmp_path, pickle.dumps(value, protocol))
    assert got.pop("od") == {"a": 1} and value.pop("od")
    assert equal(got.pop("scalar"), np.float32(2.5)) and equal(got.pop("n"), np.int64(7))
    del value["scalar"], value["n"]
    assert equal(got, value) and got["x"] is got["again"]


def test_pickle_of_python_2(tmp_path):
    """Protocol 2 as Python 2 wrote it: byte strings everywhere, the array's data too."""
    raw = (
        b"\x80\x02}q\x00U\x05audioq\x01cnumpy.core.multiarray\n_reconstruct\nq\x02"
        b"cnumpy\nndarray\nq\x03K\x00\x85U\x01b\x87Rq\x04"
        b"(K\x01K\x01K\x02\x86cnumpy\ndtype\nq\x05U\x02f4K\x00K\x01\x87Rq\x06"
        b"(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89U\x08" + struct.pack("<ff", 1.5, -2) + b"tbs."
    )
    got = loaded(tmp_path, raw)
    assert list(got) == [b"audio"] and got[b"audio"].tolist() == [[1.5, -2.0]]


class Runs:
    """Would write a file when unpickled."""

    def __init__(self, call, *args):
        self.call, self.args = call, args

    def __reduce__(self):
        return self.call, self.args


def hostile(tmp_path: Path) -> dict[str, tuple[bytes, str]]:
    """Name -> (pickle, what the refusal says)."""
    command = f"touch {tmp_path / 'ran'}"
    reduce = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR(I1\n"
    bytewise = b"tcnumpy\ndtype\n(S'u1'\nI0\nI1\ntR(I3\nS'<'\nNNNI-1\nI-1\nI0\ntbI00\n"
    return {
        "a command": (pickle.dumps(Runs(os.system, command)), "'posix.system' is refused"),
        "a command, protocol 0": (
            b"cos\nsystem\n(S'" + command.encode() + b"'\ntR.",
            "'os.system' is refused",
        ),
        "eval": (
            pickle.dumps(Runs(eval, f"open({str(tmp_path / 'ran')!r}, 'w')")),
            "'builtins.eval' is refused",
        ),
        "inside an array": (
            pickle.dumps(np.array([Runs(os.system, command)], dtype=object)),
            "'posix.system' is refused",
        ),
        "numpy that executes": (
            b"cnumpy.testing._private.utils\nrunstring\n(S'1'\n}tR.",
            "runstring' is refused",
        ),
        "numpy.load": (pickle.dumps(Runs(np.load, "x")), "'numpy.load' is refused"),
        "getattr by dotted name": (
            b"\x80\x04\x8c\x05numpy\x8c\x10ndarray.__class__\x93.",
            "is refused",
        ),
        "INST": (b"(S'" + command.encode() + b"'\nios\nsystem\n.", "opcode INST is refused"),
        "OBJ": (b"(cos\nsystem\nS'x'\no.", "'os.system' is refused"),
        "NEWOBJ": (
            b"\x80\x02cnumpy\nndarray\n(tcnumpy\nndarray\n\x81.",
            "opcode NEWOBJ is refused",
        ),
        "EXT1": (b"\x80\x02\x82\x01.", "opcode EXT1 is refused"),
        "PERSID": (b"Psomewhere\n.", "opcode PERSID is refused"),
        "a known name called otherwise": (
            b"cnumpy\nndarray\n((I1000000000000\nttR.",
            "a call of 'numpy.ndarray' is refused",
        ),
        "an object's state": (
            b"}}(S'__class__'\nI1\nub.",
            "an object with a state of its own is refused",
        ),
        "a class instance": (pickle.dumps(pytest.MonkeyPatch), "is refused"),
        "a record array": (pickle.dumps(np.zeros(2, "f4,i4")), "an array of type 'V8' is refused"),
        "10 GB of bytes": (
            b"\x80\x04\x8e" + struct.pack("<Q", 10 << 30) + b"x.",
            "claims 10,737,418,240 bytes where 2 are left",
        ),
        "10 GB of text": (
            b"\x80\x04\x8d" + struct.pack("<Q", 10 << 30) + b"x.",
            "claims 10,737,418,240 bytes",
        ),
        "10 GB of bytearray": (
            b"\x80\x05\x96" + struct.pack("<Q", 10 << 30) + b"x.",
            "claims 10,737,418,240 bytes",
        ),
        "2^63 of frame": (b"\x80\x04\x95" + struct.pack("<Q", 2**63) + b"N.", ""),
        "memo slot 4 billion": (b"\x80\x02Nr\xff\xff\xff\xff.", ""),
        "a shape of 10 GB": (
            reduce + b"(I10000000000\n" + bytewise + b"S'x'\ntb.",
            r"an array of shape \(10000000000,\) and uint8 that comes with 1 bytes",
        ),
        "a negative shape": (reduce + b"(I-5\n" + bytewise + b"S''\ntb.", "proper shape"),
        "a bomb of lists": (b"]" * 300_000 + b".", "more than 100,000 objects"),
        "a type of shared lists": (
            b"]q\x00" + b"]h\x00ah\x00aq\x00" * 60 + b"cnumpy\ndtype\n(h\x00tR.",
            r"an array of type '\[\[\[",
        ),
        "nested without end": (b"(" * 90_000 + b"l" * 90_000 + b".", "more than 100,000 objects"),
        "doubling": (b"]" + b"(2" * 100 + b"e" * 50 + b".", "not a readable pickle"),
        "a digit bomb": (b"L" + b"9" * 500_000 + b"L\n.", "a number of 500,000 digits"),
        "truncated": (pickle.dumps(np.zeros(1000))[:500], "claims|readable"),
        "empty": (b"", "an empty file, not a pickle"),
        "text": (b"id,label\n1,joy\n", "readable|refused|claims"),
        "a zip": (b"PK\x03\x04" + bytes(100), "a zip archive"),
        "only a name": (b"cnumpy\nndarray\n.", "no finished value"),
        "only a mark": (b"(.", "no finished value"),
        "a list in itself as key": (b"}]q\x00h\x00s.", "a dict key"),
    }


@pytest.mark.parametrize("name", hostile(Path("/")))
def test_hostile_pickle_is_one_line_and_runs_nothing(tmp_path, monkeypatch, name):
    monkeypatch.setattr(pickles, "PICKLE_OPCODES", 100_000)
    raw, message = hostile(tmp_path)[name]
    if message:
        with pytest.raises(DataError, match=message) as caught:
            loaded(tmp_path, raw)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    else:  # harmless: only a foolish reader would have allocated
        assert loaded(tmp_path, raw) is None
    assert not (tmp_path / "ran").exists()


def test_memory_stays_within_the_files_size(tmp_path):
    """Under an address-space limit of 2 GB every claim of more ends in its refusal, not in a
    MemoryError.
    """
    bombs = {
        n: r
        for n, (r, m) in hostile(tmp_path).items()
        if "GB" in n or "billion" in n or "2^63" in n or "bomb" in n
    }
    for i, raw in enumerate(bombs.values()):
        (tmp_path / f"{i}.pkl").write_bytes(raw)
    code = """
import resource, sys
from mer.pipeline.errors import DataError
from mer.pipeline.interchange import pickles
from mer.pipeline.interchange.pickles import load
pickles.PICKLE_OPCODES = 1_000_000
resource.setrlimit(resource.RLIMIT_AS, (2 << 30, resource.RLIM_INFINITY))
for path in sys.argv[1:]:
    try:
        load(path)
    except DataError as error:
        assert "MemoryError" not in str(error), error
print("alive")
"""
    paths = [tmp_path / f"{i}.pkl" for i in range(len(bombs))]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-c", code, *paths],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        env=env,
    )
    assert run.stdout == "alive\n", run.stderr


@given(raw=st.binary(max_size=200))
@settings(max_examples=100, deadline=None)
def test_any_bytes_end_in_a_value_or_one_line(tmp_path_factory, raw):
    path = tmp_path_factory.getbasetemp() / "any.pkl"
    path.write_bytes(raw)
    try:
        load(path)
    except DataError as error:
        assert "\n" not in str(error)


@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_a_damaged_pickle_ends_in_a_value_or_one_line(tmp_path_factory, data):
    raw = bytearray(
        pickle.dumps(
            {
                "a": np.arange(6.0).reshape(2, 3),
                "b": ["x", 1, None],
                "c": np.array(["u"], dtype=object),
            }
        )
    )
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged.pkl"
    path.write_bytes(raw)
    try:
        load(path)
    except DataError as error:
        assert "\n" not in str(error)
