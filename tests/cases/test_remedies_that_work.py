"""Remedies that are named work when they are typed (found by a new user)."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
from click.testing import CliRunner

from mer.cli import main
from mer.pipeline.encoders.layers import parse_layers
from mer.pipeline.errors import DataError, StoreError
from mer.pipeline.extraction import extract
from mer.pipeline.interchange.joining import join
from mer.pipeline.store import FeatureStore

from tests.extract import corpus


def mer(*args) -> tuple[int, str]:
    done = CliRunner().invoke(main, [str(arg) for arg in args])
    return done.exit_code, done.output


def damage(head, modality: str) -> None:
    path = next(head.with_suffix(".shards").glob("shard-*.h5"))
    with h5py.File(path) as file:
        place = file[f"{modality}/x"].id.get_offset()
    raw = bytearray(path.read_bytes())
    raw[place] ^= 1
    path.write_bytes(raw)


@pytest.fixture
def joined(tmp_path):
    """Extracted text, imported audio of the same utterances, and the store that joins them."""
    manifest, file = corpus.make(tmp_path / "corpus", 8)
    options = corpus.options(audio_encoder="none")
    extract(manifest, tmp_path / "text.h5", options, source=file)
    features = {u.id: np.ones((3, 2), np.float32) for u in manifest.rows if u.text}
    np.savez(
        tmp_path / "x.npz",
        ids=np.array(list(features)),
        audio=np.stack(list(features.values())),
    )
    code, said = mer("import", "npz", tmp_path / "x.npz", "--out", tmp_path / "audio.h5")
    assert code == 0, said
    join([tmp_path / "text.h5", tmp_path / "audio.h5"], tmp_path / "joined.h5")
    return tmp_path


def test_a_damaged_member_is_mended_as_it_was_made(joined):
    head = joined / "joined.h5"
    assert mer("verify", head)[0] == 0
    damage(joined / "audio.h5", "audio")
    code, said = mer("verify", head)
    assert code == 5 and "1 file of its members cannot be used" in said
    assert f"{joined / 'audio.h5'} was imported: import it again" in said
    assert "--repair" not in said
    assert mer("import", "npz", joined / "x.npz", "--out", joined / "audio.h5")[0] == 0
    assert mer("verify", head)[0] == 0
    damage(joined / "text.h5", "text")
    code, said = mer("verify", head)
    assert code == 5 and f"run `mer verify --repair {joined / 'text.h5'}`" in said
    assert mer("verify", "--repair", joined / "text.h5")[0] == 0
    assert mer("verify", head)[0] == 0


def flip_frames(head) -> None:
    """Damage frames inside a store of one file."""
    with h5py.File(head) as file:
        place = file["data/text/x"].id.get_offset()
    raw = bytearray(head.read_bytes())
    raw[place] ^= 1
    head.write_bytes(raw)


@pytest.mark.parametrize("more", [[], ["--with-provenance"], ["--subset", "train"]])
def test_a_damaged_store_of_one_file_is_exported_again(joined, more):
    """It is not extracted again: that would need the manifest, which an export leaves out, and
    make a store of all utterances with shards of it.
    """
    head, out = joined / "text.h5", joined / "one.h5"
    exported = ["export", head, out, "--to", "single", *more]
    assert mer(*exported)[0] == 0
    whole = out.read_bytes()
    flip_frames(out)
    remedy = "it was exported: remove it and export it again from the store that it came from"
    for args in (["verify", out], ["verify", "--repair", out]):
        code, said = mer(*args)
        assert code == 5 and f"1 of 1 shard is damaged, and {remedy}" in said
        assert "run it with --repair" not in said
    join([out, joined / "audio.h5"], joined / "with-one.h5")
    code, said = mer("verify", joined / "with-one.h5")
    assert code == 5 and f"{out} was{remedy.removeprefix('it was')}" in said
    out.unlink()
    assert mer(*exported)[0] == 0 and mer("verify", out)[0] == 0
    assert out.read_bytes() == whole


@pytest.mark.parametrize("name", ["audio", "joined"])
def test_so_is_one_of_what_was_not_extracted(joined, name):
    out = joined / "one.h5"
    assert mer("export", joined / f"{name}.h5", out, "--to", "single")[0] == 0
    raw = bytearray(out.read_bytes())
    with h5py.File(out) as file:
        place = file["data/audio/x"].id.get_offset()
    raw[place] ^= 1
    out.write_bytes(raw)
    code, said = mer("verify", out)
    assert code == 5 and "it was exported: remove it and export it again" in said


def test_a_damaged_store_without_a_manifest_file(tmp_path):
    """As the Python API makes one that is given no `source`."""
    manifest, _ = corpus.make(tmp_path / "corpus", 4)
    head, options = tmp_path / "text.h5", corpus.options(audio_encoder="none")
    extract(manifest, head, options)
    damage(head, "text")
    remedy = "it was extracted without a manifest file: remove what is damaged, and extract again"
    for args in (["verify", head], ["verify", "--repair", head]):
        code, said = mer(*args)
        assert code == 5 and remedy in said
    next(head.with_suffix(".shards").glob("shard-*.h5")).unlink()
    extract(manifest, head, options)
    assert mer("verify", head)[0] == 0


def test_a_member_that_moved_is_joined_where_it_is(joined):
    head = joined / "joined.h5"
    (joined / "text.h5").rename(joined / "moved.h5")
    code, said = mer("verify", head)
    assert code == 5 and "join again with --force, naming where it is now" in said


@pytest.mark.parametrize("setting", ["mean:3-1", "stack:5-4", "stack:5-4:2"])
def test_layers_that_run_downwards(setting):
    with pytest.raises(DataError, match="is above the last, .*stack:A-B\\[:S\\] with A up to B"):
        parse_layers(setting, 12)


def test_only_the_command_that_begins_so_is_suggested():
    code, said = mer("run")
    assert code == 2 and "Did you mean 'runs'?" in said and "prune" not in said


def test_what_is_no_store_yet_is_said_with_the_way_to_one(tmp_path):
    _, file = corpus.make(tmp_path / "corpus", 4)
    table = tmp_path / "clips.csv"
    table.write_text("id,audio,text,label\na,a.wav,hi,joy\n")
    for path, way in ((file, "mer extract --manifest"), (table, "mer prepare table --from")):
        code, said = mer("train", path)
        assert code == 1 and way in said and "--force" not in said and len(said) < 400


def test_a_store_that_cannot_be_repaired_is_not_told_to_be(tmp_path):
    """An imported store has no recipe that `mer verify --repair` could follow."""
    x = np.ones((6, 3, 2), np.float32)
    np.savez(tmp_path / "x.npz", ids=np.array([f"u{n}" for n in range(6)]), audio=x)
    code, said = mer("import", "npz", tmp_path / "x.npz", "--out", tmp_path / "audio.h5")
    assert code == 0, said
    damage(tmp_path / "audio.h5", "audio")
    path = next((tmp_path / "audio.shards").glob("shard-*.h5"))
    flipped = path.read_bytes()
    for content in (flipped, flipped[:-100], b"no shard" + flipped[8:], None):
        path.write_bytes(content) if content is not None else path.unlink()
        with pytest.raises(StoreError) as raised:
            store = FeatureStore(tmp_path / "audio.h5")
            for row in range(len(store)):
                store.features("audio", row, check=True)
        assert "import it again" in str(raised.value) and "--repair" not in str(raised.value)
