"""docs/adding.md, done: its TOML, its file and its line add a corpus."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner

from mer.cli import main
from mer.pipeline import datasets
from mer.pipeline.datasets import corpora
from mer.pipeline.errors import DataError
from mer.pipeline.manifest import Manifest

from tests.datasets.trees import write_wav

PAGE = Path(__file__).parents[2] / "docs" / "adding.md"
TEXTS = (
    "ann-1-calm\tHello.\nann-2-angry\tNo!\nben-1-calm\tWell.\nben-2-angry\tStop "
    "it.\nben-3-angry\tNever.\nann-3-calm\tYes.\n"
)


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """The page's steps, in a folder of the test's own; returns a root with the corpus."""
    toml, module, line = (
        re.search(f"```{kind}\n(.*?)```", PAGE.read_text().split(f"## {n}.")[1], re.S)[1]
        for n, kind in ((1, "toml"), (2, "python"), (3, "python"))
    )
    tomllib.loads(toml)
    here = tmp_path / "manifests"
    here.mkdir()
    (here / "toy.toml").write_text(toml)
    package = tmp_path / "package"
    package.mkdir()
    (package / "toy.py").write_text(module)
    monkeypatch.setattr(corpora, "HERE", here)
    monkeypatch.setattr(datasets, "__path__", [*datasets.__path__, str(package)])
    name, path = re.fullmatch(r'"(\w+)": "([\w.]+)",\n', line).groups()
    monkeypatch.setitem(datasets.DATASETS, name, path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MER_DATA", raising=False)
    root = tmp_path / "data" / "toy"
    for row in TEXTS.splitlines():
        write_wav(root / f"{row.partition(chr(9))[0]}.wav")
    (root / "texts.tsv").write_text(TEXTS)
    yield root
    corpora.corpus.cache_clear()
    __import__("sys").modules.pop("mer.pipeline.datasets.toy", None)


def test_the_pages_corpus_is_prepared_like_any_other(toy):
    (toy / "ann-2-angry.wav").unlink()
    write_wav(toy / "eve-1-calm.wav")
    done = CliRunner().invoke(main, ["prepare", "toy"])
    assert done.exit_code == 0, done.stderr
    manifest = Manifest.read(toy / "manifest.parquet")
    assert (
        len(manifest) == 6
        and manifest.labels == ("calm", "angry")
        and manifest.rows[0].text == "Hello."
    )
    assert [u.known_bad for u in manifest.rows if u.id == "ben-3"] == ["the microphone was off"]
    for part in (
        "counts: as expected",
        "files missing: 1: ann-2",
        "(ignored): 1: eve-1-calm.wav",
        "known-bad clips: 1: ben-3",
    ):
        assert part in done.stdout


def test_the_pages_corpus_by_names_needs_its_toml_only(tmp_path, monkeypatch):
    toml = re.search("```toml\n(.*?)```", PAGE.read_text().split("## 0.")[1], re.S)[1]
    here = tmp_path / "manifests"
    here.mkdir()
    (here / "names.toml").write_text(toml)
    monkeypatch.setattr(corpora, "HERE", here)
    monkeypatch.setitem(datasets.DATASETS, "names", datasets.BY_NAMES)
    corpora.corpus.cache_clear()
    for name in ("ann_s1_CAL", "ann_s2_ANG", "ann_s3_CAL", "b_s1_ANG", "b_s2_CAL", "b_s3_ANG"):
        write_wav(tmp_path / "root" / f"{name}.wav")
    manifest, found = datasets.prepare("names", tmp_path / "root")
    corpora.corpus.cache_clear()
    assert not found.unexpected and {u.speaker for u in manifest.rows} == {"ann", "ben"}
    assert {u.text for u in manifest.rows} == {"Hello.", None}


def test_its_mistakes_are_one_line(toy):
    (toy / "texts.tsv").write_text("hello\n")
    with pytest.raises(DataError, match="texts.tsv: line 1 is not"):
        datasets.prepare("toy")
