"""What a configuration asks for and nothing comes of, on this store: each in one line before the
training begins, because a loss term that is not there leaves no other trace.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields
from itertools import combinations
from typing import Any

import numpy as np

from mer.fusion.config import DataConfig, TrainConfig
from mer.fusion.data import feature_sets, splits
from mer.fusion.models.base import FusionModel
from mer.fusion.training.training_setup import Training
from mer.pipeline.runtime.terminal import plural

# Arguments of models that a task, or data.context, gives a meaning.
OF_CLASSES = ("label_smoothing", "kl_smoothing", "distill_temperature")
OF_NUMBERS = ("regression_loss",)
OF_CONTEXT = ("context_dropout", "turn_dropout", "context_hidden")
OF_PLATEAU = ("plateau_factor", "plateau_patience")
OF_CARVING = ("dev_share", "dev_by")


def lines(training: Training, model: FusionModel) -> list[str]:
    """All that can be told before the first step.

    Args:
        training: The store, the rows and the configuration.
        model: Built for them.
    """
    core, config = model.core, training.config
    reads = [f"{config.model}: {line}" for line in core.left_out(config.train.batch_size)]
    return [
        *reads,
        *_never_together(training, core.modalities),
        *_of_no_modality(config, core.modalities),
        *_of_another_task(config, training.spec.task),
        *_of_what_is_off(config),
        *_of_no_carving(training),
        *_without_shares(training),
    ]


def _never_together(training: Training, modalities: Sequence[str]) -> Iterator[str]:
    """Modalities that no training row has beside each other."""
    store, rows = training.store, training.split.train
    there = {m: feature_sets.present(store, training.spec, m)[rows] for m in modalities}
    known = [m for m in modalities if there[m].any()]
    apart = [pair for pair in combinations(known, 2) if not (there[pair[0]] & there[pair[1]]).any()]
    for m, n in apart:
        yield f"no training row has both {m} and {n}: what they say together is not learnt"
    if len(known) > 2 and not apart and not np.all([there[m] for m in known], axis=0).any():
        yield f"no training row has {', '.join(known[:-1])} and {known[-1]} together"


def _of_no_modality(config: TrainConfig, reads: Sequence[str]) -> Iterator[str]:
    if config.train.modality_dropout and len(reads) == 1:
        yield f"train.modality_dropout does nothing: the model reads {reads[0]} alone"


def _of_another_task(config: TrainConfig, task: str) -> Iterator[str]:
    """Arguments of the model that belong to another task."""
    names = OF_CLASSES if task == "regression" else OF_NUMBERS
    for name in _changed(config.model_args, names):
        yield f"model_args.{name} does nothing: the task is {task}"
    if task == "regression" and config.train.batch_size == 1:
        if config.model_args.regression_loss == "ccc":
            yield "model_args.regression_loss=ccc is the squared error in batches of one row"


def _of_what_is_off(config: TrainConfig) -> Iterator[str]:
    """Settings of what another setting switches on."""
    if config.data.context == "none":
        needs = "does nothing without data.context=past or both"
        if config.data.context_width != DataConfig.context_width:
            yield f"data.context_width {needs}"
        for name in _changed(config.model_args, OF_CONTEXT):
            yield f"model_args.{name} {needs}"
    if config.optim.schedule != "plateau":
        for name in _changed(config.optim, OF_PLATEAU):
            yield f"optim.{name} does nothing without optim.schedule=plateau"


def _of_no_carving(training: Training) -> Iterator[str]:
    """How dev is carved from train, where the store has one."""
    table, dev = training.store.table(), training.split.dev
    if training.fold is None and len(dev) and table["split"][int(dev[0])].as_py() == "dev":
        for name in _changed(training.config.data, OF_CARVING):
            yield f"data.{name} does nothing: the store has a dev part"


def _without_shares(training: Training) -> Iterator[str]:
    """Rows that soft labels say nothing of."""
    spec, rows = training.spec, training.split.train
    if not training.config.data.soft_labels:
        return
    shares = splits.soft(training.store.table(), spec.task, spec.labels)
    lacking = 0 if shares is None else int(np.isnan(shares[rows]).any(1).sum())
    if lacking:
        count = plural(len(rows), "training row")
        yield f"data.soft_labels: {lacking:,} of {count} without shares of raters, learnt by label"


def _changed(table: Any, names: Sequence[str]) -> list[str]:
    """Those of the settings that a table has, and not at their default."""
    found = []
    for one in fields(table):
        if one.name in names and getattr(table, one.name) != one.default:
            found.append(one.name)
    return found
