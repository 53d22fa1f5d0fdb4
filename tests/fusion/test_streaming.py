"""Features that do not fit: batches are read ahead from the memory map, a few at a time, and
training is the same to the bit.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from mer.fusion import config
from mer.fusion.data import feature_sets, sources
from mer.fusion.data.splits import assign, targets
from mer.fusion.training.train import fit

from tests.fusion.models import SMALL
from tests.fusion.stores import make_store


@pytest.mark.parametrize("model", ["concat", "fusion"])
def test_streamed_training_equals_resident_training(tmp_path, model):
    store = make_store(tmp_path)
    target = targets(store.table(), store.header.task, store.header.labels)
    logs, notes = {}, []
    for residence in ("device", "stream"):
        small = [f"model_args.{k}={v}" for k, v in SMALL.get(model, {}).items()]
        settings = config.load(
            model=model, sets=["train.epochs=2", f"data.residence={residence}", *small]
        )
        split = assign(store.table(), target, settings.data)
        run = fit(
            store, settings, tmp_path / residence, split=split, device="cpu", note=notes.append
        )
        lines = (run.path / "log.jsonl").read_text().splitlines()
        logs[residence] = [
            {k: v for k, v in json.loads(line).items() if "seconds" not in k} for line in lines
        ]
    assert logs["device"] == logs["stream"]
    assert sum("read from the store batch by batch" in line for line in notes) == 2  # train and dev


def test_only_a_few_batches_are_ever_ahead(tmp_path):
    """However slow the consumer: those waiting, and the one in the reader's hand."""
    store, made = make_store(tmp_path), []
    part = sources.batch_source(
        store,
        feature_sets.spec(store, config.DataConfig()),
        config.DataConfig(residence="stream"),
        np.arange(len(store)),
        np.zeros(len(store), np.int64),
        device="cpu",
    )
    assemble = part._assemble
    part._assemble = lambda index: made.append(len(made)) or assemble(index)
    order = part.in_order(4)
    for taken, _ in enumerate(part.batches(order), start=1):
        torch.zeros(50_000).sum().item()  # a step
        assert len(made) <= taken + sources.AHEAD + 1
    assert taken == len(made) == len(order)
