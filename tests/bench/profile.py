"""Where one training step spends its time: `python -m tests.bench profile --models drkf,dmd,dhmd`.

The trainer's own step (losses, backward, clipping, AdamW) on batches of the corpus of
`tests.bench.train`, after two warm-up steps, under torch.profiler: operators by self time, and how
many operators one step asks for with one and with four times the batch. Equal counts say that
nothing loops in Python over utterances or pairs; tests/fusion/test_models_contract.py holds the
same for every model and task.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from mer.fusion import config
from mer.fusion.data import feature_sets, sources, splits
from mer.fusion.models import model_class
from mer.fusion.runtime import devices
from mer.fusion.training import optim

from tests.bench.machine import save
from tests.bench.train import HZ, LABELS, corpus

SHOWN = 8  # operators


def measure(store, settings: config.TrainConfig, device: torch.device) -> dict:
    """One profiled step of the preset's batch size, and the number of operators of it and of a step
    four times as large.
    """
    spec, size = feature_sets.spec(store, settings.data), settings.train.batch_size
    rows = np.arange(4 * size)
    target = splits.targets(store.table(), "single", LABELS)[rows]
    torch.manual_seed(0)
    model = model_class(settings.model)[0](settings.model_args, spec).to(device)
    part = sources.batch_source(
        store, spec, settings.data, rows, target, device=device, summary=model.summary
    )
    model.calibrate(part.batches(part.in_order(size)))
    optimizer = optim.adamw(model, settings)
    small, large = (next(part.batches([rows[:n]])) for n in (size, 4 * size))

    def step(batch) -> None:
        weights = model.weights(0.5)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
            loss = sum(weights[name] * value for name, value in model.losses(batch, 0.5).items())
        loss.backward()
        optim.clip_gradients(list(model.parameters()), settings.optim.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def profiled(batch):
        step(batch)
        step(batch)
        kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
        with profile(activities=kinds, acc_events=True) as found:
            step(batch)
        return found.key_averages()

    first, second = profiled(small), profiled(large)
    on_device = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    time = {e.key: getattr(e, on_device) for e in first}
    total = sum(time.values())
    top = sorted(time, key=time.get, reverse=True)[:SHOWN]
    once, four = (
        {e.key: e.count for e in found if e.key.startswith("aten::")} for found in (first, second)
    )
    more = {k: count - once.get(k, 0) for k, count in four.items() if count != once.get(k)}
    return {
        "batch_size": size,
        "milliseconds": round(total / 1e3, 1),
        "share": {k: round(time[k] / total, 3) for k in top},
        "operators": sum(once.values()),
        "more_at_four_times_the_batch": more,
    }


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench profile", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--models", default="drkf,dmd,dhmd")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dim", type=int, default=1024)
    options = parser.parse_args(argv)
    device, rows = devices.pick_device(options.device), []
    shape = {"audio": (options.dim, HZ, 2048), "text": (options.dim, None, 80)}
    with tempfile.TemporaryDirectory() as folder, corpus(Path(folder), 128, shape) as store:
        for name in options.models.split(","):
            rows.append(
                {
                    "model": name,
                    "device": str(device),
                    **measure(store, config.load(model=name), device),
                }
            )
            print("  ".join(f"{key}={value}" for key, value in rows[-1].items()), flush=True)
    print(save("profile", rows, command="python -m tests.bench profile " + " ".join(argv)))
