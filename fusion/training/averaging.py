"""An exponential moving average of a model's weights over the steps of its training (Polyak and
Juditsky 1992; the warm-up of the decay is that of TensorFlow's ExponentialMovingAverage).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

WARM_UP = 10  # the decay at step t is at most (1 + t) / (WARM_UP + t)


class WeightAverage:
    """The average of the parameters; buffers (scales, counts) stay the model's own."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model, self.decay, self.steps = model, decay, 0
        self.weights = {name: p.detach().clone() for name, p in model.named_parameters()}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights as they are after a step."""
        decay = min(self.decay, (1 + self.steps) / (WARM_UP + self.steps))
        now = [p.detach() for p in self.model.parameters()]
        torch._foreach_lerp_(list(self.weights.values()), now, 1 - decay)
        self.steps += 1

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model has the average as its weights, until the block ends."""
        own = {name: p.detach().clone() for name, p in self.model.named_parameters()}
        self._give(self.weights)
        try:
            yield
        finally:
            self._give(own)

    def fill(self, weights: Mapping[str, Tensor], steps: int) -> None:
        """Go on from an average that was kept."""
        self.steps = steps
        for name, mine in self.weights.items():
            mine.copy_(weights[name])

    @torch.no_grad()
    def _give(self, weights: Mapping[str, Tensor]) -> None:
        for name, p in self.model.named_parameters():
            p.copy_(weights[name])
