"""`mer join`: modalities of several stores under one head, and what is refused in one line."""

from __future__ import annotations

import json
import multiprocessing
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from click.testing import CliRunner

from mer.cli import main
from mer.pipeline.errors import DataError, StoreError
from mer.pipeline.extraction import extract
from mer.pipeline.interchange.joining import join
from mer.pipeline.media.stages import Flag
from mer.pipeline.store import (
    FeatureStore,
    ModalityInfo,
    ShardWriter,
    arrays,
    build_index,
    verify_shards,
)

from tests.extract import corpus
from tests.store.build import read_part

ROOT = Path(__file__).parents[2]
IDS = [f"u{k}" for k in range(6)]
DIMS = {"text": 3, "audio": 2, "audio.egemaps": 5, "vision": 4}


def mer(*args) -> tuple[int, str, str]:
    result = CliRunner().invoke(main, [str(a) for a in args])
    assert "Traceback" not in result.output
    return result.exit_code, result.stdout, result.stderr


def refused(code: int, *args) -> str:
    """The one line of a command that ends with this code."""
    found, out, err = mer(*args)
    (line,) = err.splitlines()
    assert found == code and out == "" and len(line) <= 300, (found, out, err)
    return line


def frames(modality: str, k: int) -> np.ndarray:
    """(T, D) of utterance k, float16-exact and never zero."""
    rng = np.random.default_rng([k, len(modality)])
    return (rng.integers(1, 200, (1 + k % 3, DIMS[modality])) / 8).astype(np.float32)


def means(modality: str, k: int) -> np.ndarray:
    return np.stack([frames(modality, k).mean(axis=0).round() + layer for layer in range(3)])


def make(
    path: Path, modalities: list[str], ids: list[str] = IDS, layers: bool = True, **columns
) -> Path:
    """A store of some utterances over two shards. `columns` give or change (None: take away) what
    is said of an utterance, by id, and what is said of the store.
    """
    shards = [path.with_suffix(".shards") / f"shard-{i:05d}.h5" for i in range(2)]
    counts = dict.fromkeys(modalities, 3) if layers else {}
    rows = []
    durations = columns.pop("duration", {})
    fine = columns.pop("fine", 0)  # added to the layer means, which are float32 then
    flags = columns.pop("flags", {})
    recipe = columns.pop("recipe", {})
    for number, shard in enumerate(shards):
        dims = {m: DIMS[m] for m in modalities}
        wide = "float32" if fine else "float16"
        with ShardWriter(shard, dims, layers=counts, layer_dtype=wide) as writer:
            for row_id in ids[number::2]:
                k = int(row_id[1:])
                given = {m: means(m, k) + np.float32(fine) for m in counts}
                writer.add(
                    row_id,
                    {m: frames(m, k) for m in modalities},
                    duration=durations.get(row_id, k / 2),
                    flags=flags.get(row_id, 0),
                    layer_means=given,
                )
    for row_id in ids:
        k = int(row_id[1:])
        row = {
            "id": row_id,
            "split": ("train", "dev", "test")[k % 3],
            "label": ("joy", "anger")[k % 2],
            "text": f"text {k}",
            "speaker": f"s{k}",
        }
        rows.append({name: columns.get(name, {}).get(row_id, row[name]) for name in row})
    build_index(
        path,
        shards,
        rows,
        dataset=columns.get("dataset", "demo"),
        task="single",
        labels=columns.get("labels", ("joy", "anger")),
        modalities={m: ModalityInfo(DIMS[m], 50.0, encoder=f"{m}-encoder") for m in modalities},
        fingerprint=columns.get("fingerprint", path.stem),
        recipe=recipe,
    )
    return path


NOTHING = dict.fromkeys(IDS)


@pytest.fixture
def three(tmp_path) -> list[Path]:
    """Text with labels, audio of the last four and a seventh, vision with nothing but ids."""
    text = make(tmp_path / "text.h5", ["text"], IDS[::-1])
    audio = make(tmp_path / "audio.h5", ["audio"], [*IDS[2:], "u6"])
    unsaid = {"label": NOTHING, "split": dict.fromkeys(IDS, ""), "text": NOTHING}
    unsaid |= {"speaker": NOTHING, "duration": dict.fromkeys(IDS, float("nan")), "labels": ()}
    vision = make(tmp_path / "vision.h5", ["vision"], layers=False, fingerprint="", **unsaid)
    return [text, audio, vision]


