"""The parts of `python -m tests.bench all --quick`, each in a process of its own. A row has `what`
was measured, `ours`, the `peer` and `theirs` in `unit`s, the `ratio` and the `aim` for it.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.bench.machine import computes_in_bf16
from tests.bench.parts import keeper

Keep = Callable[[dict], None]
ALONE = {"peer": "", "theirs": "", "ratio": ""}  # of a figure that stands for itself


def run(part: str, out: Path, *, tiny: bool) -> None:
    FUNCTIONS[part](keeper(out / f"{part}.json"), tiny)


def startup(keep: Keep, tiny: bool) -> None:
    from tests.bench import startup as bench

    for row in bench.rows(1 if tiny else 2):
        keep(
            {
                "what": f"`{row['command']}`",
                "ours": row["cpu_s"],
                "peer": "`import torch`",
                "theirs": row["import_torch_cpu_s"],
                "unit": "CPU s",
                "ratio": round(row["cpu_s"] / row["import_torch_cpu_s"], 2),
                "aim": "" if row["aim_s"] is None else f"peer + {row['aim_s']} s",
            }
        )


def demo(keep: Keep, tiny: bool) -> None:
    """The two commands of `make demo`, one after the other: all cores, wall seconds."""
    from tests.bench.transcripts import timed

    sizes = ["--size", "24"] if tiny else []
    commands = {
        "extract": ["extract", "--dataset", "synthetic", *sizes],
        "train": ["train", "feats.h5", *(["--set", "train.epochs=1"] if tiny else [])],
    }
    total, before = 0.0, Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            for name, words in commands.items():
                took = timed([sys.executable, "-m", "mer.cli", *words])
                total += took.wall
                told = {"ours": round(took.cpu, 1), "unit": "CPU s", "aim": ""}
                keep({"what": f"`make demo`: {name}", **ALONE, **told})
        finally:
            os.chdir(before)
    told = {"ours": round(total, 1), "unit": "s", "aim": "50 s on 2 idle cores"}
    keep({"what": "`make demo`, installed", **ALONE, **told})


def concat(keep: Keep, tiny: bool) -> None:
    import torch

    from tests.bench import train as bench

    with tempfile.TemporaryDirectory() as folder:
        with bench.corpus(Path(folder) / "meld", 64 if tiny else 3000) as store:
            row = bench.beside_a_plain_loop(store, torch.device("cpu"), 1 if tiny else 5)
    keep(
        {
            "what": f"an epoch of `concat`, {row['rows']} rows",
            "ours": row["concat_cpu_seconds"],
            "peer": row["peer"],
            "theirs": row["plain_cpu_seconds"],
            "unit": "CPU s",
            "ratio": row["ratio"],
            "aim": "at most 1.2",
        }
    )


def steps(keep: Keep, tiny: bool) -> None:
    """Utterances per second of the trainer's own epoch, and operators of one step."""
    import torch

    from mer.fusion import config

    from tests.bench import profile
    from tests.bench import train as bench

    device, count = torch.device("cpu"), 32 if tiny else 512
    with tempfile.TemporaryDirectory() as folder:
        for preset in ("drkf", "dmd-mosi", "dhmd-mosi"):
            shape = bench.SHAPES[bench.shape_of(preset)]
            with bench.corpus(Path(folder) / preset, count, shape) as store:
                row = bench.measure(
                    store, config.load(preset=preset), device, 0.1 if tiny else 12.0
                )
            told = {"ours": row["utterances_per_second"], "unit": "utterances/s", "aim": ""}
            keep({"what": f"training `{preset}`", **ALONE, **told})
        shape = {"audio": (32, bench.HZ, 64), "text": (32, None, 32)}
        with bench.corpus(Path(folder) / "small", 128, shape) as store:
            for model in ("concat", "drkf", "dmd"):
                row = profile.measure(store, config.load(model=model), device)
                told = {"ours": row["operators"], "unit": "operators", "aim": ""}
                keep({"what": f"a step of `{model}`", **ALONE, **told})


def seeds(keep: Keep, tiny: bool) -> None:
    """Five seeds by one call beside five calls, wall seconds of all cores."""
    import torch

    from mer.fusion import config
    from mer.fusion.training import experiment

    from tests.bench import train as bench

    count = 2 if tiny else 5
    # model -> the aim for the ratio, utterances, epochs
    asked = {"concat": (0.6, 600, 4), "drkf": (0.8, 120, 2)}
    if tiny:
        asked = {"concat": (0.6, 64, 1), "drkf": (0.8, 32, 1)}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shape = {"audio": (64, bench.HZ, 64), "text": (64, None, 32)}
        for model, (aim, rows, most) in asked.items():
            with bench.corpus(folder / model, rows, shape) as store:
                sets = [f"train.epochs={most}", f"train.patience={most}", "data.dev_share=0.2"]
                settings = config.load(model=model, sets=sets)
                quiet = {"device": torch.device("cpu"), "note": lambda line: None, "warn": False}
                begun = time.perf_counter()
                experiment.train(store, settings, folder / f"{model}-all", seeds=count, **quiet)
                together = time.perf_counter() - begun
                begun = time.perf_counter()
                for seed in range(count):
                    one = config.load(model=model, sets=[*sets, f"train.seed={seed}"])
                    experiment.train(store, one, folder / f"{model}-{seed}", **quiet)
                apart = time.perf_counter() - begun
                keep(
                    {
                        "what": f"{count} seeds of `{model}`",
                        "ours": round(together, 2),
                        "peer": "one by one",
                        "theirs": round(apart, 2),
                        "unit": "s",
                        "ratio": round(together / apart, 2),
                        "aim": f"at most {aim}",
                    }
                )


