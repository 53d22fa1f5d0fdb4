"""The parts of `python -m tests.bench real`: what each trains and compares, by the commands a user
has. A part makes the stores that it needs in OUT, where they are not there yet, and gives its rows.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.bench import mosi
from tests.bench.machine import RESULTS

NEMO_COLUMNS = ("id=file_id", "audio=file_id", "text=raw_text", "label=emotion")
SHOWN = ("wa", "ua", "wf1")
KINDS = ("none", "past", "both")  # of conversation context
ENCODERS = {"text": "all-MiniLM-L6-v2", "audio": "whisper-base-encoder"}

# Beside the preset, for every kind of context on MELD: decided on dev for `both` and emotion, with
# seeds that are not reported; of the width no other was tried.
MELD_CONTEXT = ("train.epochs=8", "train.batch_size=64", "data.context_width=4")
# Of 2 to 16 turns the dev part of CMU-MOSI tells none from another (`concat`, `both`).
MOSI_WIDTH = "data.context_width=8"


@dataclass(frozen=True)
class Bench:
    """Where a part finds its data and leaves its work.

    Attributes:
        data: The folder with encoders, meld, nemo-mini and mosi.
        out: The folder of stores and runs; what is there is not made again.
        seeds: Of each configuration.
        jobs: Trainings at a time; None: as `mer train` decides.
        models: Those that CMU-MOSI is measured with.
    """

    data: Path
    out: Path
    seeds: int
    jobs: int | None = None
    models: tuple[str, ...] = mosi.MODELS

    def store(self, name: str) -> Path:
        return self.out / f"{name}.h5"

    def run(self, name: str) -> Path:
        return self.out / "runs" / name

    def train(
        self,
        store: Path,
        name: str,
        model: str,
        sets: Iterable[str],
        *,
        folds: Sequence[str] = (),
        seeds: int | None = None,
    ) -> dict:
        """What `mer train` says of one configuration: dev chooses the epochs, test is scored once a
        run.
        """
        asked = [part for one in sets for part in ("--set", one)]
        jobs = [] if self.jobs is None else ["--jobs", self.jobs]
        told = mer(
            *("train", "--features", store, "--out", self.run(name), "--model", model),
            *(*folds, *asked, "--seeds", seeds or self.seeds, *jobs, "--device", "cpu", "--json"),
        )
        return json.loads(told)

    def gap(self, first: str, second: str) -> dict:
        """Run `second` minus run `first`, paired: each figure with its interval and p value."""
        told = json.loads(mer("compare", self.run(first), self.run(second), "--json"))["metrics"]
        return {k: {x: told[k][x] for x in ("difference", "interval", "p")} for k in SHOWN}


def mer(*args: str | Path | int) -> str:
    """Standard output of one `mer` command, which is shown on stderr."""
    command = shlex.join(map(str, args))
    print(f"mer {command}", file=sys.stderr, flush=True)
    done = subprocess.run(
        [sys.executable, "-m", "mer.cli", *map(str, args)], stdout=subprocess.PIPE, text=True
    )
    if done.returncode:
        sys.exit(f"mer {command}: exit {done.returncode}")
    return done.stdout


def meld_store(bench: Bench, labels: str = "emotion") -> Path:
    """MELD's transcripts through MiniLM, with emotion or sentiment as the label."""
    name = "meld" if labels == "emotion" else f"meld-{labels}"
    store, manifest = bench.store(name), bench.out / f"{name}.parquet"
    if not store.exists():
        root = bench.data / "meld"
        mer("prepare", "meld", "--root", root, "--labels", labels, "--out", manifest)
        extract(bench, manifest, store, "text")
    return store


def nemo_store(bench: Bench) -> Path:
    """nEMO's clips through the encoder of Whisper."""
    store, manifest = bench.store("nemo"), bench.out / "nemo.parquet"
    if not store.exists():
        place = bench.data / "nemo-mini"
        named = (*NEMO_COLUMNS, "speaker=speaker_id")
        mer(
            *("prepare", "table", "--from", place / "data.tsv", "--audio-dir", place / "samples"),
            *(part for column in named for part in ("--column", column)),
            *("--split", "none", "--name", "nemo", "--language", "pl", "--out", manifest),
        )
        extract(bench, manifest, store, "audio")
    return store


def mosi_store(bench: Bench) -> Path:
    """CMU-MOSI's vectors, negative or not."""
    store = bench.store("mosi")
    if not store.exists():
        import_mosi(bench.data, store)
    return store


def import_mosi(data: Path, store: Path) -> None:
    """Make the store of CMU-MOSI's vectors."""
    columns = ("--column", "split=split_bclstm", "--labels", ",".join(mosi.LABELS))
    mer("import", "npz", data / "mosi" / "mosi_utt.npz", "--out", store, *columns)


def extract(bench: Bench, manifest: Path, store: Path, modality: str) -> None:
    """The features of one modality, steps of the last layer and the mean of each layer."""
    other = "audio" if modality == "text" else "text"
    encoders = [f"--{modality}-encoder", bench.data / "encoders" / ENCODERS[modality]]
    encoders += [f"--{other}-encoder", "none"]
    mer("extract", "--manifest", manifest, *encoders, "--device", "cpu", "--out", store)