def holds(store: FeatureStore) -> None:
    """Every value of `three`, in the order of the text store with the seventh behind."""
    ids = [*IDS[::-1], "u6"]
    table = store.table().to_pydict()
    assert table["id"] == ids
    order = [int(row_id[1:]) for row_id in ids]
    assert table["label"] == [("joy", "anger")[k % 2] for k in order]
    assert table["split"] == [("train", "dev", "test")[k % 3] for k in order]
    assert table["text"] == [f"text {k}" for k in order]
    assert table["duration"] == [k / 2 for k in order]
    there = {"text": range(6), "audio": range(2, 7), "vision": range(6)}
    assert list(store.header.modalities) == list(there)
    for m, known in there.items():
        lengths = [1 + k % 3 if k in known else 0 for k in order]
        assert store.lengths(m).tolist() == lengths == table[f"n_{m}"]
        expected = [frames(m, k) if k in known else np.empty((0, DIMS[m])) for k in order]
        for row, x in enumerate(expected):
            assert np.array_equal(store.features(m, row), x)
            assert store.features(m, row).dtype == np.float32
            assert store.features(m, row, "stored", check=True).dtype == np.float16
        some = [6, 0, 5, 3, 0]
        packed, offsets = store.packed(m, some, check=True)
        assert np.array_equal(packed, np.concatenate([expected[row] for row in some]))
        assert np.diff(offsets).tolist() == [lengths[row] for row in some]
        batch, steps = store.batch(m, [1, 6])
        assert len(batch) == steps.sum() == lengths[1] + lengths[6]
        mean = [x.mean(axis=0) if len(x) else np.zeros(DIMS[m]) for x in expected]
        assert np.allclose(store.pooled(m), mean)
        if m == "vision":
            with pytest.raises(DataError, match="keeps no layer means of vision"):
                store.layer_means(m)
            continue
        zero = np.zeros((3, DIMS[m]))
        layers = np.stack([means(m, k) if k in known else zero for k in order])
        assert np.array_equal(store.layer_means(m), layers)
        assert np.array_equal(store.layer_means(m, some), layers[some])
    assert verify_shards(store) == []


def test_a_join_is_a_store(three, tmp_path):
    out = tmp_path / "joined.h5"
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.h5")}
    code, said, err = mer("join", *three, "--out", out)
    assert code == 0 and said.strip() == str(out)
    assert err.splitlines() == [
        f"{three[0]}: 1 of 7 utterances are not in it, first 'u6'; absent there",
        f"{three[1]}: 2 of 7 utterances are not in it, first 'u1'; absent there",
        f"{three[2]}: 1 of 7 utterances are not in it, first 'u6'; absent there",
        "7 utterances, with text 6, audio 5, vision 6",
    ]
    assert {path: path.read_bytes() for path in before} == before
    assert {path.name for path in tmp_path.iterdir()} == {
        *(f"{name}.{end}" for name in ("text", "audio", "vision") for end in ("h5", "shards")),
        "joined.h5",
    }
    store = FeatureStore(out)
    holds(store)
    assert store.check("audio") > 0 and store.check("audio") == 0
    assert store.header.recipe == {} and store.header.labels == ("joy", "anger")
    holds(FeatureStore(out))
    with h5py.File(out) as file:  # other tools follow the links
        assert file["stores/00001/shards/00000/audio/x"].shape[1] == 2
    code, said, _ = mer("verify", out)
    assert code == 0 and "7 utterances in 6 shards of 3 stores, every byte is as written" in said
    code, said, _ = mer("inspect", out)
    assert code == 0 and f"joined: audio from {three[1].resolve()}" in said
    assert "layers: the utterance means of 3 x 2" in said
    found = json.loads(mer("inspect", out, "--json")[1])
    assert [member["modalities"] for member in found["members"]] == [
        {"text": "text"},
        {"audio": "audio"},
        {"vision": "vision"},
    ]
    size = sum(path.stat().st_size for path in tmp_path.rglob("*.h5"))
    assert found["bytes"] == size and found["shards"] == 6


