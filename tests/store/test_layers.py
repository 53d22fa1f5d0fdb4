"""Format version 2: layer means beside the frames, stacks, several feature sets of a modality; and
version 1 as it was.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

from mer.pipeline.errors import DataError, StoreError
from mer.pipeline.interchange.export import export
from mer.pipeline.store import (
    FeatureStore,
    ModalityInfo,
    Shard,
    ShardWriter,
    build_index,
    verify_shards,
)
from mer.pipeline.store.describe import describe, render
from mer.pipeline.store.schema import Header, is_modality

from tests.store.build import DIMS, LAYERS, assert_holds, expected_means, make_store

PAST = Path(__file__).parent / "versions"


def write(path: Path, utterances: dict, **options) -> Path:
    """A shard of audio of two layers of width 2, from {id: (frames, layer means)}."""
    with ShardWriter(path, {"audio": 2}, layers={"audio": 2}, **options) as writer:
        for name, (frames, means) in utterances.items():
            writer.add(name, {"audio": frames}, layer_means={"audio": means})
    return path


def store_of(folder: Path, shards: list[Path], **options) -> FeatureStore:
    ids = [row_id for path in shards for row_id in Shard(path).ids]
    rows = [{"id": row_id, "split": "train", "label": "a"} for row_id in ids]
    return build_index(
        folder / "f.h5", shards, rows, dataset="d", task="single", labels=["a"], **options
    )


def test_layer_means_come_back(tmp_path):
    store = make_store(tmp_path, n=80, layers=True)
    assert_holds(store, n=80)
    for m, width in DIMS.items():
        info = store.header.modalities[m]
        assert (info.layers, info.width, info.layer_dtype) == (LAYERS, width, "float16")
        everything = expected_means(m, 80)
        rows = np.array([7, 0, 7, 11])
        got = store.layer_means(m, rows)
        assert got.dtype == np.float32 and np.array_equal(got, everything[rows])
        assert store.layer_means(m, []).shape == (0, LAYERS, width)
        absent = store.lengths(m) == 0
        assert absent.any() and not everything[absent].any() and everything[~absent].all()
    assert store.shard(0).layer_means("text").dtype == np.float16
    assert store.header.version == 2 and verify_shards(store) == []


def test_the_same_input_gives_the_same_bytes(tmp_path):
    made = [make_store(tmp_path / name, layers=True) for name in "ab"]
    first, second = ([record.sha256 for record in store.shards] for store in made)
    assert first == second
    plain = make_store(tmp_path / "c")
    assert [record.sha256 for record in plain.shards] != first


def test_a_value_beyond_float16_makes_that_shard_float32(tmp_path):
    ones = np.ones((3, 2))
    a = write(tmp_path / "a.h5", {"x": (ones, [[1, 2], [3, 70000]])})
    b = write(tmp_path / "b.h5", {"y": (ones, [[0.1, 2], [3, 4]])})
    store = store_of(tmp_path, [a, b])
    assert store.shard(0).modalities["audio"]["layers"]["dtype"] == "float32"
    assert store.shard(1).modalities["audio"]["layers"]["dtype"] == "float16"
    assert store.header.modalities["audio"].layer_dtype == "float32"
    assert store.header.modalities["audio"].dtype == "float16"
    expected = np.array([[[1, 2], [3, 70000]], [[np.float16(0.1), 2], [3, 4]]], np.float32)
    assert np.array_equal(store.layer_means("audio"), expected)
    wide = write(tmp_path / "c.h5", {"y": (ones, [[0.1, 2], [3, 4]])}, layer_dtype="float32")
    assert Shard(wide).layer_means("audio")[0, 0, 0] == np.float32(0.1)


def test_a_shard_in_which_all_are_absent(tmp_path):
    a = write(tmp_path / "a.h5", {"x": (None, None), "y": (None, None)})
    b = write(tmp_path / "b.h5", {"z": (np.ones((1, 2)), [[1, 2], [3, 4]])})
    store = store_of(tmp_path, [a, b])
    assert store.layer_means("audio").tolist() == [[[0, 0]] * 2] * 2 + [[[1, 2], [3, 4]]]
    assert verify_shards(store) == [] and store.header.modalities["audio"].layers == 2
    alone = store_of(tmp_path / "alone", [a])
    assert alone.layer_means("audio").shape == (2, 2, 2)


def test_a_stack_says_how_wide_a_layer_is(tmp_path):
    with ShardWriter(tmp_path / "s.h5", {"audio": 6}, layers={"audio": 5}) as writer:
        frames = np.arange(12.0).reshape(2, 6)
        writer.add("x", {"audio": frames}, layer_means={"audio": np.ones((5, 2))})
    info = ModalityInfo(6, 50.0, "e", layers=5, stack=(2, 4, 6))
    store = store_of(tmp_path, [tmp_path / "s.h5"], modalities={"audio": info})
    assert store.header.modalities["audio"].stack == (2, 4, 6)
    assert store.layer_means("audio").shape == (1, 5, 2)
    again = Header.from_json(store.header.to_json())
    assert again == store.header and again.modalities["audio"].width == 2
    with pytest.raises(DataError, match="have 2 numbers per layer, its frames 6"):
        store_of(tmp_path, [tmp_path / "s.h5"])
    with pytest.raises(DataError, match="no multiple of the 4 layers"):
        odd = {"audio": ModalityInfo(6, stack=(1, 2, 3, 4))}
        store_of(tmp_path, [tmp_path / "s.h5"], modalities=odd)
    with pytest.raises(DataError, match="is said to have 4 layer means, its shards have 5"):
        said = {"audio": ModalityInfo(6, stack=(2, 4, 6), layers=4)}
        store_of(tmp_path, [tmp_path / "s.h5"], modalities=said)


@pytest.mark.parametrize(
    ("frames", "means", "message"),
    [
        (np.ones((3, 2)), None, "audio has no layer means"),
        (None, np.ones((2, 2)), "audio has no frames"),
        (np.ones((3, 2)), np.ones((3, 2)), r"have shape \(3, 2\), expected \(2, 2\)"),
        (np.ones((3, 2)), np.ones(2), r"have shape \(2,\), expected"),
        (np.ones((3, 2)), np.ones((2, 0)), r"have shape \(2, 0\)"),
        (np.ones((3, 2)), np.array(1.0), r"have shape \(\)"),
        (np.ones((3, 2)), np.full((2, 2), np.nan), "4 values that are NaN or infinite"),
        (np.ones((3, 2)), np.full((2, 2), "x"), "expected floating point"),
    ],
)
def test_what_are_no_layer_means_is_refused(tmp_path, frames, means, message):
    with pytest.raises(DataError, match=message) as refused:
        write(tmp_path / "a.h5", {"x": (frames, means)})
    assert "\n" not in str(refused.value) and not list(tmp_path.iterdir())


def test_layers_differ_between_utterances_and_shards(tmp_path):
    with pytest.raises(DataError, match=r"shape \(2, 3\), expected \(2, 2\)"):
        write(
            tmp_path / "a.h5",
            {"x": (np.ones((1, 2)), np.ones((2, 2))), "y": (np.ones((1, 2)), np.ones((2, 3)))},
        )
    a = write(tmp_path / "a.h5", {"x": (np.ones((1, 2)), np.ones((2, 2)))})
    with ShardWriter(tmp_path / "b.h5", {"audio": 2}) as writer:
        writer.add("y", {"audio": np.ones((1, 2))})
        with pytest.raises(DataError, match="layer means of audio, of which the shard keeps none"):
            writer.add("z", {}, layer_means={"audio": np.ones((2, 2))})
    with pytest.raises(DataError, match=r"b.h5 holds other modalities than a.h5"):
        store_of(tmp_path, [a, tmp_path / "b.h5"])
    with pytest.raises(DataError, match="2 layers of text, which the shard cannot hold"):
        ShardWriter(tmp_path / "c.h5", {"audio": 2}, layers={"text": 2})


def test_flipped_bytes_of_layer_means_are_found(tmp_path):
    store = make_store(tmp_path, layers=True, shards=1)
    path = store.shards[0].path
    with h5py.File(path) as file:
        place = file["audio/layers"].id.get_offset()
    size = store.shard(0).layer_means("audio")[0].nbytes
    victim = next(i for i in range(1, 12) if store.shard(0).layer_means("audio")[i].any())
    raw = bytearray(path.read_bytes())
    raw[place + victim * size] ^= 1
    path.write_bytes(raw)
    store = FeatureStore(tmp_path / "feats.h5")
    message = f"the layer means of audio of 'u{victim}' does not match its checksum; run `mer verif"
    with pytest.raises(StoreError, match=message):
        store.layer_means("audio")
    row = store.table()["id"].to_pylist().index(f"u{victim}")
    others = [other for other in range(12) if other != row]
    store.layer_means("audio", others)
    with pytest.raises(StoreError, match=message):
        store.layer_means("audio", [row])
    (damage,) = verify_shards(store)
    assert (
        f"1 of 12 utterances differ from their checksums (layer means of audio; first 'u{victim}"
        in (damage.reason)
    )
    with pytest.raises(StoreError, match="does not match"):
        export(store, "single", tmp_path / "single.h5")
    assert not (tmp_path / "single.h5").exists()


def test_a_store_of_one_file_carries_them(tmp_path):
    store = make_store(tmp_path, layers=True)
    export(store, "single", tmp_path / "all.h5")
    assert_holds(FeatureStore(tmp_path / "all.h5"))
    export(store, "single", tmp_path / "part.h5", subset="dev")
    part = FeatureStore(tmp_path / "part.h5")
    rows = [store.table()["id"].to_pylist().index(i) for i in part.table()["id"].to_pylist()]
    assert np.array_equal(part.layer_means("audio"), expected_means("audio")[rows])
    part.verify()


def test_feature_sets_have_names_with_a_dot(tmp_path):
    with ShardWriter(
        tmp_path / "s.h5", {"audio": 2, "audio.egemaps": 3}, layers={"audio.egemaps": 1}
    ) as writer:
        frames = {"audio": np.ones((2, 2)), "audio.egemaps": [1, 2, 3]}
        writer.add("x", frames, layer_means={"audio.egemaps": [[4, 5, 6]]})
    store = store_of(tmp_path, [tmp_path / "s.h5"])
    assert store.features("audio.egemaps", 0).tolist() == [[1, 2, 3]]
    assert store.layer_means("audio.egemaps").tolist() == [[[4, 5, 6]]]
    assert store.table()["n_audio.egemaps"].to_pylist() == [1]
    export(store, "single", tmp_path / "one.h5")
    assert FeatureStore(tmp_path / "one.h5").layer_means("audio.egemaps").sum() == 15


@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        ("audio", True),
        ("audio.egemaps", True),
        ("audio.n_x", True),
        ("audio.layers", False),
        ("audio.", False),
        (".audio", False),
        ("audio.a.b", False),
        ("audio.E", False),
        ("ids.x", False),
        ("n_a.x", False),
        ("audio.x\n", False),
        ("audio/x", False),
    ],
)
def test_names(name, allowed):
    assert is_modality(name) == allowed


def test_no_layer_means_is_one_line_with_the_remedy(tmp_path):
    store = make_store(tmp_path)
    with pytest.raises(DataError, match="keeps no layer means of audio; make it again with `mer e"):
        store.layer_means("audio")
    with pytest.raises(DataError, match="no modality 'vision'"):
        store.layer_means("vision")
    assert "layers: no utterance means" in render(describe(store))
    other = make_store(tmp_path / "b", layers=True)
    assert f"layers: the utterance means of {LAYERS} x 6, float16" in render(describe(other))


def rich_frames(k: int) -> tuple[np.ndarray, np.ndarray]:
    """(audio, vision) of utterance k of versions/v1/rich.h5, by the arithmetic it was made with."""
    audio = np.arange(2 * (k + 1)).reshape(-1, 2) / 4 + k
    if k == 4:
        audio[0, 0] = 70000.0
    return audio, np.empty((0, 3)) if k == 1 else np.full((1, 3), k + 0.5)


def test_version_1_says_what_it_said(tmp_path):
    """versions/v1/rich.h5 was made by the last version that wrote format version 1."""
    store = FeatureStore(PAST / "v1" / "rich.h5")
    store.verify()
    h = store.header
    assert (h.version, h.dataset, h.task, h.labels) == (1, "mine", "multi", ("joy", "anger"))
    assert (h.language, h.fingerprint, h.provenance) == ("de", "f" * 64, {"host": "none"})
    assert h.recipe == {"audio": {"layer": "last"}}
    audio, vision = h.modalities["audio"], h.modalities["vision"]
    assert (audio.encoder, audio.revision, audio.layer) == ("some/encoder", "abc", "last")
    assert (audio.dim, audio.frame_rate, audio.trained, audio.dtype) == (2, 50.0, False, "float32")
    assert audio.extra == {"note": 1, "overflow": 1} and vision.encoder == "imported"
    assert (audio.layers, audio.stack, vision.layers) == (0, (), 0)
    table = store.table().to_pydict()
    assert table["id"] == [f"ü{k}" for k in range(5)]
    assert table["split"] == ["train", "dev", "test", "", "train"]
    assert table["session"] == [None, "s1", "s2", "s3", "s4"]
    assert table["dialogue"] == ["d0", "d0", "d1", "d1", "d2"]
    assert table["speaker"] == [None, "x", None, "x", None]
    assert table["position"] == [None, 1, 2, 3, 4]
    assert table["label"] == [None] * 5
    assert table["targets"] == [[0, 1], [1, 1], [0, 1], None, [0, 1]]
    assert table["text"] == ["", "häh?", None, "a\nb", "😀"]
    assert table["tags"] == [["t"] * k for k in range(5)]
    assert table["duration"][:2] == [0, 0.5] and np.isnan(table["duration"][2])
    assert store.flags.tolist() == [1, 2, 4, 8, 16]
    for k in range(5):
        frames, faces = rich_frames(k)
        assert np.array_equal(store.features("audio", k), frames.astype(np.float32))
        assert np.array_equal(store.features("vision", k), faces)
    assert store.pooled("vision").tolist() == [[k + 0.5 if k != 1 else 0] * 3 for k in range(5)]
    assert store.shard(1).meta == {"made": "by hand"} and store.shard(1).key == "k1"
    with pytest.raises(DataError, match="keeps no layer means of audio"):
        store.layer_means("audio")


def test_a_new_head_over_old_shards(tmp_path):
    """As after labels changed: the shards stay as they are, the head is written anew."""
    shutil.copytree(PAST / "v1", tmp_path, dirs_exist_ok=True)
    shards = sorted((tmp_path / "rich.shards").iterdir())
    before = [path.read_bytes() for path in shards]
    rows = [{"id": f"ü{k}", "split": "train", "label": "a"} for k in range(5)]
    store = build_index(
        tmp_path / "rich.h5", shards, rows, dataset="new", task="single", labels=["a"]
    )
    assert store.header.version == 2 and store.header.dataset == "new"
    assert [path.read_bytes() for path in shards] == before
    store.verify()
    assert np.array_equal(store.features("audio", 4), rich_frames(4)[0].astype(np.float32))
    with ShardWriter(tmp_path / "rich.shards" / "new.h5", {"audio": 2, "vision": 3}) as writer:
        writer.add("z", {"audio": [[1, 2]]})
    mixed = build_index(
        tmp_path / "rich.h5",
        [*shards, tmp_path / "rich.shards" / "new.h5"],
        [*rows, {"id": "z", "split": "dev", "label": "a"}],
        dataset="new",
        task="single",
        labels=["a"],
    )
    mixed.verify()
    assert mixed.features("audio", 5).tolist() == [[1, 2]]


def test_what_was_exported_before_is_described_the_same():
    """Imports are recognised by a hash over what is said of each modality."""
    info = ModalityInfo(3, encoder="imported")
    assert list(info.to_dict()) == [
        "dim",
        "frame_rate",
        "encoder",
        "revision",
        "layer",
        "dtype",
        "trained",
        "extra",
    ]
