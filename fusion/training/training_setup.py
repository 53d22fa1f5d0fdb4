"""What a training is set up with: a store, a configuration that fits it, and what follows
from the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mer.fusion import infer
from mer.fusion.batch import DataSpec
from mer.fusion.config import TrainConfig
from mer.fusion.data import context, feature_sets, splits, unimodal
from mer.fusion.data.splits import Fold, Split
from mer.fusion.measures import metrics
from mer.fusion.models import build, reads_summary
from mer.fusion.runtime.notes import Note
from mer.fusion.runtime.parallel import Processes
from mer.fusion.training.sinks import Sink
from mer.fusion.training.watch import Watch
from mer.pipeline.errors import DataError
from mer.pipeline.runtime.terminal import did_you_mean
from mer.pipeline.store import FeatureStore


@dataclass(frozen=True, kw_only=True)
class Training:
    """One training: its data, its configuration, and whom it tells. `target` has all rows of the
    store; `metric` is the dev figure that chooses the epoch; `measures` names the corpus by whose
    definitions a regression is scored.
    """

    store: FeatureStore
    config: TrainConfig
    folder: Path
    split: Split
    fold: Fold | None
    device: torch.device
    note: Note
    processes: Processes
    spec: DataSpec
    metric: str
    target: np.ndarray
    measures: metrics.Measures
    identity: str
    store_key: str
    command: str | None
    watch: Watch
    remark: Note
    sinks: Sequence[Sink] = ()
    among: int = 1

    @property
    def rows(self) -> dict[str, np.ndarray]:
        """The rows of each part."""
        return {"train": self.split.train, "dev": self.split.dev}

    @property
    def pools(self) -> dict[str, np.ndarray]:
        """The rows of each part, also those without a label: neighbours are among them."""
        return {"train": self.split.train_pool, "dev": self.split.dev_pool}


def measures_of(store: FeatureStore, target: np.ndarray) -> metrics.Measures:
    """By whose definitions the targets of `store` are scored (`mer.fusion.measures.metrics`)."""
    if store.header.task != "regression":
        return "mosi"
    return metrics.measures_of(store.header.dataset, target, store.header.labels)


def spec_of(store: FeatureStore, config: TrainConfig) -> DataSpec:
    """What the model of `config` is built for."""
    summary = reads_summary(config.model, config.model_args)
    return feature_sets.spec(store, config.data, summary=summary)


def settled(store: FeatureStore, config: TrainConfig) -> TrainConfig:
    """The configuration with `data.layers` decided, where the store leaves a choice."""
    summary = reads_summary(config.model, config.model_args)
    layers = feature_sets.layers_of(store, config.data, summary=summary)
    return replace(config, data=replace(config.data, layers=layers))


def check_config(store: FeatureStore, config: TrainConfig) -> tuple[DataSpec, str]:
    """What the model is built for, and the dev metric that chooses the epoch; reads no features.

    Args:
        store: The features.
        config: The model and how it is trained.

    Returns:
        The spec and the metric.

    Raises:
        DataError: The configuration cannot be trained on such a store.
    """
    spec, loop = spec_of(store, config), config.train
    target = splits.targets(store.table(), spec.task, spec.labels)
    splits.check_any(splits.taught_rows(store.table(), target, config.data))
    known = infer.names_of_figures(spec.task, spec.labels, measures_of(store, target))
    metric = loop.select_metric
    if metric == "auto":
        metric = metrics.headline(spec.task, known)
    if metric not in (*known, "loss"):
        guess = did_you_mean(metric, (*known, "loss"))
        raise DataError(f"train.select_metric = {metric}: dev has {', '.join(known)}, loss{guess}")
    if loop.class_weight != "none" and spec.task == "regression":
        raise DataError(
            f"train.class_weight = {loop.class_weight}: a regression has no classes; use none"
        )
    if loop.calibrate != "none" and spec.task != "single":
        raise DataError(
            f"train.calibrate = {loop.calibrate}: for one label per utterance; the task here is "
            f"{spec.task}, use none"
        )
    if config.data.soft_labels and splits.soft(store.table(), spec.task, spec.labels) is None:
        raise DataError(
            f"data.soft_labels: {store.path} has no shares of raters, one for each class, as "
            "targets of single labels; prepare it with --soft-labels, or leave the setting out"
        )
    if spec.context is not None:
        context.check(store.table(), spec.context, str(store.path))
    # it says itself what it needs; tens of milliseconds
    unimodal.check(store, spec, config, build(config.model, config.model_args, spec))
    return spec, metric


def class_weights(target: np.ndarray, spec: DataSpec, kind: str) -> Tensor:
    """(C,) weights by the training labels. single: 1/n_c (balanced) or its root, with mean 1 over
    the samples; multi: the weight of a positive, n_negative/n_positive or its root. A class without
    samples has no say in it, nor has a label that every sample has: weight 1. A weight of 0 would
    leave that label unlearnt.
    """
    single = spec.task == "single"
    if single:
        target = target[target >= 0]  # rows of shares alone have no label to count
    count = np.bincount(target, minlength=spec.outputs) if single else target.sum(0)
    count = count.astype(float)
    seen = np.maximum(count, 1)
    weight = 1 / seen if single else (len(target) - count) / seen
    weight = weight if kind == "balanced" else np.sqrt(weight)
    if single:
        weight *= count.sum() / (weight * count).sum()
    return torch.from_numpy(np.where((count > 0) & (weight > 0), weight, 1).astype(np.float32))
