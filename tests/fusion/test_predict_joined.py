"""New clips, and other stores, for a run that was trained on a joined store of extracted ones: each
modality is made by the recipe of the store that it came from.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from mer.cli import main
from mer.fusion.runs.checkpoint import store_key
from mer.fusion.runtime.files import SEAL, write_json
from mer.pipeline.errors import DataError
from mer.pipeline.extraction import extract
from mer.pipeline.extraction.clips import encoders_now
from mer.pipeline.manifest import Manifest
from mer.pipeline.store import FeatureStore

from tests.encoders import checkpoints
from tests.extract import corpus

COUNT = 12
# What each store was asked for: no two agree in how they compute and store.
ASKED = {
    "text": {"audio_encoder": "none", "dtype": "float32", "layer_means": False},
    "audio": {"text_encoder": "none", "precision": "fp32", "pool": 2},
    "low": {"text_encoder": "none", "pool": 4, "audio_layer": "1", "layer_means": False},
}


def mer(*args, code: int = 0) -> tuple[str, str]:
    """(stdout, stderr) of a command that ends in `code`."""
    result = CliRunner().invoke(main, [str(a) for a in args])
    assert "Traceback" not in result.output
    assert result.exit_code == code, result.output
    return result.stdout, result.stderr


def refused(*args, says: list[str], code: int = 1) -> None:
    """One line of at most 300 characters that says so."""
    lines = mer(*args, code=code)[1].strip().splitlines()
    assert len(lines) == 1 and len(lines[0]) <= 300
    for what in says:
        assert what in lines[0]


def made(folder: Path, name: str, **changes) -> Path:
    """A store that `mer extract` makes of the clips, as ASKED says."""
    file, out = folder / "manifest.parquet", folder / f"{name}.h5"
    asked = {**ASKED.get(name, {}), **changes}
    if name == "low":
        asked["audio_encoder"] = str(folder / "encoder")
    extract(Manifest.read(file), out, corpus.options(**asked), source=file)
    return out


def trained(store: Path, out: Path, *sets: str) -> Path:
    asked = [
        part for one in ("train.epochs=1", "train.batch_size=4", *sets) for part in ("--set", one)
    ]
    mer("train", "--features", store, "--out", out, "--model", "concat", "--device", "cpu", *asked)
    return out


@pytest.fixture(scope="module")
def desk(tmp_path_factory) -> Path:
    """Clips, a store of each of ASKED, and all three joined."""
    folder = tmp_path_factory.mktemp("desk")
    corpus.make(folder, COUNT)
    checkpoints.audio(folder / "encoder")
    paths = [made(folder, name) for name in ASKED]
    mer("join", *paths, "--as", "low.h5:audio=audio.low", "--out", folder / "all.h5")
    return folder


@pytest.fixture(scope="module")
def run(desk) -> Path:
    return trained(desk / "all.h5", desk / "run", "data.modalities=text,audio")


@pytest.fixture(scope="module")
def side_by_side(desk) -> Path:
    return trained(desk / "all.h5", desk / "side", "data.modalities=text,audio+audio.low")


def of_clip(run: Path, desk: Path, number: int, *more) -> dict:
    u = Manifest.read(desk / "manifest.parquet").rows[number]
    clip = ["--audio", desk / u.audio, "--text", u.text]
    return json.loads(mer("predict", run, *clip, *more, "--json")[0])


@pytest.mark.parametrize("name", ["run", "side_by_side"])
def test_a_clip_gets_what_evaluate_gave_it(desk, name, request):
    """The clip alone, extracted again, by a recipe for each modality."""
    folder = request.getfixturevalue(name)
    known = pq.read_table(folder / "predictions.parquet").to_pylist()[0]
    found = of_clip(folder, desk, int(known["id"][1:]))
    for key, value in known.items():
        if key.startswith(("p_", "disagreement")) and value is not None:
            assert found[key] == pytest.approx(value, abs=2e-3), key


def test_a_run_on_one_renamed_set_needs_the_sound_alone(desk, tmp_path):
    folder = trained(desk / "all.h5", tmp_path / "run", "data.modalities=audio.low")
    assert "pred" in json.loads(mer("predict", folder, desk / "clip2.wav", "--json")[0])
    refused("predict", folder, "--text", "hi", says=["give it audio too"])


def test_no_store_is_needed(desk, run, tmp_path):
    moved = shutil.copytree(run, tmp_path / "run")
    info = json.loads((moved / "run.json").read_text())
    info.pop(SEAL)
    for origin in info["store"]["origins"].values():
        origin["store"] = str(tmp_path / "gone" / Path(origin["store"]).name)
    write_json(moved / "run.json", info | {"features": str(tmp_path / "gone.h5")})
    assert of_clip(moved, desk, 3) | {"id": ""} == of_clip(run, desk, 3) | {"id": ""}
    del info["store"]["origins"]["text"]["recipe"]["text"]["encoder"]
    write_json(moved / "run.json", info)
    refused("predict", moved, desk / "clip0.wav", "--text", "hi", says=["incomplete"])
    del info["store"]["origins"]["text"]
    write_json(moved / "run.json", info)
    refused("predict", moved, desk / "clip0.wav", "--text", "hi", says=["origins"])


def test_a_manifest_with_gaps_and_a_broken_clip(desk, run, tmp_path):
    """A clip without words has a prediction; one that cannot be read has none, although its words
    could be read; their order is that of the manifest.
    """
    rows = list(Manifest.read(desk / "manifest.parquet").rows[:5])
    rows[0] = replace(rows[0], text=None)
    rows[1] = replace(rows[1], audio="gone.wav")
    rows[3] = replace(rows[3], audio=None)
    manifest = replace(Manifest.read(desk / "manifest.parquet"), rows=tuple(rows))
    manifest.write(tmp_path / "m.parquet")
    asked = ("predict", run, "--manifest", tmp_path / "m.parquet", "--root", desk, "--json")
    out, err = mer(*asked, code=3)
    found = [json.loads(line)["id"] for line in out.splitlines()]
    assert found == [u.id for u in rows if u.id != rows[1].id]
    assert f"failed: {rows[1].id}: open" in err and "1 of 5 clips" in err


def test_clips_that_have_nothing_in_common(desk, run, tmp_path):
    manifest = Manifest.read(desk / "manifest.parquet")
    rows = replace(manifest.rows[0], text=None), replace(manifest.rows[1], audio=None)
    replace(manifest, rows=rows).write(tmp_path / "m.parquet")
    out, _ = mer("predict", run, "--manifest", tmp_path / "m.parquet", "--root", desk, "--json")
    assert [json.loads(line)["id"] for line in out.splitlines()] == [u.id for u in rows]


def test_what_was_imported_is_named(desk, tmp_path):
    """Only where the run reads it."""
    store = FeatureStore(desk / "text.h5")
    ids = store.table()["id"].to_pylist()
    vectors = np.random.default_rng(0).standard_normal((COUNT, 3)).astype(np.float32)
    np.savez(tmp_path / "v.npz", id=ids, vision=vectors)
    mer("import", "npz", tmp_path / "v.npz", "--out", tmp_path / "vision.h5")
    stores = [desk / "text.h5", tmp_path / "vision.h5"]
    mer("join", *stores, "--out", tmp_path / "all.h5")
    folder = trained(tmp_path / "all.h5", tmp_path / "run")
    refused("predict", folder, "--text", "hi", says=["reads vision of", "vision.h5", "imported"])
    mer("evaluate", folder, "--features", tmp_path / "all.h5")
    folder = trained(tmp_path / "all.h5", tmp_path / "words", "data.modalities=text")
    assert "pred" in json.loads(mer("predict", folder, "--text", "hi", "--json")[0])


def test_recipes_of_members_are_compared(desk, run, tmp_path):
    """Those that the run reads; a store that holds everything is compared with a join as well."""
    other = made(desk, "other", text_encoder="none", precision="fp32", pool=3)
    mer("join", desk / "text.h5", other, "--out", tmp_path / "pool.h5")
    says = ["recipe.audio.pool: 2 -> 3"]
    refused("evaluate", run, "--features", tmp_path / "pool.h5", says=says, code=4)
    same = [desk / "audio.h5", desk / "text.h5"]
    mer("join", *same, "--out", tmp_path / "same.h5")
    mer("evaluate", run, "--features", tmp_path / "same.h5")
    # nothing but the layer that `audio.low` is of differs, which this run does not read
    low = made(desk, "last", text_encoder="none", pool=4, layer_means=False)
    mer("join", *same, low, "--as", "last.h5:audio=audio.low", "--out", tmp_path / "low.h5")
    mer("evaluate", run, "--features", tmp_path / "low.h5")


def test_one_store_and_a_join_of_the_same_recipes(desk, tmp_path):
    both = made(desk, "both")
    parts = [made(desk, "t", audio_encoder="none"), made(desk, "a", text_encoder="none")]
    mer("join", *parts, "--out", tmp_path / "joined.h5")
    for here, there in ((both, tmp_path / "joined.h5"), (tmp_path / "joined.h5", both)):
        folder = trained(here, tmp_path / here.stem)
        mer("evaluate", folder, "--features", there)
        mer("evaluate", folder, "--features", here)
    says = ["recipe.text.dtype: float16 -> float32"]
    fine = made(desk, "fine", audio_encoder="none", dtype="float32")
    mer("join", parts[1], fine, "--out", tmp_path / "fine.h5")
    refused("evaluate", tmp_path / "both", "--features", tmp_path / "fine.h5", says=says, code=4)


def test_a_run_of_before_is_read(desk, run, tmp_path):
    """Without origins: it is evaluated and taken up as it was; new clips are refused."""
    old = shutil.copytree(run, tmp_path / "run")
    info = json.loads((old / "run.json").read_text())
    info.pop(SEAL)
    assert info["store_key"] == store_key(FeatureStore(desk / "all.h5"))
    del info["store"]["origins"]
    write_json(old / "run.json", info)
    _, err = mer("evaluate", old, "--features", desk / "all.h5")
    assert "other clips" not in err
    refused("predict", old, "--text", "hi", says=["joined by an earlier mer", "mer evaluate"])


def test_where_a_folder_is_now_goes_to_the_set_that_it_made(desk, side_by_side, tmp_path):
    """Of two sets of sound one was made by a folder, the other by what is built in."""
    moved = shutil.copytree(side_by_side, tmp_path / "run")
    info = json.loads((moved / "run.json").read_text())
    info.pop(SEAL)
    write_json(moved / "run.json", info | {"features": str(tmp_path / "gone.h5")})
    says = ["encoder was the folder 'encoder'", "--audio-encoder"]
    refused("predict", moved, desk / "clip3.wav", "--text", "hi", says=says)
    there = shutil.copytree(desk / "encoder", tmp_path / "there")
    found = of_clip(moved, desk, 3, "--audio-encoder", there)
    assert found == of_clip(side_by_side, desk, 3)


def test_where_a_folder_is_now_may_be_meant_for_either_of_two():
    folder = {"encoder": "folder", "revision": ""}
    like = {"modalities": {"audio": folder, "audio.b": folder}}
    like["origins"] = {name: {"modality": "audio"} for name in like["modalities"]}
    with pytest.raises(DataError, match="audio and audio.b, and it could be for either"):
        encoders_now(like, Path("gone.h5"), {"audio": "there"}, like["modalities"])