def test_a_copy_needs_nothing_else(three, tmp_path):
    out = tmp_path / "new" / "joined.h5"
    code, _, err = mer("join", *three, "--copy", "--out", out)
    assert code == 0 and "audio 5" in err
    assert mer("join", *three, "--copy", "--out", out)[2].splitlines()[-1] == (
        "joined before, from these very stores; nothing to do"
    )
    for path in three:
        path.unlink()
        shutil.rmtree(path.with_suffix(".shards"))
    store = FeatureStore(out)
    assert not store.members
    holds(store)
    assert {m: info.encoder for m, info in store.header.modalities.items()} == {
        m: f"{m}-encoder" for m in ("text", "audio", "vision")
    }
    (out.with_suffix(".shards") / "shard-00000.h5").unlink()
    assert "joined with --copy: join again" in mer("verify", out)[2]


EXTRACTED = {"audio": {"layer": "last"}}  # a recipe, as only `mer extract` gives one
FINE = 0.0001  # no float16 beside a number of some size


@pytest.fixture
def flagged(tmp_path) -> list[Path]:
    """Text of another writer, whose flags mean something else, and extracted audio of the last four
    and a seventh with layer means that only float32 holds.
    """
    text = make(tmp_path / "text.h5", ["text"], flags={"u2": 1 << 30})
    short = {"u3": Flag.short, "u6": Flag.short | Flag.silent}
    ids = [*IDS[2:], "u6"]
    extracted = {"flags": short, "fine": FINE, "recipe": EXTRACTED}
    return [text, make(tmp_path / "audio.h5", ["audio"], ids, **extracted)]


def keeps_all(store: FeatureStore, audio: str = "audio") -> None:
    """The flags and layer means of `flagged`, and their dtypes."""
    order = [int(row_id[1:]) for row_id in store.table()["id"].to_pylist()]
    assert order == list(range(7))
    assert store.flags.tolist() == [0, 0, 0, Flag.short, 0, 0, Flag.short | Flag.silent]
    infos = store.header.modalities
    assert infos["text"].layer_dtype == "float16" and infos[audio].layer_dtype == "float32"
    absent = np.zeros((3, DIMS["audio"]), np.float32)
    wanted = [means("audio", k) + np.float32(FINE) if k > 1 else absent for k in order]
    assert np.array_equal(store.layer_means(audio), np.stack(wanted))
    assert np.array_equal(store.layer_means("text")[:6], [means("text", k) for k in range(6)])
    assert mer("inspect", store.path, "--flag", "short")[1].split() == ["u3", "u6"]
    assert json.loads(mer("inspect", store.path, "--flag", "silent", "--json")[1]) == ["u6"]
    assert json.loads(mer("inspect", store.path, "--json")[1])["flags"]["short"] == 2


def test_a_copy_keeps_values_and_flags(flagged, tmp_path):
    """Also under another name, as one file, and joined again."""
    store, _, _ = join(flagged, tmp_path / "joined.h5")
    keeps_all(store)
    copied, _, written = join(flagged, tmp_path / "copied.h5", copy=True)
    assert written and not copied.members
    keeps_all(copied)
    assert not join(flagged, tmp_path / "copied.h5", copy=True)[2]
    named = {"audio.h5:audio": "audio.other"}
    renamed, _, _ = join(flagged, tmp_path / "renamed.h5", renamed=named, copy=True)
    keeps_all(renamed, "audio.other")
    for path in (store.path, copied.path):
        out = tmp_path / f"one-{path.name}"
        assert mer("export", path, out, "--to", "single")[0] == 0
        keeps_all(FeatureStore(out))
    vision = make(tmp_path / "vision.h5", ["vision"], layers=False)
    for number, inner in enumerate((store, copied)):
        for copy in (False, True):
            out = tmp_path / f"again-{number}-{copy}.h5"
            keeps_all(join([inner.path, vision], out, copy=copy)[0])


