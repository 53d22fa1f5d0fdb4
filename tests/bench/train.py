"""Training speed of every preset, and the share of a step that is spent on data: `python -m
tests.bench train`.

Random features are written to a store in the shape that the preset is for (`SHAPES`), with
durations drawn like MELD's. The trainer's own epoch then runs for about `--seconds`: again and
again or, for a large model, over some of its batches, evenly spaced by length (one: the median).
`data_share` is the time in which the loop orders rows and waits for its next batch, as a share of
all; the rest is the model, its losses, the gradients, clipping and the optimizer. `--residence
stream` measures reading from the store instead of the tensors kept on the device. With `--presets`
nothing is written. `--plain` sets an epoch of `concat` beside the loop that anybody would write for
the same MLP: features in one tensor, fused AdamW, nothing logged.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from mer.fusion import config
from mer.fusion.data import feature_sets, sources, splits
from mer.fusion.models import model_class
from mer.fusion.runtime import devices
from mer.fusion.training import one_epoch, optim
from mer.pipeline.errors import DataError
from mer.pipeline.store import FeatureStore, ModalityInfo, ShardWriter, build_index

from tests.bench.machine import save
from tests.bench.store import lengths_like_meld

LABELS = ("neutral", "joy", "surprise", "anger", "sadness", "disgust", "fear")
HZ, WORDS_HZ = 49.95, 49.95 / 11  # audio frames, tokens
# width, steps a second (None: a token each), steps at most
MELD = {"audio": (1024, HZ, 2048), "text": (1024, None, 80)}
# Those of the MMSA features; rates of the unaligned ones: Tsai et al. 2019 (MulT), 12.5 and 20 Hz
# audio, 15 Hz vision.
SHAPES = {
    "mosi-unaligned": {"audio": (5, 12.5, 375), "text": (768, None, 50), "vision": (20, 15.0, 500)},
    "mosei-unaligned": {
        "audio": (74, 20.0, 500),
        "text": (768, None, 50),
        "vision": (35, 15.0, 500),
    },
    "mosi": {"audio": (5, None, 50), "text": (768, None, 50), "vision": (20, None, 50)},
    "mosei": {"audio": (74, None, 50), "text": (768, None, 50), "vision": (35, None, 50)},
    "meld": MELD,
}
OF_PRESET = {"vision": "mosi"}  # those that are named after no corpus: MELD's


def shape_of(preset: str) -> str:
    return OF_PRESET.get(preset) or next((name for name in SHAPES if name in preset), "meld")


def corpus(
    folder: Path, n: int, shape: dict[str, tuple[int, float | None, int]] = MELD
) -> FeatureStore:
    """`n` utterances of random features; two modalities: seven classes, three: regression, as on
    MOSI.
    """
    rng = np.random.default_rng(0)
    seconds = lengths_like_meld(n, rng) / HZ
    steps = {
        m: np.clip(seconds * (rate or WORDS_HZ), 3, most).astype(np.int64)
        for m, (_, rate, most) in shape.items()
    }
    shard = folder / "feats.shards" / "shard-00000.h5"
    shard.parent.mkdir(parents=True)
    with ShardWriter(shard, {m: width for m, (width, *_) in shape.items()}) as writer:
        for i in range(n):
            writer.add(
                str(i),
                {
                    m: rng.standard_normal((steps[m][i], width), dtype=np.float32)
                    for m, (width, *_) in shape.items()
                },
            )
    task = "single" if len(shape) == 2 else "regression"
    labels = [
        {"label": LABELS[i % 7]} if task == "single" else {"targets": [i % 7 - 3.0]}
        for i in range(n)
    ]
    rows = [
        {"id": str(i), "split": "train", "dialogue": str(i // 10), **labels[i]} for i in range(n)
    ]
    info = {m: ModalityInfo(width, rate) for m, (width, rate, _) in shape.items()}
    names = LABELS if task == "single" else ("sentiment",)
    return build_index(
        folder / "feats.h5",
        [shard],
        rows,
        dataset="bench",
        task=task,
        labels=names,
        modalities=info,
    )


def measure(
    store: FeatureStore, settings: config.TrainConfig, device: torch.device, seconds: float
) -> dict:
    """Rates of the trainer's epoch, after a warm-up."""
    spec, size = feature_sets.spec(store, settings.data), settings.train.batch_size
    target = splits.targets(store.table(), store.header.task, store.header.labels)
    torch.manual_seed(0)
    model = model_class(settings.model)[0](settings.model_args, spec).to(device)
    part = sources.batch_source(
        store,
        spec,
        settings.data,
        np.arange(len(store)),
        target,
        device=device,
        summary=model.summary,
    )
    optimizer = optim.adamw(model, settings)
    if settings.data.standardise:
        model.calibrate(part.batches(part.in_order(64)))
    whole, length = part.shuffled, sum(part.n.values())
    batches = sorted(whole(size, (0, 0)), key=lambda index: length[index].max())

    def epoch(count: int) -> tuple[float, float]:
        some = [batches[(2 * i + 1) * len(batches) // (2 * count)] for i in range(count)]
        part.shuffled = whole if count == len(batches) else lambda *_: some
        found = one_epoch.run_epoch(model, optimizer, part, settings, 1, 10**6)
        return found.seconds, found.waited

    once = epoch(1)[0]
    once = epoch(1)[0] if once < seconds else once
    count = min(max(int(seconds / once), 1), len(batches))
    spent = [epoch(count)]
    while sum(s for s, _ in spent) < seconds:
        spent.append(epoch(count))
    taken, waited = map(sum, zip(*spent, strict=True))
    utterances = sum(len(index) for index in part.shuffled(size, (0, 0)))
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "batch_size": size,
        "accumulate": settings.optim.accumulate,
        "resident": part.resident,
        "batches": f"{count} of {len(batches)}",
        "epochs": len(spent),
        "utterances_per_second": float(f"{len(spent) * utterances / taken:.3g}"),
        "data_share": round(waited / taken, 4),
    }


def plain_epoch(
    mlp: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, batch_size: int
) -> None:
    """An epoch as a page of a tutorial has it."""
    for index in torch.randperm(len(x)).split(batch_size):
        optimizer.zero_grad()
        nn.functional.cross_entropy(mlp(x[index]), y[index]).backward()
        nn.utils.clip_grad_norm_(mlp.parameters(), 1.0)
        optimizer.step()


def beside_a_plain_loop(store: FeatureStore, device: torch.device, rounds: int = 5) -> dict:
    """CPU seconds of an epoch of `concat` and of a plain loop over the same MLP, by turns; medians,
    and their ratio.
    """
    settings = config.load(preset="concat")
    spec = feature_sets.spec(store, settings.data)
    target = splits.targets(store.table(), store.header.task, store.header.labels)
    model = model_class("concat")[0](settings.model_args, spec).to(device)
    rows = np.arange(len(store))
    part = sources.batch_source(
        store, spec, settings.data, rows, target, device=device, summary=model.summary
    )
    model.calibrate(part.batches(part.in_order(64)))
    ours = optim.adamw(model, settings)
    x = torch.cat([packed[:-1] for packed in part.packed.values()], 1)
    x = (x - x.mean(0)) / x.std(0)
    hidden, p = settings.model_args.hidden, settings.model_args.dropout
    mlp = nn.Sequential(
        nn.Dropout(p), nn.Linear(x.shape[1], hidden), nn.GELU(), nn.Dropout(p),
        nn.Linear(hidden, spec.outputs),
    ).to(device)  # fmt: skip
    theirs = torch.optim.AdamW(mlp.parameters(), lr=settings.optim.lr, fused=True)
    size = settings.train.batch_size
    sides = {
        "plain": lambda: plain_epoch(mlp, theirs, x, part.target, size),
        "concat": lambda: one_epoch.run_epoch(model, ours, part, settings, 1, 10**6),
    }
    spent: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds + 1):  # the first one warms up
        for name, epoch in sides.items():
            started = time.process_time()
            epoch()
            spent[name].append(time.process_time() - started)
    seconds = {name: float(np.median(times[1:])) for name, times in spent.items()}
    return {
        "preset": "concat",
        "peer": "plain loop, fused AdamW",
        "rows": len(store),
        "threads": torch.get_num_threads(),
        **{f"{name}_cpu_seconds": round(value, 3) for name, value in seconds.items()},
        "ratio": round(seconds["concat"] / seconds["plain"], 2),
    }


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench train", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--utterances", type=int, default=512)
    parser.add_argument(
        "--seconds",
        type=float,
        default=4.0,
        help="of measurement a preset, about; at least one batch",
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument("--residence", choices=["device", "stream"], default="device")
    parser.add_argument(
        "--presets", default="", help="of all of them; measured and shown, not written"
    )
    parser.add_argument("--plain", action="store_true", help="concat beside a plain loop, alone")
    options = parser.parse_args(argv)
    device, rows, stores = devices.pick_device(options.device), [], {}
    if options.plain:
        with (
            tempfile.TemporaryDirectory() as folder,
            corpus(Path(folder) / "meld", options.utterances) as store,
        ):
            row = beside_a_plain_loop(store, device)
        print("  ".join(f"{key}={value}" for key, value in row.items()))
        command = " ".join(["python -m tests.bench train", *argv])
        print(save("train-plain", [row], command=command))
        return
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        for name in options.presets.split(",") if options.presets else config.presets():
            shape = shape_of(name)
            row = {"preset": name, "corpus": shape, "device": str(device)}
            try:
                settings = config.load(preset=name, sets=[f"data.residence={options.residence}"])
                if shape not in stores:
                    stores[shape] = stack.enter_context(
                        corpus(Path(folder) / shape, options.utterances, SHAPES[shape])
                    )
                row |= measure(stores[shape], settings, device, options.seconds)
            except DataError as error:
                row["not_measured"] = str(error)
            rows.append(row)
            print("  ".join(f"{key}={value}" for key, value in row.items()), flush=True)
    if not options.presets:
        print(save("train", rows, command=" ".join(["python -m tests.bench train", *argv])))
