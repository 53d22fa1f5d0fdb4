"""Stores made to mislead: what they say of themselves is sealed anew, or HDF5 is to be led
elsewhere. Each ends in a result or in one line, within bounded time and memory.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from click.testing import CliRunner

from mer import cli
from mer.pipeline.errors import DataError, MerError, StoreError
from mer.pipeline.runtime import limits
from mer.pipeline.store import FeatureStore, Shard, ShardWriter
from mer.pipeline.store.describe import describe, render

from tests.fuzz import reseal
from tests.fuzz.jsons import wrong_values
from tests.store.build import DIMS, make_store

ROOT = Path(__file__).parents[2]
EACH = [8, pytest.param(1, marks=pytest.mark.slow)]  # every so many changes


def use(head: Path) -> None:
    """Everything that commands do with a store."""
    with FeatureStore(head) as store:
        store.verify()
        render(describe(store))
        json.dumps(describe(store), allow_nan=False)
        for modality in store.header.modalities:
            store.packed(modality, check=True)
            store.check(modality)
            store.pooled(modality)


def one_line(error: BaseException) -> str:
    assert "\n" not in str(error) and len(str(error)) < 600, error
    return str(error)


def refused(head: Path, words: str) -> None:
    with pytest.raises(StoreError) as caught:
        use(head)
    assert words in one_line(caught.value), caught.value


def tried(head: Path, what: str) -> str:
    """Whether a store is used or refused; `what` is wrong in it."""
    try:
        use(head)
    except MerError as error:
        one_line(error)
        return "refused"
    except Exception as error:
        raise AssertionError(f"{what}: {error!r}") from error
    return "used"


def shard_of(folder: Path, number: int = 0) -> Path:
    return folder / "feats.shards" / f"shard-{number:05d}.h5"


# --- led elsewhere by HDF5


def itself(file: h5py.File, name: str, path: Path) -> None:
    """A virtual array of itself: HDF5 2.0 and before end the process when they are asked for its
    size.
    """
    shape, dtype = file[name].shape, file[name].dtype
    del file[name]
    layout = h5py.VirtualLayout(shape, dtype)
    layout[...] = h5py.VirtualSource(path, name, shape)
    file.create_virtual_dataset(name, layout)


def external(file: h5py.File, name: str, path: Path) -> None:
    """Bytes in another file."""
    shape, dtype = file[name].shape, file[name].dtype
    del file[name]
    file.create_dataset(name, shape, dtype, external=[("/etc/passwd", 0, h5py.h5f.UNLIMITED)])


def soft_link(file: h5py.File, name: str, path: Path) -> None:
    file.move(name, "moved")
    file[name] = h5py.SoftLink("/moved")


def loop(file: h5py.File, name: str, path: Path) -> None:
    del file[name]
    file[name] = h5py.SoftLink(f"/{name}")


def external_link(file: h5py.File, name: str, path: Path) -> None:
    del file[name]
    file[name] = h5py.ExternalLink(str(path.with_name("other.h5")), "/x")


def group(file: h5py.File, name: str, path: Path) -> None:
    del file[name]
    file.create_group(name)


def committed(file: h5py.File, name: str, path: Path) -> None:
    """Of a type that has a name of its own in the file."""
    values = file[name][()]
    del file[name]
    file["kind"] = values.dtype
    file.create_dataset(name, data=values, dtype=file["kind"])


def chunked(file: h5py.File, name: str, path: Path) -> None:
    values = file[name][()]
    del file[name]
    file.create_dataset(name, data=values, chunks=True)


def compressed(file: h5py.File, name: str, path: Path) -> None:
    values = file[name][()]
    del file[name]
    file.create_dataset(name, data=values, chunks=True, compression="gzip")


def compact(file: h5py.File, name: str, path: Path) -> None:
    values = file[name][()]
    del file[name]
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_layout(h5py.h5d.COMPACT)
    space = h5py.h5s.create_simple(values.shape)
    h5py.h5d.create(
        file.id, name.encode(), h5py.h5t.py_create(values.dtype), space, properties
    ).write(h5py.h5s.ALL, h5py.h5s.ALL, values)


def of_type(make: Callable[[], object]) -> Callable[[h5py.File, str, Path], None]:
    def change(file: h5py.File, name: str, path: Path) -> None:
        shape = file[name].shape
        del file[name]
        file.create_dataset(name, shape, make())

    return change


def no_space(file: h5py.File, name: str, path: Path) -> None:
    del file[name]
    file[name] = h5py.Empty("f4")


def scalar(file: h5py.File, name: str, path: Path) -> None:
    del file[name]
    file[name] = np.float32(1)


def missing(file: h5py.File, name: str, path: Path) -> None:
    del file[name]


LED = {
    "virtual": itself,
    "external": external,
    "soft link": soft_link,
    "link to itself": loop,
    "external link": external_link,
    "group": group,
    "named type": committed,
    "chunked": chunked,
    "compressed": compressed,
    "compact": compact,
    "empty": no_space,
    "scalar": scalar,
    "missing": missing,
    "text": of_type(h5py.string_dtype),
    "reference": of_type(lambda: h5py.ref_dtype),
    "compound": of_type(lambda: np.dtype([("a", "<f2"), ("b", "<i4")])),
    "ragged": of_type(lambda: h5py.vlen_dtype(np.dtype("<f4"))),
    "enumeration": of_type(lambda: h5py.enum_dtype({"a": 1}, "<i4")),
    "array": of_type(lambda: np.dtype(("<f4", (3,)))),
    "opaque": of_type(lambda: h5py.opaque_dtype(np.dtype("V8"))),
    "big-endian": of_type(lambda: np.dtype(">f4")),
    "complex": of_type(lambda: np.dtype("<c8")),
    "long double": of_type(lambda: np.dtype("longdouble")),
}
SHARD_ARRAYS = ["audio/x", "audio/pooled", "audio/offsets", "ids/x", "crc32", "meta"]
HEAD_ARRAYS = ["header", "index/id/x", "index/tags/item_offsets", "index/shard", "shard/sha256"]

USER = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (3 << 30, resource.RLIM_INFINITY))
from pathlib import Path
from mer.pipeline.errors import MerError
from tests.store.test_hostile import LED, use, reseal
import h5py, shutil
folder, which, names = Path(sys.argv[1]), sys.argv[2], sys.argv[3:]
path = folder / ("feats.h5" if which == "head" else "feats.shards/shard-00000.h5")
raw, head = path.read_bytes(), (folder / "feats.h5").read_bytes()
for kind, lead in LED.items():
    for name in names:
        path.write_bytes(raw)
        with h5py.File(path, "r+") as file:
            lead(file, name, path)
        if which == "shard":  # the size that the head knows
            attrs, data = reseal.load(folder / "feats.h5")
            data["shard/bytes"][0] = path.stat().st_size
            reseal.save(folder / "feats.h5", attrs, data)
        print(f"{kind} {name}: ", end="", flush=True)
        try:
            use(folder / "feats.h5")
            print("USED")
        except MerError as error:
            short = str(error).count(chr(10)) == 0 and len(str(error)) < 600
            print("refused" if short else "LONG", flush=True)
"""