def test_a_copy_of_other_flags_or_layers_is_another(flagged, tmp_path):
    text, audio = flagged
    out = tmp_path / "copied.h5"
    join(flagged, out, copy=True)
    ids = [*IDS[2:], "u6"]
    same = {"fine": FINE, "recipe": EXTRACTED, "fingerprint": "audio"}
    make(audio, ["audio"], ids, **same, flags={"u3": Flag.short})
    line = refused(1, "join", text, audio, "--copy", "--out", out)
    assert "exists already, from other content" in line


def test_a_copy_keeps_layers_side_by_side(tmp_path):
    """A stack of two layers of width 3, and layer means of them in float32."""
    text = make(tmp_path / "text.h5", ["text"])
    shard = tmp_path / "audio.shards" / "shard-00000.h5"
    steps = np.arange(12, dtype=np.float32).reshape(2, 6)
    layers = np.arange(15, dtype=np.float32).reshape(5, 3) + np.float32(FINE)
    kinds = {"layers": {"audio": 5}, "layer_dtype": {"audio": "float32"}}
    with ShardWriter(shard, {"audio": 6}, **kinds) as writer:
        writer.add("u1", {"audio": steps}, layer_means={"audio": layers})
    build_index(
        tmp_path / "audio.h5",
        [shard],
        [{"id": "u1"}],
        dataset="demo",
        task="single",
        labels=(),
        modalities={"audio": ModalityInfo(6, 50.0, stack=(1, 3))},
    )
    copied, _, _ = join([text, tmp_path / "audio.h5"], tmp_path / "c.h5", copy=True)
    info = copied.header.modalities["audio"]
    assert (info.stack, info.layers, info.layer_dtype) == ((1, 3), 5, "float32")
    assert np.array_equal(copied.features("audio", 1), steps)
    assert np.array_equal(copied.layer_means("audio", [1])[0], layers)
    assert not copied.layer_means("audio", [0, 2]).any()


def test_flags_of_another_writer_are_not_named(flagged, tmp_path):
    line = refused(1, "inspect", flagged[0], "--flag", "short")
    assert f"{flagged[0]}: was not extracted, so that its flags are another writer's" in line
    assert json.loads(mer("inspect", flagged[0], "--json")[1])["flags"] == {}


def test_a_copy_does_not_write_over_the_shards_of_a_member(three, tmp_path):
    """Its head was renamed, its shards were not."""
    three[0].rename(tmp_path / "renamed.h5")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.h5")}
    stores = (tmp_path / "renamed.h5", *three[1:])
    line = refused(1, "join", *stores, "--copy", "--force", "--out", three[0])
    assert "text.shards: holds the shards of" in line
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.h5")} == before


def test_the_head_of_a_member_is_read_once(three, tmp_path, monkeypatch):
    join(three, tmp_path / "joined.h5")
    read, opened = [], arrays.opened
    monkeypatch.setattr(
        arrays, "opened", lambda path, what: read.append(path) or opened(path, what)
    )
    store = FeatureStore(tmp_path / "joined.h5")
    assert [path.name for path in read] == ["joined.h5", *(path.name for path in three)]
    assert store.member(1) is store.member(1) and len(read) == 4
    assert store.member(1).content() == store.members[1].content


def test_stores_of_one_file_join(three, tmp_path):
    for path in three:
        assert mer("export", path, tmp_path / f"one-{path.name}", "--to", "single")[0] == 0
    ones = [tmp_path / f"one-{path.name}" for path in three]
    store, _, _ = join(ones, tmp_path / "joined.h5")
    holds(store)
    assert mer("export", store.path, tmp_path / "all.h5", "--to", "single")[0] == 0
    single = FeatureStore(tmp_path / "all.h5")
    assert not single.members
    holds(single)
    raw = bytearray(ones[1].read_bytes())
    with h5py.File(ones[1]) as file:
        raw[file["data/audio/layers"].id.get_offset()] ^= 1
    ones[1].write_bytes(raw)
    said = mer("verify", store.path)[2]
    assert "1 file of its members cannot be used" in said
    assert f"{ones[1]} was exported: remove it and export it again from the store" in said


