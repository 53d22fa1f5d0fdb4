"""Sequences to vectors, and features to a common scale.

Nothing beyond the mask is read, not even if it is NaN.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def zero_padding(x: Tensor, mask: Tensor) -> Tensor:
    """x (B, T, D) with zeros where mask (B, T) is False. A product would keep NaN."""
    return x.where(mask[..., None], 0)


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """(B, D) mean over the real steps of x (B, T, D); zeros for a row without any.

    >>> x, mask = torch.tensor([[[1.0], [3.0], [torch.nan]]]), torch.tensor([[True, True, False]])
    >>> masked_mean(x, mask).item()
    2.0
    """
    return zero_padding(x, mask).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)


def masked_mean_std(x: Tensor, mask: Tensor) -> Tensor:
    """(B, 2D) mean and standard deviation (of the population, so 0 for one step) over the real
    steps of x (B, T, D).
    """
    x = zero_padding(x, mask)
    mean = masked_mean(x, mask)
    variance = masked_mean((x - mean[:, None]).square(), mask)
    return torch.cat([mean, (variance + 1e-8).sqrt()], 1)


class Moments:
    """Mean and standard deviation per channel over chunks (N, D), merged in float64 (Chan et al.
    1979).
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean = torch.zeros((), dtype=torch.float64)
        # sum of squared deviations from the mean
        self.square = torch.zeros((), dtype=torch.float64)

    @torch.no_grad()
    def update(self, chunk: Tensor) -> None:
        if len(chunk) == 0:
            return
        x = chunk.double()
        mean = x.mean(0)
        delta, total = mean - self.mean, self.count + len(x)
        within = (x - mean).square().sum(0)
        between = delta.square() * (self.count * len(x) / total)
        self.square = self.square + within + between
        self.mean = self.mean + delta * (len(x) / total)
        self.count = total

    def part(self, first: int, end: int) -> Moments:
        """The moments of the channels `first` to `end` (not included)."""
        found = Moments()
        if self.count:
            found.count = self.count
            found.mean, found.square = self.mean[first:end], self.square[first:end]
        return found


class Standardise(nn.Module):
    """(x - mean) / std per channel, the statistics those of the training rows: set once before
    training, kept in the checkpoint, the identity until then. Frozen encoders have channels whose
    offset is many times their spread.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("std", torch.ones(width))

    @torch.no_grad()
    def set(self, moments: Moments) -> None:
        """A channel that is constant up to rounding keeps std 1 (float16 features carry
        11 bits).
        """
        if moments.count:
            std = (moments.square / moments.count).sqrt()
            self.mean.copy_(moments.mean)
            self.std.copy_(std.where(std > 1e-4 * moments.mean.abs() + 1e-8, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


class AttentiveStatistics(nn.Module):
    """Mean and standard deviation over the steps of x (B, T, D), weighted by attention (Okabe et
    al. 2018): e_t = v . tanh(W x_t + b), weights softmax(e) over the real steps.

    (B, 2D); zeros for a row without steps.
    """

    def __init__(self, width: int, attention: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(width, attention)
        self.score = nn.Linear(attention, 1, bias=False)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = zero_padding(x, mask)
        scores = self.score(torch.tanh(self.hidden(x)))[..., 0]
        # not -inf, which would give NaN in a row without steps
        weights = scores.masked_fill(~mask, torch.finfo(scores.dtype).min).softmax(1) * mask
        mean = torch.einsum("bt,btd->bd", weights, x)
        variance = torch.einsum("bt,btd->bd", weights, (x - mean[:, None]).square())
        found = torch.cat([mean, (variance + 1e-8).sqrt()], 1)
        return found.where(mask.any(1, keepdim=True), 0)
