"""Labels and corpora that are markup, formulas or control characters: a report and its pictures
show them as text. Parsed by the standard library's HTML and XML parsers.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import pytest

from mer.fusion import report
from mer.fusion.evaluation import evaluate
from mer.fusion.report import figures as pictures
from mer.fusion.training import experiment

from tests.fusion.stores import make_store, quiet
from tests.fusion.test_train import settings

HOSTILE = (
    "<script>alert(1)</script>",
    '--><img src="x" onerror=alert(1)>',
    "=cmd|' /C calc'!A0 \x01\x1b]8;;http://x\x07",
)


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags: set[str] = set()
        self.handlers: set[str] = set()
        self.text: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.handlers |= {name for name, _ in attrs if name.startswith("on") or name == "src"}

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def run(tmp_path_factory, few_resamples):
    folder = tmp_path_factory.mktemp("names")
    store = make_store(folder, n=60, labels=HOSTILE, dataset="<b>toy</b>")
    run = experiment.train(store, settings("train.epochs=1"), folder / "<i>run", note=quiet)
    return run, evaluate.evaluate(run, note=quiet)


def test_a_report_shows_names_as_text(run):
    page = report.page([run[0]])
    seen = Tags()
    seen.feed(page)
    assert not seen.tags & {"script", "img", "b", "i"} and not seen.handlers
    assert HOSTILE[0] in "".join(seen.text)
    assert not [c for c in page if ord(c) < 32 and c not in "\n\t"]


def test_pictures_are_xml(run, tmp_path):
    written = pictures.write(*run, tmp_path / "figures")
    assert written
    for path in written:
        if path.suffix == ".svg":
            assert ET.parse(path).getroot().tag.endswith("svg")
            assert "<script>alert" not in path.read_text() and "<img" not in path.read_text()