def test_the_whole_folder_moves(three, tmp_path):
    join(three, tmp_path / "sub" / "joined.h5")
    moved = tmp_path.with_name(f"{tmp_path.name}-moved")
    tmp_path.rename(moved)
    try:
        holds(FeatureStore(moved / "sub" / "joined.h5"))
        (moved / "link.h5").symlink_to(moved / "sub" / "joined.h5")
        holds(FeatureStore(moved / "link.h5"))
    finally:
        moved.rename(tmp_path)


def test_joins_flatten(three, tmp_path):
    first, _, _ = join(three[:2], tmp_path / "first.h5")
    store, _, _ = join([first.path, three[2]], tmp_path / "all.h5")
    holds(store)
    assert [record.path for record in store.members] == [path.resolve() for path in three]
    first.path.unlink()
    holds(FeatureStore(store.path))


def test_the_same_again_is_left_and_another_refused(three, tmp_path):
    out = tmp_path / "joined.h5"
    assert join(three, out)[2]
    before = out.stat().st_mtime_ns
    assert not join(three, out)[2] and out.stat().st_mtime_ns == before
    assert "exists already, and is not this join" in refused(1, "join", *three[:2], "--out", out)
    assert mer("join", *three[:2], "--out", out, "--force")[0] == 0
    assert list(FeatureStore(out).header.modalities) == ["text", "audio"]
    (tmp_path / "other.h5").write_bytes(b"mine")
    assert "exists already" in refused(1, "join", *three, "--out", tmp_path / "other.h5")
    assert (tmp_path / "other.h5").read_bytes() == b"mine"
    args = ("join", *three, "--force", "--out")
    assert mer(*args, tmp_path / "other.h5")[0] == 0  # of a join that was damaged, say
    assert "is one of the stores to join" in refused(1, *args, three[0])
    (tmp_path / "made.shards").mkdir()
    assert "folder of another store's shards" in refused(1, *args, tmp_path / "made.h5")
    (tmp_path / "link.h5").symlink_to(out)
    assert "a symbolic link" in refused(1, *args, tmp_path / "link.h5")
    assert "named twice" in refused(1, "join", three[0], three[0], "--out", tmp_path / "x.h5")
    assert "two stores or more" in refused(1, "join", three[0], "--out", tmp_path / "x.h5")
    assert "no such store" in refused(1, "join", three[0], tmp_path / "no.h5", "--out", out)


CONFLICTS = {
    "label": ("anger", "has label 'anger', in {a} 'joy'; make them agree"),
    "split": ("test", "has split 'test', in {a} 'dev'; make them agree"),
    "speaker": ("s9", "has speaker 's9', in {a} 's4'; make them agree, or keep the first with"),
    "text": ("else", "has text 'else', in {a} 'text 4'; make them agree, or keep the first with"),
    "duration": (2.6, "has duration '2.6 s', in {a} '2 s'; make them agree, or keep"),
}


@pytest.mark.parametrize("column", CONFLICTS)
def test_a_contradiction_is_one_line(tmp_path, column):
    value, message = CONFLICTS[column]
    a = make(tmp_path / "a.h5", ["text"])
    b = make(tmp_path / "b.h5", ["audio"], **{column: {"u4": value}})
    line = refused(1, "join", a, b, "--out", tmp_path / "c.h5")
    assert f"{b}: 'u4' {message.format(a=a)}" in line
    assert not (tmp_path / "c.h5").exists()
    args = ("join", a, b, "--keep-first", column, "--out", tmp_path / "c.h5")
    if "--keep-first" not in line and "keep the first" not in line and column != "duration":
        assert "what decides training and testing must agree" in refused(1, *args)
        return
    code, _, err = mer(*args)
    assert code == 0 and f"1 utterance has another {column}; the first store's is kept" in err
    row = FeatureStore(tmp_path / "c.h5").table().to_pylist()[4]
    assert row[column] == {"speaker": "s4", "text": "text 4", "duration": 2.0}[column]


def test_durations_of_two_decoders_agree(tmp_path):
    a = make(tmp_path / "a.h5", ["text"])
    b = make(tmp_path / "b.h5", ["audio"], duration={"u4": 2.05})
    store, _, _ = join([a, b], tmp_path / "c.h5")
    assert store.table()["duration"].to_pylist()[4] == 2.0


