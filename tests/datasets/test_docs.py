"""The pages on manifests and corpora say what the code does."""

from __future__ import annotations

import re
from pathlib import Path

from mer.pipeline.datasets import DATASETS, OWN
from mer.pipeline.datasets.tablefile import FIELDS
from mer.pipeline.manifest import SCHEMA, VERSION, Manifest, Utterance

DOCS = Path(__file__).parents[2] / "docs"


def test_the_manifest_page_has_the_schema():
    page = (DOCS / "manifest.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| ([^|]+) \| (yes|no) \|", page, flags=re.M)
    assert rows == [(f.name, str(f.type), "yes" if f.nullable else "no") for f in SCHEMA]
    assert f"## Columns (version {VERSION})" in page


def test_the_manifest_pages_metadata_keys_are_those_written(tmp_path):
    import json

    import pyarrow.parquet as pq

    Manifest("m", "single", ("a",), (Utterance("1"),), tmp_path).write(tmp_path / "m.parquet")
    written = json.loads(pq.read_schema(tmp_path / "m.parquet").metadata[b"mer"])
    section = (DOCS / "manifest.md").read_text().split("## Metadata")[1].split("##")[0]
    assert re.findall(r"^\| `(\w+)`", section, flags=re.M) == list(written)


def test_the_corpora_page_has_every_corpus_and_every_field_of_a_table():
    page = (DOCS / "datasets.md").read_text()
    assert {*re.findall(r"^## (\w+)$", page, flags=re.M)} == {*DATASETS, *OWN}
    fields = {
        name
        for row in re.findall(r"^\| (`.+?) \|", page, flags=re.M)
        for name in re.findall(r"`(\w+)`", row)
    }
    assert fields == set(FIELDS)
