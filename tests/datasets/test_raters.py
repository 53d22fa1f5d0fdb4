"""How raters divided (`--raters`): IEMOCAP's EmoEvaluation and MSP-Podcast's labels_detailed.csv in
the layouts of their releases; shares by hand.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from mer.cli import main
from mer.pipeline.datasets import prepare
from mer.pipeline.errors import DataError
from mer.pipeline.manifest import Manifest

from tests.datasets.byname import write_tree
from tests.datasets.trees import write_iemocap

CHOSEN = {  # utterance -> what its raters said
    "Ses01F_impro01_F000": ("Neutral;", "Neutral; Sadness;", "Frustration;"),
    "Ses01F_impro01_M000": ("Anger;", "Sadness;"),  # xxx, all of it in the set of four
    "Ses01F_impro01_M012": ("Anger;", "anger ; "),
    "Ses01F_script01_1_F000": ("Happiness;", "Excited;", "Neutral state;"),
    "Ses01F_script01_1_M000": ("Frustration;", "Other;"),  # excited, and nobody said so
    "Ses02M_script01_1_M001": ("Sadness;", "Sadnes;"),
    "Ses03F_impro02_F000": ("Frustration;", "Anger;"),  # fru: not in the set
}


@pytest.fixture(scope="module")
def iemocap(tmp_path_factory) -> Path:
    root = write_iemocap(tmp_path_factory.mktemp("iemocap"))
    for file in root.rglob("EmoEvaluation/Ses*.txt"):
        out, current = [], ""
        for line in file.read_text().splitlines():
            if line.startswith("["):
                current = line.split("\t")[1]
            if line.startswith("C-E2") and current in CHOSEN:
                for number, said in enumerate(CHOSEN[current], start=1):
                    out.append(f"C-E{number}:\t{said}\t(a; comment: C-E9)")
                out.append("C-F1:\tDisgust;\t()")  # what the actor says of herself
            elif not line.startswith("C-E2"):
                out.append(line)
        file.write_text("\n".join(out))
    return root


def test_shares_of_iemocap_are_those_of_its_raters(iemocap):
    manifest, found = prepare("iemocap", iemocap, raters=True)
    assert manifest.labels == ("neutral", "happy", "sad", "angry")
    shares = {u.id: u.targets for u in manifest.rows if u.targets is not None}
    assert shares == {
        "Ses01F_impro01_F000": pytest.approx((0.75, 0, 0.25, 0)),
        "Ses01F_impro01_M000": pytest.approx((0, 0, 0.5, 0.5)),
        "Ses01F_impro01_M012": (0, 0, 0, 1),
        "Ses01F_script01_1_F000": pytest.approx((1 / 3, 2 / 3, 0, 0)),
        "Ses02M_script01_1_M001": (0, 0, 1, 0),
    }
    told = "raters: shares of 4 labelled utterances and of 1 without a majority, for "
    (said,) = [line for line in found.warnings if line.startswith(told)]
    assert said.endswith("; 4 labelled ones without a vote for a class of the set")
    assert any("no known label, taken as of no class: sadnes (1)" in w for w in found.warnings)
    plain, _ = prepare("iemocap", iemocap)
    assert [u.label for u in plain.rows] == [u.label for u in manifest.rows]
    assert not any(u.targets for u in plain.rows) and plain.hash != manifest.hash


def test_shares_are_of_the_chosen_set(iemocap):
    manifest, _ = prepare("iemocap", iemocap, labels="6", raters=True)
    shares = {u.id: u.targets for u in manifest.rows if u.targets is not None}
    # happy sad neutral angry excited frustrated
    assert shares["Ses01F_impro01_F000"] == pytest.approx((0, 1 / 6, 0.5, 0, 0, 1 / 3))
    assert shares["Ses03F_impro02_F000"] == pytest.approx((0, 0, 0, 0.5, 0, 0.5))
    assert shares["Ses01F_script01_1_M000"] == (0, 0, 0, 0, 0, 1)


@pytest.mark.parametrize(("name", "labels"), [("iemocap", "vad"), ("msp_podcast", "valence")])
def test_numbers_are_not_divided_over(name, labels, iemocap):
    with pytest.raises(DataError, match=f"{name}: --raters keeps .* of task regression"):
        prepare(name, iemocap, labels=labels, raters=True)


def test_other_corpora_do_not_take_it(iemocap):
    words = ["prepare", "meld", "--root", str(iemocap), "--raters"]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 1 and "meld takes no option raters" in " ".join(done.stderr.split())


CONSENSUS = (
    "FileName,EmoClass,EmoAct,EmoVal,EmoDom,SpkrID,Gender,Split_Set\n"
    "MSP-PODCAST_0001_0008.wav,N,4.2,3.8,4.0,127,Male,Train\n"
    "MSP-PODCAST_0002_0001.wav,X,4.2,5.8,4.0,12,Female,Train\n"
    "MSP-PODCAST_0003_0001.wav,X,4.2,3.8,4.0,12,Female,Test1\n"
    "MSP-PODCAST_0004_0001.wav,O,4.2,3.8,4.0,12,Female,Test1\n"
)
RATED = {
    "MSP-PODCAST_0001_0008.wav": ("Neutral", "Neutral", "Sad", "Other-Concerned"),
    "MSP-PODCAST_0002_0001.wav": ("Angry", "Happy"),
    "MSP-PODCAST_0003_0001.wav": ("Angry", "Happy", "Other"),
    "MSP-PODCAST_0004_0001.wav": ("Other", "Other", "Angry"),
}


def detailed(form: str) -> str:
    """labels_detailed.csv as releases 1.6 and 2.0 have it, or as those between."""
    lines = []
    for name, raters in RATED.items():
        for number, said in enumerate(raters):
            if form == "columns":
                lines.append(f'{name},WORKER{number},{said},"{said},Bored",4.0,5.0,3.0')
            else:
                lines.append(f'{name},"WORKER{number}; {said}; {said},Bored; A:4.0; V:5.0; D:3.0;"')
    head = "FileName,EmoDetail"
    if form == "columns":
        head = "FileName,Workers,EmoClass_Major,EmoClass_Second,EmoAct,EmoVal,EmoDom"
    return "\n".join([head, *lines]) + "\n"


def write_podcast(root: Path, table: str) -> Path:
    tables = {"Labels/labels_consensus.csv": CONSENSUS, "Labels/labels_detailed.csv": table}
    return write_tree(root, [f"Audios/{name}" for name in RATED], tables)


@pytest.mark.parametrize("form", ["columns", "one cell"])
def test_shares_of_msp_podcast_are_those_of_its_raters(form, tmp_path):
    root = write_podcast(tmp_path / "r", detailed(form))
    manifest, found = prepare("msp_podcast", root, labels="4", raters=True)
    assert {u.id: (u.label, u.targets) for u in manifest.rows} == {
        "MSP-PODCAST_0001_0008": ("neutral", pytest.approx((2 / 3, 0, 0, 1 / 3))),
        "MSP-PODCAST_0002_0001": (None, (0, 0.5, 0.5, 0)),
    }
    dropped = {what: len(ids) for what, ids in found.dropped.items()}
    assert dropped == {"label X": 1, "label O": 1}
    manifest.write(tmp_path / "m.parquet")
    again = Manifest.read(tmp_path / "m.parquet")
    assert [u.targets for u in again.rows] == [pytest.approx(u.targets) for u in manifest.rows]
    plain, found = prepare("msp_podcast", root, labels="4")
    assert [u.id for u in plain.rows] == ["MSP-PODCAST_0001_0008"]
    assert len(found.dropped["label X"]) == 2


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("FileName,Class\n", "expected the columns FileName and EmoClass_Major or EmoDetail"),
        ("FileName,EmoDetail\nMSP-PODCAST_0001_0008.wav\n", "line 2 has fewer columns"),
    ],
)
def test_a_table_of_raters_that_is_not_as_published_is_one_line(table, said, tmp_path):
    with pytest.raises(DataError, match=said) as caught:
        prepare("msp_podcast", write_podcast(tmp_path / "r", table), raters=True)
    assert len(str(caught.value)) <= 300


def test_without_the_table_of_raters_it_says_where_to_get_the_corpus(tmp_path):
    root = write_podcast(tmp_path / "r", detailed("columns"))
    (root / "Labels/labels_detailed.csv").unlink()
    with pytest.raises(DataError, match="no labels_detailed.csv within .*; to get it"):
        prepare("msp_podcast", root, raters=True)