def test_label_names_and_tasks(tmp_path):
    a = make(tmp_path / "a.h5", ["text"], ["u0", "u2"], labels=["joy"])
    more = ("fear", "joy", "anger")
    b = make(tmp_path / "b.h5", ["audio"], labels=more)
    assert join([a, b], tmp_path / "c.h5")[0].header.labels == more
    assert join([b, a], tmp_path / "d.h5")[0].header.labels == more
    odd = make(tmp_path / "odd.h5", ["vision"], labels=["joy", "anger", "awe"])
    line = refused(1, "join", b, odd, "--out", tmp_path / "e.h5")
    assert f"{odd}: label 'awe' is none of {b}: fear, joy, anger; make them agree" in line
    for name, task, labels in (("m", "multi", ["x", "y"]), ("n", "multi", ["y", "x"])):
        with ShardWriter(tmp_path / f"{name}.shards" / "s.h5", {f"{name}ine": 1}) as writer:
            writer.add("u0", {f"{name}ine": [1]})
        build_index(
            tmp_path / f"{name}.h5",
            [tmp_path / f"{name}.shards" / "s.h5"],
            [{"id": "u0", "split": "train", "targets": [0, 1]}],
            dataset="demo",
            task=task,
            labels=labels,
        )
    m, n = tmp_path / "m.h5", tmp_path / "n.h5"
    assert "task multi" in refused(1, "join", a, m, "--out", tmp_path / "e.h5")
    assert "targets y, x, " in refused(1, "join", m, n, "--out", tmp_path / "e.h5")


def test_ids_that_are_missing(three, tmp_path):
    out = tmp_path / "joined.h5"
    line = refused(1, "join", *three, "--require-all", "--out", out)
    assert "1 of 7 utterances are not in it, first 'u6'; without --require-all they are" in line
    other = make(tmp_path / "other.h5", ["vision"], ["u7", "u8"])
    line = refused(1, "join", three[0], other, "--out", out)
    assert "none of its 6 ids is in the other stores: it has 'u5', they have 'u7'; make" in line
    assert not out.exists()


def test_one_modality_twice(tmp_path):
    a = make(tmp_path / "a.h5", ["audio"])
    b = make(tmp_path / "b.h5", ["audio", "text"])
    out = tmp_path / "c.h5"
    line = refused(1, "join", a, b, "--out", out)
    assert f"{b}: has audio, as {a} has; give it another name with --as b.h5:audio=audio." in line
    assert mer("join", a, b, "--as", "b.h5:audio=audio.egemaps", "--out", out)[0] == 0
    store = FeatureStore(out)
    assert list(store.header.modalities) == ["audio", "audio.egemaps", "text"]
    assert np.array_equal(store.features("audio.egemaps", 3), frames("audio", 3))
    assert mer("join", a, b, "--as", f"{b}:audio=", "--out", out, "--force")[0] == 0
    assert list(FeatureStore(out).header.modalities) == ["audio", "text"]
    for wrong, said in {
        f"{b}:vision=x": "has no modality 'vision'; it has audio, text",
        f"{b}:audio=Audio": "'Audio' cannot name a modality",
        f"{b}:audio=audio.layers": "cannot name a modality",
        "audio=x": "expected STORE:MODALITY=NAME",
        "no.h5:audio=x": "expected STORE:MODALITY=NAME",
    }.items():
        assert said in refused(1, "join", a, b, "--as", wrong, "--out", tmp_path / "d.h5")
    left = ("--as", f"{a}:audio=", "--as", f"{b}:audio=", "--as", f"{b}:text=")
    assert "every modality" in refused(1, "join", a, b, *left, "--out", tmp_path / "d.h5")


def train(store: Path, out: Path, model: str = "concat") -> tuple:
    small = ("--set", "train.epochs=1", "--device", "cpu")
    return ("train", "--features", store, "--model", model, "--out", out, *small)


def damage_moved(three: list[Path]) -> None:
    three[1].rename(three[1].with_name("elsewhere.h5"))


def damage_changed(three: list[Path]) -> None:
    make(three[1], ["audio"], [*IDS[2:], "u6"], text={"u3": "changed"})


