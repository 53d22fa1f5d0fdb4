"""Each corpus from a tree of its real shape, through the command line, to a trained model and its
table (slow).
"""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from mer.cli import main
from mer.pipeline.store import FeatureStore

from tests.datasets.test_meld import build as build_meld
from tests.datasets.trees import (
    write_clip,
    write_csd,
    write_folds,
    write_iemocap,
    write_m3ed,
    write_mmsa,
    write_wav,
)


def meld(root: Path) -> Path:
    """The old revision of the csv, with all that is odd in the release: see test_meld.py.

    One clip is five minutes long.
    """
    build_meld(root, write_clip(root.parent / "clip.mp4"), old=True)
    long = root / "output_repeated_splits_test" / "dia38_utt4.mp4"
    write_wav(long.with_suffix(".wav"), 305 * 8_000, 8_000).rename(long)
    return root


def mosi(root: Path) -> Path:
    modes = {"-a_b": "train", "c": "train", "d": "valid", "e": "test"}
    return write_mmsa(
        root,
        [
            (v, str(k), f"SOME WORDS {k}", str(k % 7 - 3), mode)
            for v, mode in modes.items()
            for k in range(4)
        ],
    )


def mosei(root: Path) -> Path:
    videos = {
        f"-v_{i}": [
            (k - 0.1, k + 0.5, k % 3 - 1, k % 2, 0, (k + 1) % 2, 0, 0, k % 3) for k in range(4)
        ]
        for i in range(4)
    }
    write_csd(root / "CMU_MOSEI_Labels.csd", "All Labels", videos)
    write_folds(root / "cmu_mosei_std_folds.py", ["-v_0", "-v_1"], ["-v_2"], ["-v_3"])
    folder = root / "Transcript" / "Segmented" / "Combined"
    folder.mkdir(parents=True)
    for video in videos:
        lines = "".join(f"{video}___{k}___{k - 0.1}___{k + 0.5}___caf\xe9 {k}\n" for k in range(4))
        # not UTF-8, as a few of the release are
        (folder / f"{video}.txt").write_bytes(lines.encode("latin-1"))
        write_wav(root / "Audio" / "Full" / "WAV_16000" / f"{video}.wav", 80_000)
    return root


CASES = {  # name -> (tree, label set, rows in the store, options of train)
    "meld": (meld, "sentiment", 9, ()),
    "iemocap": (write_iemocap, "4", 14, ("--folds", "session")),
    "m3ed": (write_m3ed, "multi", 4, ()),
    "mosi": (mosi, "sentiment", 16, ()),
    "mosei": (mosei, "emotion", 16, ()),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_tree_becomes_a_table(tmp_path, monkeypatch, name):
    tree, labels, rows, options = CASES[name]
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MER_DATA", raising=False)
    tree(tmp_path / "data" / name)

    def mer(*args: str):
        done = CliRunner().invoke(main, [*args])
        assert done.exit_code == 0, done.stderr
        return done.stdout

    manifest = mer("prepare", name, "--labels", labels).splitlines()[-1].removeprefix("wrote ")
    encoders = (
        "--audio-encoder",
        "builtin:tiny-wav2vec2",
        "--text-encoder",
        "builtin:tiny-roberta",
    )
    # clips that are absent or no media; MELD's known ones do not count
    failures = {"m3ed": "1", "meld": "2"}.get(name, "0")
    mer("extract", "--manifest", manifest, *encoders, "--max-failures", failures)
    with FeatureStore("feats.h5") as store:
        assert len(store.table()) == rows
    table = mer(
        "train",
        "--features",
        "feats.h5",
        "--model",
        "drkf",
        "--seeds",
        "1",
        "--set",
        "train.epochs=1",
        *options,
    )
    assert "UNTRAINED ENCODERS" in table
