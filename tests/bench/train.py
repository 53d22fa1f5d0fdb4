"""Training speed of every preset on a MELD-like corpus, and the share of a step that is not the model: `python -m tests.bench train`.

Random features of MELD-like lengths (audio at 49.95 Hz, about 4.5 tokens a second) are written
to a store. For each preset the trainer's own epoch runs a few batches; `data` is the time the loop waits for its next batch, `step`
everything. `--residence stream` measures reading from the store instead of the tensors kept on the device. Ratios are of one process;
on a busy machine compare them, not the rates.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from fusion import config, data, splits, train
from fusion.models import REGISTRY, model_class
from pipeline.errors import DataError
from pipeline.store import FeatureStore, ModalityInfo, ShardWriter, build_index
from tests.bench.machine import save
from tests.bench.store import lengths_like_meld

LABELS = ("neutral", "joy", "surprise", "anger", "sadness", "disgust", "fear")


def corpus(folder: Path, n: int, dim: int) -> FeatureStore:
    rng = np.random.default_rng(0)
    steps = {"audio": lengths_like_meld(n, rng)}
    steps["text"] = np.clip(steps["audio"] // 11, 3, 80)
    shard = folder / "feats.shards" / "shard-00000.h5"
    shard.parent.mkdir()
    with ShardWriter(shard, {"audio": dim, "text": dim}) as writer:
        for i in range(n):
            writer.add(str(i), {m: rng.standard_normal((steps[m][i], dim), dtype=np.float32) for m in steps})
    rows = [{"id": str(i), "split": "train", "label": LABELS[i % 7], "dialogue": str(i // 10)} for i in range(n)]
    info = {"audio": ModalityInfo(dim, 49.95), "text": ModalityInfo(dim)}
    return build_index(folder / "feats.h5", [shard], rows, dataset="bench", task="single", labels=LABELS, modalities=info)


def measure(store: FeatureStore, settings: config.TrainConfig, device: torch.device, batches: int) -> dict:
    """Rates of the trainer's epoch over `batches` batches, after a warm-up epoch over as many."""
    spec = data.spec(store, settings.data)
    settings = replace(settings, optim=replace(settings.optim, accumulate=1))
    rows = np.arange(min(len(store), batches * settings.train.batch_size))
    target = splits.targets(store.table(), "single", LABELS)[rows]
    torch.manual_seed(0)
    model = model_class(settings.model)[0](settings.model_args, spec).to(device)
    part = data.part(store, spec, settings.data, rows, target, device=device, summary=model.summary)
    optimizer = torch.optim.AdamW(train.parameter_groups(model, settings), betas=settings.optim.betas)
    model.calibrate(part.batches(part.in_order(64)))
    for epoch in (1, 2):
        found = train.run_epoch(model, optimizer, part, settings, epoch, 1000)
    return {
        "parameters": sum(p.numel() for p in model.parameters()), "batch_size": settings.train.batch_size, "resident": part.resident,
        "utterances_per_second": round(len(rows) / found["seconds"], 1), "data_share": round(found["data_seconds"] / found["seconds"], 4),
    }  # fmt: skip


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench train", description=__doc__.splitlines()[0])
    parser.add_argument("--utterances", type=int, default=400)
    parser.add_argument("--dim", type=int, default=1024)
    parser.add_argument("--batches", type=int, default=4, help="batches an epoch")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--residence", choices=["device", "stream"], default="device")
    parser.add_argument("--presets", default="drkf,drkf-paper,dmd,dhmd", help="presets of the drkf family by default; baselines are added")
    options = parser.parse_args(argv)
    device = train.pick_device(options.device)
    wanted = [*options.presets.split(","), *(m for m in ("fusion", "concat", "audio", "text") if m in REGISTRY)]
    rows = []
    with tempfile.TemporaryDirectory() as folder, corpus(Path(folder), options.utterances, options.dim) as store:
        for name in wanted:
            given = {"preset": name} if name in config.presets() else {"model": name}
            try:
                settings = config.load(**given, sets=[f"data.residence={options.residence}"])
                row = {"preset": name, "model": settings.model, "device": str(device), **measure(store, settings, device, options.batches)}
            except DataError as error:
                row = {"preset": name, "not_measured": str(error)}
            rows.append(row)
            print("  ".join(f"{key}={value}" for key, value in row.items()), flush=True)
    print(save("train", rows, command="python -m tests.bench train " + " ".join(argv)))