def damage_shard_gone(three: list[Path]) -> None:
    (three[1].with_suffix(".shards") / "shard-00001.h5").unlink()


def damage_head(three: list[Path]) -> None:
    three[1].write_bytes(three[1].read_bytes()[:5000])


def damage_frames(three: list[Path]) -> None:
    path = three[1].with_suffix(".shards") / "shard-00000.h5"
    with h5py.File(path) as file:
        place = file["audio/x"].id.get_offset()
    raw = bytearray(path.read_bytes())
    raw[place] ^= 1
    path.write_bytes(raw)


DAMAGES = {
    damage_moved: "audio.h5: no such store; {c} was joined from it: put it back, or "
    "join again with --force, naming where it is now",
    damage_changed: "audio.h5: not what it was when {c} was joined from it; put that back, or join",
    damage_shard_gone: "shard-00001.h5: shard is missing; run `mer verify --repair {audio}`",
    damage_head: "audio.h5: not a readable store",
    damage_frames: "audio of 'u2' does not match its checksum; run `mer verify --repair {audio}`",
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda f: f.__name__)
def test_a_member_that_cannot_be_used(three, tmp_path, damage):
    out = tmp_path / "joined.h5"
    join(three, out)
    damage(three)
    message = DAMAGES[damage].format(c=out, audio=three[1])
    # a mix of layers reads no steps
    code, _, err = mer(*train(out, tmp_path / "run"), "--set", "data.layers=stored")
    assert code in (1, 5) and message in err.splitlines()[-1]
    code, _, err = mer("export", out, tmp_path / "x", "--to", "npy")
    assert code in (1, 5) and message in err.splitlines()[-1] and not (tmp_path / "x").exists()
    for args in (("verify", out), ("verify", out, "--repair")):
        code, _, err = mer(*args)
        assert code == 5 and len(err.splitlines()) == 2 and "audio" in err.splitlines()[0]
        whole = damage in (damage_moved, damage_changed, damage_head)
        assert ("put back what is missing" in err) == whole
        # it was not extracted, so nothing can be extracted again
        written = f"{three[1]} was written by another program than `mer extract`: write it again"
        assert (written in err) != whole
    with pytest.raises(StoreError):
        FeatureStore(out, check=False).verify()
    if damage is not damage_frames:
        code, _, err = mer("inspect", out)
        assert code in (1, 5) and message in err


def test_nothing_is_extracted_into_a_join(three, tmp_path):
    out = tmp_path / "joined.h5"
    join(three, out)
    before = out.read_bytes()
    manifest, file = corpus.make(tmp_path / "corpus", 3)
    for force in (False, True):
        with pytest.raises(DataError, match="extract into those, or name another --out"):
            extract(manifest, out, corpus.options(force=force), source=file)
    assert out.read_bytes() == before and not (tmp_path / "joined.shards").exists()


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_processes_read_what_one_reads(three, tmp_path, start):
    store, _, _ = join(three, tmp_path / "joined.h5")
    jobs = [(store, row, row + 1) for row in range(len(store))]
    expected = [read_part(job) for job in jobs]
    with multiprocessing.get_context(start).Pool(2) as pool:
        assert pool.map(read_part, jobs) == expected


def test_the_fingerprint_is_that_of_the_content(three, tmp_path):
    first = join(three, tmp_path / "a.h5")[0].header.fingerprint
    assert join(three, tmp_path / "sub" / "b.h5")[0].header.fingerprint == first
    assert join(three[::-1], tmp_path / "c.h5")[0].header.fingerprint != first
    frames_before = FeatureStore(three[1]).lengths("audio")
    with ShardWriter(three[1].with_suffix(".shards") / "shard-00000.h5", {"audio": 2}) as writer:
        for row_id in [*IDS[2:], "u6"]:
            writer.add(row_id, {"audio": frames("audio", int(row_id[1:])) + 1})
    build_index(
        three[1],
        [three[1].with_suffix(".shards") / "shard-00000.h5"],
        [{"id": row_id} for row_id in [*IDS[2:], "u6"]],
        dataset="demo",
        task="single",
        labels=(),
    )
    assert np.array_equal(FeatureStore(three[1]).lengths("audio"), frames_before)
    assert join(three, tmp_path / "d.h5")[0].header.fingerprint != first