ALL = [
    pytest.param("shard", SHARD_ARRAYS, marks=pytest.mark.slow),
    pytest.param("head", HEAD_ARRAYS, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(
    ("which", "names"), [("shard", ["audio/x"]), ("head", ["index/id/x"]), *ALL]
)
def test_hdf5_is_led_nowhere(tmp_path, forks, which, names):
    """Every kind of storage, link and type that the format does not have, for arrays of every use;
    in a process that may end.
    """
    make_store(tmp_path)
    run = forks.run(USER, tmp_path, which, *names, seconds=120)
    assert run.returncode == 0, f"{run.returncode}: {run.stdout[-300:]} {run.stderr[-600:]}"
    said = dict(line.split(": ") for line in run.stdout.splitlines())
    assert len(said) == len(LED) * len(names) and set(said.values()) == {"refused"}, [
        k for k, v in said.items() if v != "refused"
    ]


@pytest.mark.parametrize("kind", ["text", "list", "reference", "long"])
def test_attributes_of_other_types(tmp_path, kind):
    make_store(tmp_path)
    values = {
        "text": "mer-feats",
        "list": [1, 2],
        "reference": None,
        "long": np.bytes_(b"m" * (limits.ATTRIBUTE_BYTES // 2 + 1)),
    }
    with h5py.File(tmp_path / "feats.h5", "r+") as file:
        del file.attrs["format"]
        file.attrs["format"] = file.ref if kind == "reference" else values[kind]
    with pytest.raises(StoreError) as caught:
        FeatureStore(tmp_path / "feats.h5")
    one_line(caught.value)


# --- what a head file says


@pytest.mark.parametrize("each", EACH)
def test_any_wrong_value_of_the_header_is_used_or_refused(tmp_path, each):
    make_store(tmp_path)
    head = tmp_path / "feats.h5"
    said = reseal.described(head)
    said["modalities"]["audio"] |= {"frame_rate": 50.0, "encoder": "e", "extra": {"overflow": 1}}
    said["recipe"] = {"audio": {"encoder": "x", "channel": "mix"}}
    said["provenance"] = {"extract": {"failures": []}}
    counts = {"used": 0, "refused": 0}
    for place, wrong in list(wrong_values(said))[::each]:
        reseal.describe_as(head, wrong)
        counts[tried(head, place)] += 1
    assert min(counts.values()) > 60 // each, counts


@pytest.mark.parametrize("which", ["head", "shard"])
@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"[" * 200_000, "nested too deeply"),
        (b"[" * (limits.JSON_LEVELS + 1) + b"]" * (limits.JSON_LEVELS + 1), "nested too deeply"),
        (b'{"a":' * 5000 + b"1" + b"}" * 5000, "nested too deeply"),
        (b'{"a": NaN}', "JSON has no NaN"),
        (b'{"a": -Infinity}', "JSON has no -Infinity"),
        (b'{"a": 1e999}', "not finite"),
        (b'{"a": ' + b"9" * 10_000 + b"}", "not a readable"),
        (b'"\xff"', "not a readable"),
        (b"", "not a readable"),
        (b"null", "not an object"),
    ],
)
def test_json_of_a_store_is_bounded(tmp_path, which, raw, words):
    make_store(tmp_path, shards=1)
    path = tmp_path / "feats.h5" if which == "head" else shard_of(tmp_path)
    reseal.describe_as(path, raw)
    with pytest.raises(StoreError) as caught:
        FeatureStore(path) if which == "head" else Shard(path)
    assert words in one_line(caught.value)


def test_json_at_its_depth_is_read(tmp_path):
    make_store(tmp_path)
    said = reseal.described(tmp_path / "feats.h5")
    deep: object = 1
    # the header, its provenance and the number are levels, too
    for _ in range(limits.JSON_LEVELS - 3):
        deep = [deep]
    reseal.describe_as(tmp_path / "feats.h5", {**said, "provenance": {"deep": deep}})
    use(tmp_path / "feats.h5")
    reseal.describe_as(tmp_path / "feats.h5", {**said, "provenance": {"deep": [deep]}})
    refused(tmp_path / "feats.h5", "nested too deeply")


def set_to(value: object, at: int = 0) -> Callable[[np.ndarray], np.ndarray]:
    def how(array: np.ndarray) -> np.ndarray:
        array = array.copy()
        array[at] = value
        return array

    return how


@pytest.mark.parametrize(
    ("name", "how", "words"),
    [
        ("index/shard", set_to(3), "points at a shard it does not name"),
        ("index/shard", set_to(-1), "points at a shard it does not name"),
        ("index/shard_row", set_to(99), "not the ones the head file lists"),
        ("index/shard_row", set_to(-1), "points at a row that no shard has"),
        ("index/shard_row", set_to(1 << 62), "points at a row that no shard has"),
        ("index/shard_row", lambda array: array * 0, "two utterances at one place"),
        ("index/n_audio", set_to(-5), "negative number of steps of audio"),
        ("index/n_audio", set_to(1 << 62), "more steps of audio than its shards can hold"),
        (
            "index/n_audio",
            lambda array: array * 0 + (1 << 60),
            "more steps of audio than its shards can hold",
        ),
        ("index/n_audio", lambda array: array + 1, "not the ones the head file lists"),
        ("index/n_audio", lambda array: array[:-1], "not a readable store"),
        ("index/split/x", lambda array: array * 0 + ord("x"), "unknown split"),
        (
            "index/label/x",
            lambda array: array * 0 + ord("x"),
            "label that its header does not name",
        ),
        ("index/id/x", lambda array: array * 0 + 0xFF, "not a readable store"),
        ("index/id/offsets", set_to(5, 1), ""),
        ("index/id/offsets", set_to(1 << 62, 1), "offsets do not fit the data"),
        ("index/id/offsets", set_to(-1, 1), "offsets do not fit the data"),
        ("index/id/offsets", set_to(np.iinfo(np.int64).min, 1), "offsets do not fit the data"),
        ("index/id/offsets", lambda array: array[:0], "offsets do not fit the data"),
        ("index/targets/offsets", set_to(7, -1), "offsets do not fit the data"),
        ("index/label/valid", lambda array: array[:3], "validity marks"),
        ("shard/bytes", set_to(-1), "shard has"),
        ("shard/sha256", set_to(b"\xff" * 64), "not a readable store"),
        ("shard/identity", set_to(b"0" * 64), "not the shard"),
        ("shard/name/x", lambda array: array * 0, "is no name"),
        ("shard/name/x", lambda array: array * 0 + ord("/"), "shard"),
        ("shard/name/x", lambda array: array * 0 + ord("."), "shard"),
    ],
)
def test_any_wrong_number_of_the_index(tmp_path, name, how, words):
    make_store(tmp_path)
    reseal.change(tmp_path / "feats.h5", name, how)
    refused(tmp_path / "feats.h5", words)


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("index/unimodal/x", lambda array: array * 0 + ord("x")),  # no mark between
        ("index/unimodal/x", lambda array: array * 0 + ord("=")),  # of no modality
        ("index/unimodal/x", lambda array: np.where(array == ord("y"), ord("z"), array)),  # joz
        ("index/unimodal/valid", lambda array: array * 0),
    ],
)
def test_a_unimodal_label_that_is_none(tmp_path, name, how):
    past = Path(__file__).parent / "versions" / "v4"
    shutil.copytree(past, tmp_path / "v4")
    reseal.change(tmp_path / "v4/kept.h5", name, lambda array: how(array).astype(array.dtype))
    refused(tmp_path / "v4/kept.h5", "unimodal label that is none")


