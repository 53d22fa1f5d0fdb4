"""What every fusion model has in common: the spec, class weights, the task's own loss, and
statistics of the features.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import reduce
from typing import cast

import torch
from torch import Tensor, nn

from mer.fusion.batch import Batch, DataSpec
from mer.fusion.losses import task_loss
from mer.fusion.models import Prediction
from mer.fusion.modules.context import TurnAttention, TurnTokens
from mer.fusion.modules.heads import PerTarget, mlp
from mer.fusion.modules.pooling import Moments, Standardise, masked_mean
from mer.pipeline.errors import DataError
from mer.pipeline.runtime.terminal import plural


class FusionModel(nn.Module):
    """Base of the models; see `mer.fusion.models` for the contract.

    `modalities` are those that the model reads, by default all of its spec's.

    `lr_scale` maps parameter names to factors on the learning rate; such parameters are not decayed
    either. `summary`: the model looks at nothing but mean and deviation of a sequence, and its
    batches may bring just those.

    `turns` reads the neighbours of an utterance, where the spec has a context; `calibrate` sets the
    scale of their features, too.
    """

    lr_scale: dict[str, float] = {}
    summary = False
    turns: TurnTokens | TurnAttention | None
    class_weights: Tensor | None
    modalities: tuple[str, ...]

    def __init__(self, config, spec: DataSpec) -> None:
        super().__init__()
        self.config, self.spec, self.modalities = config, spec, tuple(spec.modalities)
        self.turns = None
        self.register_buffer(
            "class_weights", None if spec.task == "regression" else torch.ones(spec.outputs)
        )

    @property
    def unimodal_heads(self) -> bool:
        """Whether there is a head for each modality that learns from its own labels, if the batch
        brings some (`Batch.taught`).
        """
        return False

    @property
    def pairs_by_own_labels(self) -> bool:
        """Whether modalities of two utterances are told alike by the labels of their own, which it
        needs then (`Batch.taught`).
        """
        return False

    def left_out(self, batch_size: int) -> list[str]:
        """What its configuration asks for and this spec, or a batch of that size, has nothing for,
        in words that follow its name.
        """
        return []

    @classmethod
    def reads_summary(cls, config) -> bool:
        """Whether a model of this configuration is one of `summary`."""
        return cls.summary

    def __call__(self, batch: Batch) -> Prediction:
        return super().__call__(batch)

    def losses(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        """Named scalar loss terms, unweighted; `progress` in [0, 1]: the share of training done."""
        raise NotImplementedError

    def weights(self, progress: float) -> dict[str, float]:
        """The weight of every term that `losses` may return."""
        raise NotImplementedError

    def set_class_weights(self, weights: Tensor) -> None:
        """Weights (C,) of the classes (single) or of the positives of each label (multi) in the
        task's loss.
        """
        if self.class_weights is None:
            raise DataError("class weights make no sense for a regression target")
        self.class_weights.copy_(weights)

    def task_loss(self, logits: Tensor, target: Tensor, soft: Tensor | None = None) -> Tensor:
        """The loss of the task itself, by the configuration's smoothing and regression loss; `soft`
        as in `Batch`.
        """
        config = self.config
        return task_loss(
            logits,
            target,
            task=self.spec.task,
            class_weights=self.class_weights,
            smoothing=config.label_smoothing,
            regression=config.regression_loss,
            soft=soft,
        )

    @property
    def per_target(self) -> bool:
        """Whether each of several targets has a head of its own, as `target_heads` asks for."""
        if self.config.target_heads == "shared":
            return False
        if self.spec.task != "regression" or self.spec.outputs < 2:
            raise DataError(
                f"model_args.target_heads={self.config.target_heads}: for a regression on several "
                f"targets; the task here is {self.spec.task} with "
                f"{plural(self.spec.outputs, 'output')}, use shared"
            )
        return True

    def answer_head(self, width: int, hidden: int, *, dropout: float) -> nn.Module:
        """The MLP that gives the answer: one for all outputs, or one for each target."""
        kind = PerTarget if self.per_target else mlp
        return kind(width, hidden, self.spec.outputs, dropout=dropout)

    def turn_tokens(self, width: int) -> TurnTokens | None:
        """What makes a token (width,) of each neighbour; None where each row is seen alone."""
        if self.spec.context is None:
            return None
        return TurnTokens(
            self.turn_widths(),
            width,
            self.spec.context,
            dropout=self.config.context_dropout,
            hidden=self.config.turn_dropout,
        )

    @torch.no_grad()
    def calibrate(self, batches: Iterable[Batch]) -> None:
        """One pass over the training part, labels unread, that fixes the scale of the features.

        Optional: without it the features are taken as they are.
        """
        targets = self.standardisers()
        moments = {m: Moments() for m in targets}
        scales = {} if self.turns is None else dict(self.turns.standardise.items())
        turns = {m: Moments() for m in scales}
        for batch in batches:
            for m in targets:
                moments[m].update(self.statistics(batch, m))
            for m in turns:
                turns[m].update(self.as_turns(batch, m))
        for m, layers in targets.items():
            for standardise in layers:
                standardise.set(moments[m])
        for m, moment in turns.items():
            standardiser_of(scales, m).set(moment)

    def standardisers(self) -> dict[str, list[Standardise]]:
        """The `Standardise` of each modality, set by what `statistics` returns for it."""
        raise NotImplementedError

    def statistics(self, batch: Batch, modality: str) -> Tensor:
        """(N, D) rows over which the modality's mean and spread are taken: its real steps, unless a
        model says otherwise.
        """
        return batch.x[modality][batch.mask(modality)]

    def as_turns(self, batch: Batch, modality: str) -> Tensor:
        """(N, D) the rows that have the modality as their neighbours see them: one step each."""
        mask = batch.mask(modality)
        return masked_mean(batch.x[modality], mask)[mask.any(1)]

    def seen_turns(self, batch: Batch) -> tuple[Tensor, Tensor] | None:
        """Tokens of the neighbours (B, W, d) and which are there (B, W); None: each row alone."""
        if batch.context is None or not isinstance(self.turns, TurnTokens):
            return None
        return self.turns(batch.context)

    def with_turns(self, x: Tensor, batch: Batch) -> Tensor:
        """x (B, n) of each row, and beside it what the row takes from its neighbours."""
        if not isinstance(self.turns, TurnAttention):
            return x
        return torch.cat([x, self.turns(x, batch.context)], 1)

    def turn_widths(self) -> dict[str, int]:
        """How many numbers a neighbour has of each modality that the model reads."""
        return {m: self.spec.modalities[m] for m in self.modalities}

    def diagnostics(self) -> dict[str, float]:
        """Floats worth logging: of the last `losses` call, or of what the model keeps."""
        return {}

    def observed(self) -> dict[str, Tensor | float]:
        """The entries of `diagnostics` that describe the last `losses` call alone, still on their
        device. The trainer averages them over the batches of an epoch, weighted by rows, and leaves
        out a batch whose entry is NaN.
        """
        return {}

    def layer_weights(self) -> dict[str, dict[str, float]]:
        """The weight of every layer that is mixed: by feature set, then by layer."""
        return {}

    @property
    def core(self) -> FusionModel:
        """The model of the registry: this one, unless layers are mixed before it."""
        return self

    def mixed(self, batch: Batch) -> Batch:
        """The batch as the model of the registry sees it."""
        return batch


def summed(terms: Iterable[Tensor]) -> Tensor:
    """The sum of one term or more."""
    return reduce(torch.add, terms)


def standardiser_of(layers: Mapping[str, nn.Module] | nn.ModuleDict, modality: str) -> Standardise:
    """The `Standardise` among the layers of each modality."""
    return cast(Standardise, layers[modality])