# Runs `mer join` into FOLDER/none-0, then, for every call of a step of publishing that this took,
# into FOLDER/STEP-COUNT, killed before that call; prints the exit status of each. What is heavy is
# imported once, each join is a fork.
KILLED = """
import os, signal, sys
from pathlib import Path
from mer.cli import main
from mer.pipeline.interchange import joining

folder, asked = Path(sys.argv[1]), sys.argv[2:]

def joined(step, count):
    calls = {"fsync": 0, "replace": 0}

    def counting(name, function):
        def call(*args, **kwargs):
            calls[name] += 1
            if name == step and calls[name] == count:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)
        return call

    for name in calls:
        setattr(os, name, counting(name, getattr(os, name)))
    status = 99
    try:
        main([*asked, "--out", str(folder / f"{step}-{count}" / "joined.h5")])
    except SystemExit as error:
        status = error.code or 0
    (folder / "calls").write_text(f"fsync {calls['fsync']} replace {calls['replace']}")
    os._exit(status)

def forked(step, count):
    child = os.fork()
    if child == 0:
        joined(step, count)
    _, status = os.waitpid(child, 0)
    print(step, count, os.waitstatus_to_exitcode(status), flush=True)

forked("none", 0)
words = (folder / "calls").read_text().split()
for step, total in zip(words[::2], words[1::2]):
    for count in range(1, int(total) + 1):
        forked(step, count)
"""


@pytest.mark.parametrize("copy", [(), ("--copy",)], ids=["links", "copy"])
def test_a_kill_leaves_no_store(three, tmp_path, copy):
    """Killed before any step of publishing, a join is there whole or not at all; the same command
    again finishes it.
    """
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.h5")}
    command = [sys.executable, "-c", KILLED, str(tmp_path / "k"), "join", *map(str, three), *copy]
    (tmp_path / "k").mkdir()
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    whole, *killed = (line.split() for line in run.stdout.splitlines() if line[0] != "/")
    assert run.returncode == 0 and whole == ["none", "0", "0"], run.stderr
    seen = {"fsync": set(), "replace": set()}
    for step, count, status in killed:
        assert int(status) == -signal.SIGKILL, "the kill was meant to happen"
        folder = tmp_path / "k" / f"{step}-{count}"
        out = folder / "joined.h5"
        half = bool(list(folder.rglob("*.tmp-*")))
        seen[step].add((half, out.exists()))
        if out.exists():
            holds(FeatureStore(out))
        assert mer("join", *three, *copy, "--out", out)[0] == 0
        holds(FeatureStore(out))
        assert not list(folder.rglob("*.tmp-*"))
    # before a rename there is the temporary; the folder is synced when the store is whole
    assert seen["replace"] == {(True, False)}
    assert {(True, False), (False, True)} <= seen["fsync"]
    assert {path: path.read_bytes() for path in before} == before


def test_targets_that_are_not_numbers_agree(tmp_path):
    """NaN differs from itself; two stores that both say it say the same."""
    paths = []
    for name in ("a", "b"):
        with ShardWriter(tmp_path / f"{name}.shards" / "s.h5", {f"{name}{name}": 1}) as writer:
            writer.add("x", {f"{name}{name}": [1]})
        paths.append(tmp_path / f"{name}.h5")
        build_index(
            paths[-1],
            [tmp_path / f"{name}.shards" / "s.h5"],
            [{"id": "x", "split": "train", "targets": [float("nan")]}],
            dataset="demo",
            task="regression",
            labels=["valence"],
        )
    store, _, _ = join(paths, tmp_path / "c.h5")
    assert np.isnan(store.table()["targets"].to_pylist()[0])


def test_a_path_that_is_no_text_is_one_line(three, tmp_path):
    folder = tmp_path / "\udcff"
    folder.mkdir()
    three[1].rename(folder / "audio.h5")
    three[1].with_suffix(".shards").rename(folder / "audio.shards")
    with pytest.raises(DataError, match="no name in UTF-8; rename the store"):
        join([three[0], folder / "audio.h5"], tmp_path / "c.h5")
    assert not (tmp_path / "c.h5").exists()