@pytest.mark.parametrize("words", ["inspect", "verify", "export"])
def test_the_command_line_says_it_in_a_line(tmp_path, words):
    make_store(tmp_path)
    reseal.change(tmp_path / "feats.h5", "index/n_audio", set_to(-5))
    more = [str(tmp_path / "out"), "--to", "npy"] if words == "export" else []
    result = CliRunner().invoke(cli.main, [words, str(tmp_path / "feats.h5"), *more])
    assert (
        result.exit_code == 5
        and len(result.stderr.splitlines()) == 1
        and "internal" not in result.stderr
    )


# --- what a shard says


@pytest.mark.parametrize("each", EACH)
def test_any_wrong_value_of_a_shards_description_is_used_or_refused(tmp_path, each):
    make_store(tmp_path)
    head, shards = tmp_path / "feats.h5", [shard_of(tmp_path, i) for i in range(3)]
    said, counts = reseal.described(shards[0]), {"used": 0, "refused": 0}
    for place, wrong in list(wrong_values(said))[::each]:
        reseal.describe_as(shards[0], wrong)
        reseal.seal_head_over(head, shards)
        counts[tried(head, place)] += 1
    assert counts["refused"] > 60 // each, counts


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("audio/offsets", set_to(1 << 40, 1)),
        ("audio/offsets", set_to(-1, 1)),
        ("audio/offsets", lambda array: array[::-1]),
        ("audio/offsets", lambda array: array[:-1]),
        ("audio/offsets", set_to(np.iinfo(np.int64).min, 1)),
        ("crc32", lambda array: array[:, :1]),
        ("crc32", lambda array: array[:1]),
        ("crc32", lambda array: array ^ 1),
        ("duration", lambda array: array[:1]),
        ("flags", lambda array: array[:0]),
        ("ids/offsets", set_to(-9, 1)),
        ("ids/x", lambda array: array * 0 + 0xFF),
        ("audio/x", lambda array: array[:-1]),
        ("audio/x", lambda array: array[:, :-1]),
        ("audio/x", lambda array: array.astype("<f4")),
        ("audio/x", lambda array: array + 1),
        ("audio/pooled", lambda array: array + 1),
        ("audio/pooled", lambda array: array[:-1]),
        ("audio/pooled", lambda array: array[:0]),
    ],
)
def test_any_wrong_array_of_a_shard(tmp_path, name, how):
    make_store(tmp_path)
    reseal.change(shard_of(tmp_path), name, how)
    reseal.seal_head_over(tmp_path / "feats.h5", [shard_of(tmp_path, i) for i in range(3)])
    refused(tmp_path / "feats.h5", "shard-00000.h5")


