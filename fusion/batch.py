"""What flows from the store to a model: padded tensors, and their true lengths beside them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from mer.fusion.typed import added
from mer.pipeline.runtime.terms import targets_of


@dataclass(frozen=True)
class FeatureSet:
    """One set of features of the store, as a modality reads it.

    The model sees `width` numbers of it in a step. `means` (how many layer means) and `stack`
    (which layers lie side by side in a step) say what is mixed into these; without them it is read
    as it is stored.
    """

    name: str
    width: int
    means: int = 0
    stack: tuple[int, ...] = ()


@dataclass(frozen=True)
class Block:
    """Consecutive numbers of a step: `layers` side by side, `width` numbers each, to be mixed into
    one; without layers they are taken as they are. `label` names it in logs and pictures.
    """

    label: str
    layers: tuple[int, ...]
    width: int

    @property
    def numbers(self) -> int:
        """How many of them there are before the mix."""
        return max(len(self.layers), 1) * self.width


@dataclass(frozen=True)
class DataSpec:
    """What a model must know of a store before it sees a batch.

    `modalities` maps name to feature width D, in the fixed order audio, text, vision (those that
    are present). `frame_rates` maps name to steps per second (None for tokens and for
    utterance-level vectors). `task` is single | multi | regression; `labels` names the classes (for
    regression: the targets). `sets` names what a modality is read from where that is not just
    the features of its name as they are stored.
    `scale` is (mean, deviation) of each of several targets over the rows that train: a batch brings
    them less their mean, in deviations, whatever scales they are rated on. One target stays as it
    is stored.
    """

    modalities: dict[str, int]
    frame_rates: dict[str, float | None]
    task: str
    labels: tuple[str, ...]
    sets: dict[str, tuple[FeatureSet, ...]] = added({})
    scale: tuple[tuple[float, float], ...] = added(())

    def read_from(self, modality: str) -> tuple[FeatureSet, ...]:
        """The sets of the store that a modality is read from."""
        return self.sets.get(modality) or (FeatureSet(modality, self.modalities[modality]),)

    @property
    def sources(self) -> dict[str, FeatureSet]:
        """Every set of the store that is read, by its name there."""
        return {one.name: one for m in self.modalities for one in self.read_from(m)}

    def blocks(self, modality: str, *, summary: bool) -> list[Block]:
        """How the numbers of a step are laid out before any mix.

        Args:
            modality: One of `modalities`.
            summary: A step is an utterance: its means, then the deviations of those sets of which
                one layer is read. A mixture of layer means comes without: the steps that deviations
                could be taken of are of one layer, which may be the worst of them.

        Returns:
            The blocks, in their order.
        """
        sets = self.read_from(modality)
        steps = [Block(one.name, one.stack, one.width) for one in sets]
        if not summary:
            return steps
        means = []
        for one, step in zip(sets, steps, strict=True):
            layers = tuple(range(one.means)) if one.means else one.stack
            means.append(replace(step, layers=layers))
        deviations = []
        for one, step in zip(sets, steps, strict=True):
            if not one.means:
                deviations.append(replace(step, label=f"{step.label} deviation"))
        return means + deviations

    @property
    def mixes(self) -> bool:
        """Whether layers are mixed."""
        return any(one.means or one.stack for one in self.sources.values())

    @property
    def outputs(self) -> int:
        """Width of the prediction: C classes, C labels, or K targets."""
        return targets_of(self.task, self.labels)

    @property
    def score_columns(self) -> list[str]:
        """What a table of predictions calls the numbers that a model answers."""
        if self.task != "regression":
            return [f"p_{name}" for name in self.labels]
        return [f"value_{name}" for name in self.labels] if self.outputs > 1 else ["value"]

    def alike(self, other: DataSpec) -> bool:
        """Whether models of both read and answer the same; scales are those of their own rows."""
        return replace(self, scale=()) == replace(other, scale=())

    def scaled(self, target: np.ndarray) -> np.ndarray:
        """Targets (N, K) as a batch brings them."""
        if not self.scale:
            return target
        mean, deviation = np.array(self.scale, dtype=np.float64).T
        return ((target - mean) / deviation).astype(target.dtype)

    def unscaled(self, scores: np.ndarray) -> np.ndarray:
        """Answers (N, K) of a model as the targets are rated."""
        if not self.scale:
            return scores
        mean, deviation = np.array(self.scale, dtype=np.float64).T
        return scores * deviation + mean


@dataclass(frozen=True)
class Batch:
    """`x[m]` (B, T_m, D_m) float, zero beyond `lengths[m]` (B,) int64; a length of 0 says the
    modality is absent for that row. Where layers are mixed, D_m is their sum as `DataSpec.blocks`
    lays them out, until `mer.fusion.models.layered` has mixed them.

    `target`: single (B,) int64; multi (B, C) float; regression (B, K) float. Unlabelled: -1 / NaN.
    `row` (B,) int64 indexes the store's table.
    """

    x: dict[str, Tensor]
    lengths: dict[str, Tensor]
    target: Tensor
    row: Tensor

    def __len__(self) -> int:
        return self.row.shape[0]

    def mask(self, modality: str) -> Tensor:
        """(B, T) bool, True on real steps."""
        x, n = self.x[modality], self.lengths[modality]
        return torch.arange(x.shape[1], device=n.device) < n[:, None]

    def split(self, sizes: list[int]) -> Iterator[Batch]:
        """Consecutive batches of `sizes` rows, views of this one."""
        x = {m: t.split(sizes) for m, t in self.x.items()}
        lengths = {m: t.split(sizes) for m, t in self.lengths.items()}
        pairs = zip(self.target.split(sizes), self.row.split(sizes), strict=True)
        for i, (target, row) in enumerate(pairs):
            part = {m: t[i] for m, t in x.items()}
            yield Batch(part, {m: t[i] for m, t in lengths.items()}, target, row)

    def to(self, device: torch.device | str) -> Batch:
        def move(d: dict[str, Tensor]) -> dict[str, Tensor]:
            return {k: v.to(device, non_blocking=True) for k, v in d.items()}

        return replace(
            self,
            x=move(self.x),
            lengths=move(self.lengths),
            target=self.target.to(device),
            row=self.row.to(device),
        )
