"""Layer mix against last layer, and conversation context against none, on real weights, by the
commands a user has: `MER_TEST_DATA=DIR python -m tests.bench real --out OUT`, perhaps with `--only
meld|nemo|context`.

MELD's transcripts through all-MiniLM-L6-v2 (`text`), and nEMO's clips through Whisper-base
(`audio`, leave one speaker out). For each `mer prepare`, `mer extract` (the last layer's steps and
every layer's mean), `mer layers`, `mer train` twice (`data.layers` stored and mix) with five seeds,
`mer compare`. Presets are untouched; dev chooses the epoch; test is scored once a run. What is in
OUT already is not made again.

Context: the same store of MELD (`text`), and CMU-MOSI's vectors (`concat`), each with
`data.context` none, past and both under one recipe (CONTEXTS), chosen on dev with other seeds but
for MELD's width, of which no other was tried; five seeds, `mer compare` with none.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

from tests.bench.machine import save

NEMO_COLUMNS = ("id=file_id", "audio=file_id", "text=raw_text", "label=emotion")
SHOWN = ("wa", "ua", "wf1")


def mer(*args: str | Path) -> str:
    """Standard output of one `mer` command, which is shown on stderr."""
    command = shlex.join(map(str, args))
    print(f"mer {command}", file=sys.stderr, flush=True)
    done = subprocess.run(
        [sys.executable, "-m", "mer.cli", *map(str, args)], stdout=subprocess.PIPE, text=True
    )
    if done.returncode:
        sys.exit(f"mer {command}: exit {done.returncode}")
    return done.stdout


def prepare_meld(data: Path, manifest: Path) -> None:
    mer("prepare", "meld", "--root", data / "meld", "--out", manifest)


def prepare_nemo(data: Path, manifest: Path) -> None:
    columns = [
        part for column in (*NEMO_COLUMNS, "speaker=speaker_id") for part in ("--column", column)
    ]
    place = data / "nemo-mini"
    mer(
        *("prepare", "table", "--from", place / "data.tsv", "--audio-dir", place / "samples"),
        *columns,
        *("--split", "none", "--name", "nemo", "--language", "pl", "--out", manifest),
    )


CORPORA = {
    "meld": {
        "prepare": prepare_meld,
        "model": "text",
        "encoder": "all-MiniLM-L6-v2",
        "other": "audio",
        "folds": [],
    },
    "nemo": {
        "prepare": prepare_nemo,
        "model": "audio",
        "encoder": "whisper-base-encoder",
        "other": "text",
        "folds": ["--folds", "speaker"],
    },
}


def prepare_mosi(data: Path, store: Path) -> None:
    mosi = data / "mosi" / "mosi_utt.npz"
    columns = ("--column", "split=split_bclstm", "--labels", "negative,non_negative")
    mer("import", "npz", mosi, "--out", store, *columns)


# Of the runs with context and without: model, and what differs from its preset.
CONTEXTS = {
    "meld": ("text", ("train.epochs=8", "train.batch_size=64", "data.context_width=4")),
    "mosi": (
        "concat",
        (
            "train.epochs=6",
            "train.batch_size=64",
            "train.select_metric=wa",
            "optim.lr=5e-4",
            "model_args.dropout=0.5",
            "data.context_width=8",
        ),
    ),
}
KINDS = ("none", "past", "both")


def contexts(name: str, data: Path, out: Path, seeds: int) -> list[dict]:
    """A row for each kind of context on one corpus."""
    store, (model, sets) = out / f"{name}.h5", CONTEXTS[name]
    if not store.exists():
        if name == "mosi":
            prepare_mosi(data, store)
        else:
            extract(name, data, out)
    rows, folders = [], {}
    for kind in KINDS:
        folders[kind] = out / "runs" / f"{name}-context-{kind}"
        asked = [part for one in (*sets, f"data.context={kind}") for part in ("--set", one)]
        where = ["--features", store, "--out", folders[kind], "--model", model]
        text = mer("train", *where, *asked, "--seeds", seeds, "--device", "cpu", "--json")
        found = json.loads(text)
        row = {
            "corpus": name,
            "model": model,
            "context": found.get("context", "none"),
            "settings": list(sets),  # beside the preset
            "n": found["n"],
            "bootstrap": found["bootstrap"],
            **{k: figures(found, k) for k in SHOWN},
        }
        if kind != "none":
            gap = json.loads(mer("compare", folders["none"], folders[kind], "--json"))
            row["minus none"] = differences(gap)
        rows.append(row)
    return rows


def differences(gap: dict) -> dict:
    """What `mer compare` says of the figures that are shown."""
    return {k: {x: gap["metrics"][k][x] for x in ("difference", "interval")} for k in SHOWN}


def context_line(row: dict) -> str:
    """A row of the table of contexts in docs/training.md, in percent."""
    cells = []
    for name in ("wf1", "wa"):
        one = row[name]
        low, high = one["interval"]
        spread = f"{100 * one['mean']:.1f} ± {100 * one['sd']:.1f}"
        cells.append(f"{spread} [{100 * low:.1f}, {100 * high:.1f}]")
        if "minus none" in row:
            gap = row["minus none"][name]
            low, high = gap["interval"]
            cells.append(f"{100 * gap['difference']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]")
        else:
            cells.append("")
    return f"| {row['corpus']}, `{row['model']}` | {row['context']} | {' | '.join(cells)} |"


def extract(name: str, data: Path, out: Path) -> None:
    """The store of a corpus of recordings or transcripts."""
    corpus, manifest = CORPORA[name], out / f"{name}.parquet"
    corpus["prepare"](data, manifest)
    encoders = [f"--{corpus['model']}-encoder", data / "encoders" / corpus["encoder"]]
    encoders += [f"--{corpus['other']}-encoder", "none"]
    store = out / f"{name}.h5"
    mer("extract", "--manifest", manifest, *encoders, "--device", "cpu", "--out", store)


def run(name: str, data: Path, out: Path, seeds: int) -> dict:
    """All of one corpus: its row."""
    corpus = CORPORA[name]
    store, model = out / f"{name}.h5", corpus["model"]
    if not store.exists():
        extract(name, data, out)
    curve = json.loads(mer("layers", store, *corpus["folds"], "--json"))[model]
    found, folders = {}, {}
    for layers in ("stored", "mix"):
        folders[layers] = out / "runs" / f"{name}-{layers}"
        options = ["--set", f"data.layers={layers}", "--seeds", seeds, "--device", "cpu"]
        where = ["--features", store, "--out", folders[layers], "--model", model]
        text = mer("train", *where, *corpus["folds"], *options, "--json")
        found[layers] = json.loads(text)
    gap = json.loads(mer("compare", folders["stored"], folders["mix"], "--json"))
    return {
        "corpus": name,
        "model": model,
        "encoder": corpus["encoder"],
        "probe": [layer["figure"] for layer in curve["layers"]],
        "best layer": curve["best"],
        "n": found["mix"]["n"],
        "bootstrap": found["mix"]["bootstrap"],
        **{layers: {k: figures(f, k) for k in SHOWN} for layers, f in found.items()},
        "mix minus stored": differences(gap),
    }


def figures(found: dict, name: str) -> dict:
    """The mean, deviation and interval of one figure of a group."""
    pooled = found["pooled"] or found["metrics"]
    return {
        "mean": found["metrics"][name],
        "sd": found["sd"][name],
        "pooled": pooled[name],
        "interval": found["interval"][name],
    }


def line(row: dict) -> str:
    """A row of the table in docs/training.md: the headline figure, in percent."""
    cells = []
    for layers in ("stored", "mix"):
        one = row[layers]["wf1"]
        low, high = one["interval"]
        cells.append(f"{100 * one['pooled']:.1f} [{100 * low:.1f}, {100 * high:.1f}]")
    gap = row["mix minus stored"]["wf1"]
    low, high = gap["interval"]
    cells.append(f"{100 * gap['difference']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]")
    return f"| {row['corpus']} | {row['encoder']} | {' | '.join(cells)} | {row['best layer']} |"


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench real", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument(
        "--data",
        type=Path,
        default=os.environ.get("MER_TEST_DATA"),
        help="folder with encoders, meld, nemo-mini and mosi",
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", choices=[*sorted(CORPORA), "context"])
    args = parser.parse_args(argv)
    if args.data is None:
        sys.exit("real: name the folder of the data by --data or MER_TEST_DATA")
    args.out.mkdir(parents=True, exist_ok=True)
    command = f"python -m tests.bench real --out OUT --seeds {args.seeds}"
    if args.only != "context":
        names = [args.only] if args.only else sorted(CORPORA)
        rows = [run(name, args.data, args.out, args.seeds) for name in names]
        for row in rows:
            print(line(row))
        print(save("real", rows, command=command, folder=args.out))
    if args.only in (None, "context"):
        rows = []
        for name in sorted(CONTEXTS):
            rows += contexts(name, args.data, args.out, args.seeds)
        for row in rows:
            print(context_line(row))
        command += " --only context"
        print(save("real-context", rows, command=command, folder=args.out))


if __name__ == "__main__":
    main(sys.argv[1:])