# --- bounds, and pipes


HUGE = """
import resource, sys, time
resource.setrlimit(resource.RLIMIT_AS, (3 << 30, resource.RLIM_INFINITY))
from pathlib import Path
from mer.pipeline.errors import MerError
from mer.pipeline.store import FeatureStore, Shard
begun = time.monotonic()
try:
    (FeatureStore if sys.argv[1].endswith("feats.h5") else Shard)(sys.argv[1])
except MerError as error:
    print(f"{time.monotonic() - begun:.2f} {error}")
"""


CLAIMED = [("head", "header"), ("head", "index/id/x"), ("shard", "ids/x"), ("shard", "meta")]
# some of it within the bounds
READ = [pytest.param(which, name, 900 << 20, marks=pytest.mark.slow) for which, name in CLAIMED]


@pytest.mark.parametrize(
    ("which", "name", "size"), [*((which, name, 1 << 40) for which, name in CLAIMED), *READ]
)
def test_a_huge_array_that_the_file_does_hold(tmp_path, forks, which, name, size):
    """In a file with holes: its claim is true, reading it would take the memory of the machine, or
    minutes.
    """
    make_store(tmp_path)
    path = tmp_path / "feats.h5" if which == "head" else shard_of(tmp_path)
    with h5py.File(path, "r+") as file:
        del file[name]
        file.create_dataset(name, (size,), "u1")
        file[name].id.get_offset()
    with h5py.File(path, "r+") as file:
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        properties.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        del file[name]
        h5py.h5d.create(
            file.id, name.encode(), h5py.h5t.STD_U8LE, h5py.h5s.create_simple((size,)), properties
        )
    os.truncate(path, max(path.stat().st_size, size + (1 << 20)))
    run = forks.run(HUGE, path, seconds=100)
    assert run.returncode == 0 and run.stdout, run.stderr[-600:]
    seconds, said = run.stdout.split(" ", 1)
    assert float(seconds) < 40 and path.name in said
    bound = limits.INDEX_BYTES if name.endswith("/x") else limits.HEADER_BYTES
    if size > bound:
        assert f"more than the {bound:,} that are read" in said


