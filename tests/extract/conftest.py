from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mer.pipeline.extraction import extract
from mer.pipeline.manifest import Manifest

from tests.extract import corpus


@pytest.fixture(scope="session")
def _made(tmp_path_factory) -> Path:
    """A corpus and its finished store, made once; tests work on copies."""
    folder = tmp_path_factory.mktemp("made")
    manifest, file = corpus.make(folder)
    report = extract(manifest, folder / "feats.h5", corpus.options(), source=file)
    assert (report.action, report.utterances, report.extracted, report.reused) == (
        "extracted",
        24,
        24,
        0,
    )
    return folder


@pytest.fixture
def made(_made, tmp_path) -> Path:
    """A folder with clips, manifest.parquet and the finished store feats.h5."""
    return shutil.copytree(_made, tmp_path / "made")  # copystat keeps the modification times


@pytest.fixture
def again(made):
    """Extract the folder's manifest again with changed options: `again(pool=2)`."""

    def call(rows=None, **changes):
        manifest = Manifest.read(made / "manifest.parquet")
        if rows is not None:
            import dataclasses

            manifest = dataclasses.replace(manifest, rows=tuple(rows(list(manifest.rows))))
            manifest.write(made / "manifest.parquet")
        keywords = {
            name: changes.pop(name)
            for name in ("dry_run", "distrust", "progress")
            if name in changes
        }
        return extract(
            manifest,
            made / "feats.h5",
            corpus.options(**changes),
            source=made / "manifest.parquet",
            **keywords,
        )

    return call
