"""The layers of a frozen encoder, mixed into one by learned weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mer.fusion.modules.pooling import Standardise


class LayerMix(nn.Module):
    """sum_l softmax(w)_l (x_l - mean_l) / std_l over the layers l that lie side by side in x
    (SUPERB, Yang et al. 2021, arXiv 2105.01051).

    It begins with equal weights. Each layer is standardised first, channel by channel, with the
    statistics of the training rows: the residual stream of an encoder grows from layer to layer, so
    that without a common scale the last ones drown the others and the weights say nothing. (S3PRL's
    option for that, a layer norm of each frame, also takes away how loud and how far from the
    average the frame is.)
    """

    def __init__(self, layers: int, width: int) -> None:
        super().__init__()
        self.layers, self.width = layers, width
        self.standardise = Standardise(layers * width)
        self.weight = nn.Parameter(torch.zeros(layers))

    def forward(self, x: Tensor) -> Tensor:
        """(..., layers * width), the first `width` numbers of the first layer -> (..., width)."""
        x = self.standardise(x).unflatten(-1, (self.layers, self.width))
        return (x * self.shares()[:, None]).sum(-2)

    def shares(self) -> Tensor:
        """(layers,) the weights, which sum to 1."""
        return self.weight.softmax(0)