def layers(bench: Bench) -> list[dict]:
    """A mix of all layers against the last one: MELD's text, nEMO's audio."""
    by_speaker = ("--folds", "speaker")
    meld, nemo = meld_store(bench), nemo_store(bench)
    return [mix(bench, meld, "text", ()), mix(bench, nemo, "audio", by_speaker)]


def mix(bench: Bench, store: Path, model: str, folds: Sequence[str]) -> dict:
    """One corpus: its probe of layers, the last layer, the mix, and their difference."""
    corpus = store.stem
    curve = json.loads(mer("layers", store, *folds, "--json"))[model]
    found, names = {}, {kind: f"{corpus}-{kind}" for kind in ("stored", "mix")}
    for kind, name in names.items():
        found[kind] = bench.train(store, name, model, [f"data.layers={kind}"], folds=folds)
    return {
        "corpus": corpus,
        "model": model,
        "encoder": ENCODERS[model],
        "probe": [layer["figure"] for layer in curve["layers"]],
        "best layer": curve["best"],
        "n": found["mix"]["n"],
        "bootstrap": found["mix"]["bootstrap"],
        **{kind: figures(one) for kind, one in found.items()},
        "mix minus stored": bench.gap(names["stored"], names["mix"]),
    }


def meld_context(bench: Bench) -> list[dict]:
    """MELD's emotions with and without the turns around."""
    return contexts(bench, meld_store(bench), "text", MELD_CONTEXT)


def meld_sentiment(bench: Bench) -> list[dict]:
    """MELD's sentiments likewise, under the recipe that the emotions have."""
    return contexts(bench, meld_store(bench, "sentiment"), "text", MELD_CONTEXT)


def meld_models(bench: Bench) -> list[dict]:
    """MELD's emotions by the models that read the steps of the text, against `text` on the last
    layer, which is the one that they read.
    """
    store, last = meld_store(bench), ["data.layers=stored"]
    rows = []
    for model in ("text", "fusion", "drkf"):
        # the run of `layers`, if that has been made; two seeds of the models that take an hour
        name = "meld-stored" if model == "text" else f"meld-{model}"
        seeds = bench.seeds if model == "text" else min(bench.seeds, 2)
        found = bench.train(store, name, model, [*last, "data.modalities=text"], seeds=seeds)
        rows.append(row(found, "meld", model, seeds, last))
        if model != "text":
            rows[-1]["minus text"] = bench.gap("meld-stored", name)
    return rows


def mosi_contexts(bench: Bench) -> list[dict]:
    """CMU-MOSI by every model with each kind of context, and each minus `concat` of that kind."""
    store = mosi_store(bench)
    rows = []
    for model, sets in mosi_settings().items():
        if model not in bench.models:
            continue
        for one in contexts(bench, store, model, (*sets, MOSI_WIDTH)):
            rows.append(one)
            if model != "concat" and "concat" in bench.models:
                kind = one["context"].split()[0]
                pair = (run_name("mosi", which, kind) for which in ("concat", model))
                one["minus concat"] = bench.gap(*pair)
    return rows


def mosi_settings(results: Path = RESULTS) -> dict[str, tuple[str, ...]]:
    """What `python -m tests.bench mosi` led each model to, on dev and without context: `concat`
    first, which the others are compared with.
    """
    rows = json.loads((results / "mosi.json").read_text())["rows"]
    chosen = {one["model"]: one["settings"] for one in rows if "epochs" in one}
    order = ("concat", *(name for name in mosi.MODELS if name != "concat"))
    return {name: (*mosi.COMMON, *chosen[name]) for name in order}


def contexts(bench: Bench, store: Path, model: str, sets: Sequence[str]) -> list[dict]:
    """A row for each kind of context under one recipe, and its difference from none."""
    corpus, rows = store.stem, []
    for kind in KINDS:
        name = run_name(corpus, model, kind)
        found = bench.train(store, name, model, [*sets, f"data.context={kind}"])
        rows.append(row(found, corpus, model, bench.seeds, sets))
        rows[-1]["context"] = found.get("context", "none")
        if kind != "none":
            rows[-1]["minus none"] = bench.gap(run_name(corpus, model, "none"), name)
    return rows


def run_name(corpus: str, model: str, kind: str) -> str:
    return f"{corpus}-{model}-{kind}"


def row(found: dict, corpus: str, model: str, seeds: int, sets: Sequence[str]) -> dict:
    """What every row has; `settings` are those beside the preset."""
    return {
        "corpus": corpus,
        "model": model,
        "seeds": seeds,
        "settings": list(sets),
        "n": found["n"],
        "bootstrap": found["bootstrap"],
        **figures(found),
    }


def figures(found: dict) -> dict:
    """The mean, deviation and interval of each figure of a group of runs."""
    pooled = found["pooled"] or found["metrics"]
    return {
        name: {
            "mean": found["metrics"][name],
            "sd": found["sd"][name],
            "pooled": pooled[name],
            "interval": found["interval"][name],
        }
        for name in SHOWN
    }
