"""The models that DRKF has to beat on the same cache: one modality alone, concatenation, and a
plain fusion encoder.

The pooled ones see mean and standard deviation over the real steps of each modality (or, where
layers are mixed, the mixture of their means alone), standardised over the training rows, and a
small MLP: for a few thousand frozen-feature utterances this is a strong baseline, not a straw man.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mer.fusion.batch import Batch, DataSpec
from mer.fusion.models import Prediction
from mer.fusion.models.base import FusionModel, standardiser_of
from mer.fusion.modules.context import TurnAttention
from mer.fusion.modules.dropout import Dropout
from mer.fusion.modules.kf import fusion_encoder
from mer.fusion.modules.orl import adapt, adapter_of, adapters
from mer.fusion.modules.pooling import (
    AttentiveStatistics,
    Standardise,
    masked_mean_std,
    zero_padding,
)
from mer.fusion.runtime.typed import added
from mer.pipeline.errors import DataError


@dataclass(frozen=True)
class UnimodalConfig:
    hidden: int = 256  # of the MLP
    dropout: float = 0.3  # before it and inside it
    label_smoothing: float = 0.0
    regression_loss: Literal["l1", "mse", "ccc"] = "l1"
    # with several targets: shared: one MLP answers all of them; per_target: one each
    target_heads: Literal["shared", "per_target"] = added("shared")
    # with data.context: width of what is taken from neighbours, dropout on their features, and the
    # share of them that is hidden in training
    context_hidden: int = added(64)
    context_dropout: float = added(0.5)
    turn_dropout: float = added(0.3)
    # of the steps: their mean and deviation, or both weighted by attention over the steps
    pooling: Literal["statistics", "attentive"] = added("statistics")
    attention: int = added(128)  # width of that attention


@dataclass(frozen=True)
class ConcatConfig(UnimodalConfig):
    pass


@dataclass(frozen=True)
class FusionConfig:
    """The fusion encoder of DRKF on its own; same fields, same defaults."""

    d: int = 256
    layers: int = 4
    heads: int = 4
    ffn: int = 512
    dropout: float = 0.1
    feature_dropout: float = 0.1
    positions: Literal["sinusoidal", "learned"] = "sinusoidal"
    max_positions: int = 2800
    label_smoothing: float = 0.0
    regression_loss: Literal["l1", "mse", "ccc"] = "l1"
    target_heads: Literal["shared", "per_target"] = added("shared")
    context_dropout: float = added(0.5)
    turn_dropout: float = added(0.3)


class Pooled(FusionModel):
    """MLP on the pooled features of `modalities`; a modality that a row lacks counts as the average
    one. With attentive pooling the model reads steps, each standardised, as the other models do.
    """

    summary = True

    def __init__(self, config: UnimodalConfig, spec: DataSpec, modalities: tuple[str, ...]) -> None:
        super().__init__(config, spec)
        missing = [m for m in modalities if m not in spec.modalities]
        if missing:
            raise DataError(
                f"the model needs {missing[0]} features; the store has {', '.join(spec.modalities)}"
            )
        self.modalities = modalities
        self.summary = self.reads_summary(config)
        self.widths = {}
        for m in modalities:
            self.widths[m] = 2 * spec.modalities[m]
            if self.summary:
                self.widths[m] = sum(block.width for block in spec.blocks(m, summary=True))
        scales = self.widths if self.summary else {m: spec.modalities[m] for m in modalities}
        self.standardise = nn.ModuleDict({m: Standardise(n) for m, n in scales.items()})
        if not self.summary:
            self.attend = nn.ModuleDict(
                {m: AttentiveStatistics(n, config.attention) for m, n in scales.items()}
            )
        self.dropout = Dropout(config.dropout)
        own, taken = sum(self.widths.values()), 0
        if spec.context is not None:
            taken = config.context_hidden
            self.turns = TurnAttention(
                own,
                scales,
                taken,
                spec.context,
                dropout=config.context_dropout,
                hidden=config.turn_dropout,
            )
        self.head = self.answer_head(own + taken, config.hidden, dropout=config.dropout)

    @classmethod
    def reads_summary(cls, config: Any) -> bool:
        return config.pooling == "statistics"

    def forward(self, batch: Batch) -> Prediction:
        pooled = []
        for m in self.modalities:
            if self.summary:
                present = batch.lengths[m][:, None] > 0
                pooled.append(self.standardise[m](self.pool(batch, m)).where(present, 0))
            else:
                mask = batch.mask(m)
                x = zero_padding(batch.x[m], mask)
                pooled.append(self.attend[m](self.standardise[m](x), mask))
        x = self.with_turns(torch.cat(pooled, 1), batch)
        return Prediction(self.head(self.dropout(x)))

    def losses(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        return {"ec": self.task_loss(self(batch).logits, batch.target, batch.soft)}

    def weights(self, progress: float) -> dict[str, float]:
        return {"ec": 1.0}

    def pool(self, batch: Batch, m: str) -> Tensor:
        """(B, 2D) mean and deviation: of the steps, or as the batch brings them; layer means, which
        it always brings, come with no deviation.
        """
        x = batch.x[m].to(standardiser_of(self.standardise, m).mean.dtype)
        if x.shape[2] == self.widths[m]:
            return x[:, 0]
        return masked_mean_std(x, batch.mask(m))

    def standardisers(self) -> dict[str, list[Standardise]]:
        return {m: [standardiser_of(self.standardise, m)] for m in self.modalities}

    def statistics(self, batch: Batch, modality: str) -> Tensor:
        if not self.summary:
            return super().statistics(batch, modality)
        return self.pool(batch, modality)[batch.lengths[modality] > 0]

    def as_turns(self, batch: Batch, modality: str) -> Tensor:
        if not self.summary:
            return super().as_turns(batch, modality)
        return self.statistics(batch, modality)


class Concat(Pooled):
    def __init__(self, config: ConcatConfig, spec: DataSpec) -> None:
        super().__init__(config, spec, tuple(spec.modalities))

    def left_out(self, batch_size: int) -> list[str]:
        return _nothing_to_fuse(self.modalities)


def _nothing_to_fuse(modalities: tuple[str, ...]) -> list[str]:
    """For `left_out`, of a model that puts modalities together."""
    return [f"reads {modalities[0]} alone: there is nothing to fuse"] * (len(modalities) == 1)


class Audio(Pooled):
    def __init__(self, config: UnimodalConfig, spec: DataSpec) -> None:
        super().__init__(config, spec, ("audio",))


class Text(Pooled):
    def __init__(self, config: UnimodalConfig, spec: DataSpec) -> None:
        super().__init__(config, spec, ("text",))


class Vision(Pooled):
    def __init__(self, config: UnimodalConfig, spec: DataSpec) -> None:
        super().__init__(config, spec, ("vision",))


class FusionEncoderModel(FusionModel):
    """Adapters and the fusion encoder of DRKF, trained by classification alone: no ORL, no ED."""

    def __init__(self, config: FusionConfig, spec: DataSpec) -> None:
        super().__init__(config, spec)
        self.adapter = adapters(spec.modalities, config.d, dropout=config.feature_dropout)
        self.fe = fusion_encoder(tuple(spec.modalities), config)
        self.ec = self.answer_head(config.d, config.d, dropout=config.dropout)
        self.turns = self.turn_tokens(config.d)

    def forward(self, batch: Batch) -> Prediction:
        logits, share = self.classify(batch, attention=True)
        return Prediction(logits, attention=share)

    def losses(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        return {"ec": self.task_loss(self.classify(batch)[0], batch.target, batch.soft)}

    def weights(self, progress: float) -> dict[str, float]:
        return {"ec": 1.0}

    def left_out(self, batch_size: int) -> list[str]:
        return _nothing_to_fuse(self.modalities)

    def classify(self, batch: Batch, *, attention: bool = False) -> tuple[Tensor, Tensor | None]:
        mask = {m: batch.mask(m) for m in self.spec.modalities}
        h = adapt(self.adapter, batch.x, mask)
        z, share = self.fe(h, mask, attention=attention, turns=self.seen_turns(batch))
        return self.ec(z), share

    def standardisers(self) -> dict[str, list[Standardise]]:
        return {m: [adapter_of(self.adapter, m).standardise] for m in self.spec.modalities}
