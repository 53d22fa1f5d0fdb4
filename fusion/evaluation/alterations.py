"""What is done to a batch to see where a model fails: a modality is taken away, replaced by that of
another utterance, or moved by noise.

Noise is one offset per utterance, the same on all its steps, so that a model that reads steps
cannot average it out and one that reads means sees as much of it; deviations over the steps, which
pooled models read besides, are those of the utterance as it is. Each number's offset is drawn
from a normal distribution whose deviation is `level` times that of the number's utterance means.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mer.fusion.batch import Batch

LEVELS = (0.25, 0.5, 1.0)  # of noise, in deviations of each number
SEED = 0  # of what is drawn

Kind = Literal["without", "swapped", "noise"]
Change = Callable[[Batch], Batch]


class Moments:
    """Mean and deviation of every number of each modality, over the utterances of the batches."""

    def __init__(self) -> None:
        self.sums: dict[str, tuple[float, Tensor | float, Tensor | float]] = {}

    def count(self, batch: Batch) -> Batch:
        """Count the utterances of a batch, which is handed back as it is."""
        for m, x in batch.x.items():
            present = batch.lengths[m] > 0
            mask = batch.mask(m)[present, :, None]
            steps = torch.where(mask, x[present], 0).double()
            mean = steps.sum(1) / mask.sum(1).clamp(min=1)
            n, total, squares = self.sums.get(m, (0.0, 0.0, 0.0))
            self.sums[m] = (n + len(mean), total + mean.sum(0), squares + (mean**2).sum(0))
        return batch

    def deviation(self, modality: str) -> Tensor:
        """(D,)"""
        n, total, squares = self.sums[modality]
        n = max(n, 1.0)
        variance = torch.as_tensor(squares / n - (total / n) ** 2)
        return variance.clamp(min=0).sqrt()


def unchanged(batch: Batch) -> Batch:
    """The batch as it is."""
    return batch


def without(modality: str) -> Change:
    """A change that takes a modality away, as if no utterance had it, nor any of its neighbours."""

    def change(batch: Batch) -> Batch:
        x = batch.x | {modality: batch.x[modality][:, :1] * 0}
        lengths = batch.lengths | {modality: batch.lengths[modality] * 0}
        turns = batch.context
        if turns is not None and modality in turns.there:
            nobody = turns.there | {modality: torch.zeros_like(turns.there[modality])}
            turns = replace(turns, there=nobody)
        return replace(batch, x=x, lengths=lengths, context=turns)

    return change


def swapped(modality: str) -> Change:
    """A change that gives every utterance the modality of another one of its batch, which is about
    as long; an utterance that lacks the modality still lacks it.
    """

    def change(batch: Batch) -> Batch:
        present = torch.nonzero(batch.lengths[modality] > 0).flatten().cpu().numpy()
        drawn = np.random.default_rng(SEED).permutation(present)
        partner = np.arange(len(batch))
        partner[drawn] = np.roll(drawn, 1)  # one cycle: nobody keeps its own, but in a batch of one
        index = torch.from_numpy(partner).to(batch.row.device)
        x = batch.x | {modality: batch.x[modality][index]}
        lengths = batch.lengths | {modality: batch.lengths[modality][index]}
        return replace(batch, x=x, lengths=lengths)

    return change


def noisy(modality: str, level: float, deviation: Tensor, seed: int) -> Change:
    """A change that moves every utterance by an offset of its own, which follows from its row.

    Args:
        modality: Whose steps are moved.
        level: The deviation of the offsets, in units of `deviation`.
        deviation: (D,) of each number over the utterances, as `Moments.deviation` gives it.
        seed: Of the offsets, together with the row.

    Returns:
        The change; padding stays as it is.
    """

    def change(batch: Batch) -> Batch:
        x = batch.x[modality]
        offsets = []
        for row in batch.row.tolist():
            offsets.append(np.random.default_rng((seed, row)).normal(size=x.shape[2]))
        drawn = torch.from_numpy(np.array(offsets).reshape(len(batch), x.shape[2]))
        offset = (level * deviation.cpu() * drawn).to(x)
        moved = torch.where(batch.mask(modality)[..., None], x + offset[:, None], x)
        return replace(batch, x=batch.x | {modality: moved})

    return change


@dataclass(frozen=True)
class Alteration:
    """One way in which a modality may fail. `changes`: how a batch is changed for each training of
    a run.
    """

    what: Kind
    modality: str
    level: float | None
    changes: tuple[Change, ...]


def alterations(
    modalities: Sequence[str], moments: Sequence[Moments], numbers: Mapping[str, int]
) -> Iterator[Alteration]:
    """Every alteration of a run, in the order in which tables show them.

    Args:
        modalities: Those that the run reads; of a single one nothing is left without it.
        moments: For each training of the run those of the rows that are altered.
        numbers: For each modality how many numbers of a step are no deviations over steps, which
            an offset does not change.

    Yields:
        Without each modality, with each swapped, with noise of each level on each.
    """
    if len(modalities) > 1:
        for m in modalities:
            yield Alteration("without", m, None, (without(m),) * len(moments))
    for m in modalities:
        yield Alteration("swapped", m, None, (swapped(m),) * len(moments))
    for place, m in enumerate(modalities):
        for level in LEVELS:
            changes = []
            for each in moments:
                deviation = each.deviation(m)
                deviation[numbers[m] :] = 0
                changes.append(noisy(m, level, deviation, SEED + place))
            yield Alteration("noise", m, level, tuple(changes))
