"""What flows from the store to a model: padded tensors, and their true lengths beside them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mer.fusion.runtime.typed import added
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
class ContextSpec:
    """Which neighbours in its dialogue an utterance is seen with: up to `width` turns before it
    (past), or as many on either side (both).
    """

    kind: Literal["past", "both"]
    width: int

    @property
    def offsets(self) -> tuple[int, ...]:
        """The place of each neighbour, counted in turns from the utterance's own.

        >>> ContextSpec("past", 2).offsets, ContextSpec("both", 2).offsets
        ((-2, -1), (-2, -1, 1, 2))
        """
        before = range(-self.width, 0)
        return (*before, *range(1, self.width + 1)) if self.kind == "both" else (*before,)

    @property
    def title(self) -> str:
        """As tables name it.

        >>> ContextSpec("past", 8).title
        'past 8'
        """
        return f"{self.kind} {self.width}"


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
    is stored, unless it is far from 0 (`mer.fusion.data.splits.scale`). `context` says which
    neighbours a row is seen with; None: each utterance alone.
    """

    modalities: dict[str, int]
    frame_rates: dict[str, float | None]
    task: str
    labels: tuple[str, ...]
    sets: dict[str, tuple[FeatureSet, ...]] = added({})
    scale: tuple[tuple[float, float], ...] = added(())
    context: ContextSpec | None = added(None)

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
            summary: A step is an utterance: its means, then the deviations of those sets that are
                read from one layer. A mixture of layer means has no deviations: the store keeps the
                steps of one layer only, which may be the worst one.

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

    def numbers_of_means(self, modality: str, *, summary: bool) -> int:
        """How many numbers of a step are no deviations; arguments as of `blocks`."""
        steps_or_means = self.blocks(modality, summary=summary)[: len(self.read_from(modality))]
        return sum(block.numbers for block in steps_or_means)

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
class Context:
    """The neighbours of each row of a batch in its dialogue, one slot for every place of
    `ContextSpec.offsets`, in that order.

    `x[m]` (B, W, D_m): a neighbour as one step, laid out as those of `Batch.x[m]`: the mean of its
    steps, or what a pooled model is given of it. `there[m]` (B, W) bool: it is there and has the
    modality; elsewhere `x[m]` is not to be read. `offset` (B, W) int64 is its place, counted in
    turns from the row's own, `speaker` (B, W) int64 one of UNKNOWN, SAME, OTHER; without a
    neighbour both say nothing.
    """

    x: dict[str, Tensor]
    there: dict[str, Tensor]
    offset: Tensor
    speaker: Tensor

    def split(self, sizes: list[int]) -> Iterator[Context]:
        """The context of each of consecutive groups of rows, as views of this one. `sizes` are the
        numbers of rows of the groups.
        """
        x = {m: t.split(sizes) for m, t in self.x.items()}
        there = {m: t.split(sizes) for m, t in self.there.items()}
        pairs = zip(self.offset.split(sizes), self.speaker.split(sizes), strict=True)
        for i, (offset, speaker) in enumerate(pairs):
            here = {m: t[i] for m, t in there.items()}
            yield Context({m: t[i] for m, t in x.items()}, here, offset, speaker)

    def to(self, device: torch.device | str) -> Context:
        return Context(
            _moved(self.x, device),
            _moved(self.there, device),
            self.offset.to(device, non_blocking=True),
            self.speaker.to(device, non_blocking=True),
        )


# Whether a neighbour is spoken by the speaker of the utterance itself.
UNKNOWN, SAME, OTHER = 0, 1, 2


def _moved(tensors: dict[str, Tensor], device: torch.device | str) -> dict[str, Tensor]:
    return {name: t.to(device, non_blocking=True) for name, t in tensors.items()}


@dataclass(frozen=True)
class Batch:
    """`x[m]` (B, T_m, D_m) float, zero beyond `lengths[m]` (B,) int64; a length of 0 says the
    modality is absent for that row. Where layers are mixed, D_m is their sum as `DataSpec.blocks`
    lays them out, until `mer.fusion.models.layered` has mixed them.

    `target`: single (B,) int64; multi (B, C) float; regression (B, K) float. Unlabelled: -1 / NaN.
    `row` (B,) int64 indexes the store's table. `context`: None where each row is seen alone.
    `soft` (B, C) float, single only: the shares of the raters who chose each class, NaN where
    nobody knows; None: labels are learnt. `unimodal[m]`, as `target`: what the head of a modality
    learns in its place; None: every head learns the common label.
    """

    x: dict[str, Tensor]
    lengths: dict[str, Tensor]
    target: Tensor
    row: Tensor
    context: Context | None = None
    soft: Tensor | None = None
    unimodal: dict[str, Tensor] | None = None

    def __len__(self) -> int:
        return self.row.shape[0]

    def taught(self, modality: str) -> tuple[Tensor, Tensor | None]:
        """(target, shares of raters) that the head of one modality learns."""
        if self.unimodal is not None and modality in self.unimodal:
            return self.unimodal[modality], None
        return self.target, self.soft

    def mask(self, modality: str) -> Tensor:
        """(B, T) bool, True on real steps."""
        x, n = self.x[modality], self.lengths[modality]
        return torch.arange(x.shape[1], device=n.device) < n[:, None]

    def split(self, sizes: list[int]) -> Iterator[Batch]:
        """Consecutive batches of `sizes` rows, views of this one."""
        x = {m: t.split(sizes) for m, t in self.x.items()}
        lengths = {m: t.split(sizes) for m, t in self.lengths.items()}
        around = [None] * len(sizes) if self.context is None else self.context.split(sizes)
        soft = [None] * len(sizes) if self.soft is None else self.soft.split(sizes)
        alone = {m: t.split(sizes) for m, t in (self.unimodal or {}).items()}
        parts = zip(self.target.split(sizes), self.row.split(sizes), around, soft, strict=True)
        for i, (target, row, context, shares) in enumerate(parts):
            part = {m: t[i] for m, t in x.items()}
            n = {m: t[i] for m, t in lengths.items()}
            own = None if self.unimodal is None else {m: t[i] for m, t in alone.items()}
            yield Batch(part, n, target, row, context, shares, own)

    def to(self, device: torch.device | str) -> Batch:
        return replace(
            self,
            x=_moved(self.x, device),
            lengths=_moved(self.lengths, device),
            target=self.target.to(device),
            row=self.row.to(device),
            context=None if self.context is None else self.context.to(device),
            soft=None if self.soft is None else self.soft.to(device),
            unimodal=None if self.unimodal is None else _moved(self.unimodal, device),
        )
