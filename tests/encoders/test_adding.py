"""docs/adding.md, done: its file and its line add a family of encoders, its class and its line a
modality. The corpus is tests/datasets/test_adding.py's.
"""

from __future__ import annotations

import json
import re
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import soundfile
from safetensors.numpy import save_file

from mer.pipeline import encoders
from mer.pipeline.encoders import MODALITIES, audio
from mer.pipeline.encoders.modality import Family
from mer.pipeline.extraction import ExtractOptions, extract
from mer.pipeline.store import FeatureStore

from tests.extract import corpus

PAGE = Path(__file__).parents[2] / "docs" / "adding.md"
CODE = Path(encoders.__file__).read_text()


def block(number: int) -> str:
    """The first piece of Python under the heading of that number."""
    return re.search("```python\n(.*?)```", PAGE.read_text().split(f"## {number}.")[1], re.S)[1]


def line_of_modalities(code: str) -> list[str]:
    """The names of the classes in the line that registers modalities."""
    line = r"^MODALITIES: dict\[str, type\[Modality\]\] = .* for kind in \((.*)\)\}$"
    return re.search(line, code, re.M)[1].split(", ")


@pytest.fixture
def family(tmp_path, monkeypatch) -> Path:
    """The page's family, registered; returns a checkpoint of it."""
    package = tmp_path / "package"
    package.mkdir()
    (package / "loudness.py").write_text(block(4))
    monkeypatch.setattr(encoders, "__path__", [*encoders.__path__, str(package)])
    loudness = import_module("mer.pipeline.encoders.loudness")
    line = block(5).strip().removesuffix(",")
    added = eval(line, {"Family": Family, "loudness": loudness})
    monkeypatch.setattr(audio.Audio, "families", [added, *audio.FAMILIES])
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "loudness"}))
    save_file({"nothing": np.zeros(1, np.float32)}, folder / "model.safetensors")
    yield folder
    sys.modules.pop("mer.pipeline.encoders.loudness")


def test_the_pages_family_is_extracted_like_any_other(tmp_path, family):
    manifest, _ = corpus.make(tmp_path / "clips", 4)
    options = corpus.options(audio_encoder=str(family), text_encoder="none", dtype="float32")
    done = extract(manifest, tmp_path / "feats.h5", options)
    assert done.self_test["audio"]["passed"] and not done.untrained
    with FeatureStore(tmp_path / "feats.h5") as store:
        info = store.header.modalities["audio"]
        assert (info.dim, info.frame_rate, info.encoder) == (2, 50.0, "checkpoint")
        for row, u in enumerate(manifest.rows):
            wave = soundfile.read(manifest.root / u.audio, dtype="float32")[0]
            frames = [np.abs(wave[i : i + 320]) for i in range(0, len(wave) - 319, 320)]
            by_hand = [[frame.mean(), frame.max()] for frame in frames]
            np.testing.assert_allclose(store.features("audio", row), by_hand, rtol=1e-5)


def test_other_checkpoints_stay_with_their_family(tmp_path, family):
    manifest, _ = corpus.make(tmp_path / "clips", 3)
    extract(manifest, tmp_path / "feats.h5", corpus.options(text_encoder="none"))
    with FeatureStore(tmp_path / "feats.h5") as store:
        assert store.header.modalities["audio"].dim == 96


def test_the_pages_modality_is_extracted_like_any_other(tmp_path, monkeypatch):
    module = ModuleType("pace")
    monkeypatch.setitem(sys.modules, "pace", module)
    exec(block(6), vars(module))
    names = {kind.__name__: kind for kind in MODALITIES.values()} | {"Pace": module.Pace}
    assert line_of_modalities(block(7)) == [*line_of_modalities(CODE), "Pace"]
    registry = eval(block(7).split(" = ")[1], names)
    assert list(registry) == [*MODALITIES, "pace"]
    monkeypatch.setitem(MODALITIES, "pace", registry["pace"])
    made = type("PaceOptions", (ExtractOptions,), {"pace_encoder": "builtin:pace"})
    options = made(**vars(corpus.options(audio_encoder="none", dtype="float32")))
    manifest, _ = corpus.make(tmp_path / "clips", 6)
    extract(manifest, tmp_path / "feats.h5", options)
    with FeatureStore(tmp_path / "feats.h5") as store:
        assert list(store.header.modalities) == ["text", "pace"]
        for row, u in enumerate(manifest.rows):
            letters = [[len(word)] for word in u.text.split()]
            np.testing.assert_array_equal(store.features("pace", row), letters)
