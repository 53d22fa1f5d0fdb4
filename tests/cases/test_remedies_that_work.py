"""Remedies that are named work when they are typed (found by a new user)."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
from click.testing import CliRunner

from mer.cli import main
from mer.pipeline.encoders.layers import parse_layers
from mer.pipeline.errors import DataError
from mer.pipeline.extraction import extract
from mer.pipeline.interchange.joining import join

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