def extraction(keep: Keep, tiny: bool) -> None:
    import torch

    from tests.bench import extract as bench

    size, clips, texts, rounds = ("tiny", 6, 12, 1) if tiny else ("base", 16, 96, 2)
    threads = len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
    aims = {"fp32": "at least 1.25 times as fast", "bf16": "at least 2.2 times as fast"}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = bench.clips(folder, clips)
        for modality in ("audio", "text"):
            loop: float | None = None
            for precision in ("fp32", "bf16") if computes_in_bf16() and not tiny else ("fp32",):
                if modality == "audio":
                    encoder = bench.audio_encoder(size, folder / "a", precision)
                    budget = bench.Audio.fixed_budget["cpu"]
                    sides = bench.audio_sides(encoder, paths, budget, threads)
                else:
                    words = bench.text_encoder(size, folder / "t", precision)
                    tokens = bench.Text.fixed_budget["cpu"]
                    sides = bench.text_sides(words, texts, int(tokens), threads)
                theirs, ours = bench.race(*sides[:2], rounds, threads)
                # the loop is fp32 both times
                least = min(took.wall for took in theirs.values())
                loop = least if loop is None else min(loop, least)
                keep(
                    {
                        "what": f"{modality} encoder, {size}, {precision}",
                        "ours": round(ours.wall, 2),
                        "peer": "loop of transformers, fp32",
                        "theirs": round(loop, 2),
                        "unit": "s",
                        "ratio": f"{loop / ours.wall:.2f} times as fast",
                        "aim": aims[precision] if modality == "audio" else "",
                    }
                )


def transcripts(keep: Keep, tiny: bool) -> None:
    from tests.bench import transcripts as bench

    for row in bench.rows(24 if tiny else 3000, 1):
        if "wall_s" not in row:
            keep({"what": "transcripts", **ALONE, "ours": "", "unit": row["absent"], "aim": ""})
        elif not row["side"].startswith("sentence-transformers"):
            fast = row.get("times_as_fast_cpu")
            keep(
                {
                    "what": f"{row['items']} lines, {row['encoder']}, {row['side']}",
                    "ours": row["cpu_s"],
                    "peer": "sentence-transformers" if fast else "",
                    "theirs": round(row["cpu_s"] * fast, 2) if fast else "",
                    "unit": "CPU s",
                    "ratio": f"{fast} times as fast" if fast else row.get("absent", ""),
                    "aim": "at least 2 times as fast",
                }
            )


def contrastive(keep: Keep, tiny: bool) -> None:
    """One thread, as docs/kernels.md has it; the quickest of the rounds."""
    import torch

    from tests.bench.contrastive_plot import TITLES
    from tests.bench.contrastive_timing import measure

    torch.set_num_threads(1)
    sizes = ((8, 16),) if tiny else ((128, 256), (2048, 256), (4096, 256))
    for rows, d in sizes:
        for workload in ("nt_xent", "drkf") if rows <= 2048 else ("nt_xent",):
            rounds = 1 if tiny else {128: 40, 2048: 3, 4096: 2}[rows]
            found = measure(
                workload, rows, d, torch.device("cpu"), torch.float32,
                rounds=rounds, compile_peers=False, paths=False, tiles=(), note=lambda peer: None,
            )  # fmt: skip
            times = {
                row["peer"]: row["min_ms"]
                for row in found
                if row["what"] == "forward+backward" and row.get("min_ms")
            }
            if not {"mer", "eager"} <= times.keys():
                continue
            keep(
                {
                    "what": f"{TITLES[workload]}, B = {rows}, D = {d}",
                    "ours": round(times["mer"], 2),
                    "peer": "eager PyTorch",
                    "theirs": round(times["eager"], 2),
                    "unit": "ms",
                    "ratio": f"{times['eager'] / times['mer']:.2f} times as fast",
                    "aim": "",
                }
            )


FUNCTIONS = {
    "startup": startup,
    "demo": demo,
    "concat": concat,
    "steps": steps,
    "seeds": seeds,
    "extraction": extraction,
    "transcripts": transcripts,
    "contrastive": contrastive,
}
