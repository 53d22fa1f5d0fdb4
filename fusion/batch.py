"""What flows from the store to a model: padded tensors, and their true lengths beside them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class DataSpec:
    """What a model must know of a store before it sees a batch.

    `modalities` maps name to feature width D, in the fixed order audio, text, vision (those that
    are present). `frame_rates` maps name to steps per second (None for tokens and for
    utterance-level vectors). `task` is single | multi | regression; `labels` names the classes (for
    regression: the one target).
    """

    modalities: dict[str, int]
    frame_rates: dict[str, float | None]
    task: str
    labels: tuple[str, ...]

    @property
    def outputs(self) -> int:
        """Width of the prediction: C classes, C labels, or 1."""
        return 1 if self.task == "regression" else len(self.labels)


@dataclass(frozen=True)
class Batch:
    """`x[m]` (B, T_m, D_m) float, zero beyond `lengths[m]` (B,) int64; a length of 0 says the
    modality is absent for that row.

    `target`: single (B,) int64; multi (B, C) float; regression (B, 1) float. Unlabelled: -1 / NaN.
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