def test_what_could_not_be_read_again_is_not_written(tmp_path, monkeypatch):
    from mer.pipeline.store import schema

    monkeypatch.setattr(schema, "HEADER_BYTES", 1000)
    with pytest.raises(DataError, match="more than the 1,000 that can be read again"):
        with ShardWriter(tmp_path / "a.h5", DIMS, meta={"notes": "n" * 1000}) as writer:
            writer.add("u", {"audio": np.ones(6)})
    assert not (tmp_path / "a.h5").exists()
    with pytest.raises(DataError, match="has dim 16777217, expected 1 to 16,777,216"):
        ShardWriter(tmp_path / "a.h5", {"audio": limits.DIM + 1})


def test_a_dim_beyond_the_bound_is_refused(tmp_path):
    make_store(tmp_path)
    said = reseal.described(tmp_path / "feats.h5")
    said["modalities"]["audio"]["dim"] = limits.DIM + 1
    reseal.describe_as(tmp_path / "feats.h5", said)
    refused(tmp_path / "feats.h5", "dim of audio is not a number from 1")


COMMAND = """
import os, sys
os.chdir(sys.argv[1])
from mer.cli import main
main(sys.argv[2:])
"""


@pytest.mark.parametrize("command", ["inspect", "verify", "train", "export"])
@pytest.mark.parametrize("which", ["feats.h5", "feats.shards/shard-00001.h5"])
def test_a_pipe_in_the_place_of_a_file_does_not_hang(tmp_path, forks, which, command):
    make_store(tmp_path)
    (tmp_path / which).unlink()
    os.mkfifo(tmp_path / which)
    call = {
        "train": ["train", "--features", "feats.h5", "--model", "audio"],
        "export": ["export", "feats.h5", "out", "--to", "npy"],
    }
    arguments = call.get(command, [command, "feats.h5"])
    run = forks.run(COMMAND, tmp_path, *arguments)
    lines = [line for line in run.stderr.splitlines() if line.startswith("mer: ")]
    assert run.returncode in (1, 5) and len(lines) == 1 and "internal" not in run.stderr, run.stderr


def test_a_message_repeats_a_bounded_part_of_a_value(tmp_path):
    from mer.pipeline.runtime.files import shortened

    assert shortened("a" * limits.ECHO_CHARACTERS) == "a" * limits.ECHO_CHARACTERS
    assert shortened("a" * 100_000) == "a" * limits.ECHO_CHARACTERS + " …"


def test_a_ledger_beyond_the_bound_says_nothing(tmp_path):
    from mer.pipeline.runtime.hold import turn

    (tmp_path / ".turn").write_text('{"3": [1, 2]' + " " * limits.LOCK_BYTES + "}")
    with turn(tmp_path / ".turn") as ledger:
        assert ledger.read() == {}


def test_every_bound_is_documented():
    text = (ROOT / "docs" / "store.md").read_text()
    named = re.findall(r"^\|.*?\| `([A-Z_]+)` \|.*\| `([a-z_/]+\.py)` \|$", text, re.M)
    assert [name for name, _ in named] and {name for name, _ in named} == {
        name for name in vars(limits) if name.isupper()
    }
    for name, tests in named:
        assert re.search(rf"\b{name}\b", (ROOT / "tests" / tests).read_text()), (name, tests)


# --- one check


def test_a_check_reads_each_row_once_and_names_what_is_damaged(tmp_path):
    make_store(tmp_path)
    store = FeatureStore(tmp_path / "feats.h5")
    size = int(store.lengths("audio").sum()) * DIMS["audio"] * 2  # float16
    some = [row for row in range(len(store)) if row % 3 == 0]
    first = int(store.lengths("audio")[some].sum()) * DIMS["audio"] * 2
    assert store.check("audio", [*some, *some]) == first
    assert store.check("audio") == size - first and store.check("audio") == 0
    with h5py.File(shard_of(tmp_path, 1), "r") as file:
        place = file["audio/x"].id.get_offset()
    raw = bytearray(shard_of(tmp_path, 1).read_bytes())
    raw[place] ^= 1
    shard_of(tmp_path, 1).write_bytes(raw)
    store = FeatureStore(tmp_path / "feats.h5")
    elsewhere = np.flatnonzero(store.table()["shard"].to_numpy() != 1)
    assert store.check("audio", elsewhere) > 0 and store.check("text") > 0
    with pytest.raises(
        StoreError,
        match=r"shard-00001\.h5: audio of 'u\d+' does not match its checksum; run `mer verify "
        r"--repair",
    ):
        store.check("audio")
