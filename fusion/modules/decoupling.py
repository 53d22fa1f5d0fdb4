"""Feature decoupling of DMD (section 3.1): every modality is projected to one width, then split by
a private encoder into what is its own (S_m) and by one shared encoder into what all modalities have
in common (C_m); a decoder must restore the projection from the two, and the private encoder must
find S_m again in what was restored.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mer.pipeline.errors import DataError
from mer.pipeline.runtime.terminal import plural


@dataclass(frozen=True)
class Decoupled:
    """One modality, decoupled; each (B, T, d) and 0 beyond `mask` (B, T) unless padding is treated
    as data.

    origin X~_m, specific S_m, shared C_m, restored X^_m = D_m(S_m, C_m), again S^_m = E_m(X^_m).
    """

    origin: Tensor
    specific: Tensor
    shared: Tensor
    restored: Tensor
    again: Tensor
    mask: Tensor


class Decoupling(nn.Module):
    """From features of `widths`, projected by convolutions of `kernels`, to `Decoupled`, all by
    modality.

    The projection keeps T (zero-padded convolution), so any length works, an utterance-level vector
    (T = 1) included. `valid`: as published, an unpadded convolution that drops kernel - 1 steps and
    needs at least `kernel` of them.
    """

    def __init__(
        self, widths: dict[str, int], width: int, kernels: dict[str, int], *, valid: bool = False
    ):
        super().__init__()
        self.kernels, self.valid = dict(kernels), valid
        self.project = nn.ModuleDict(
            {m: nn.Conv1d(n, width, kernels[m], bias=False) for m, n in widths.items()}
        )
        self.private = nn.ModuleDict({m: nn.Linear(width, width, bias=False) for m in widths})
        self.common = nn.Linear(width, width, bias=False)
        self.decoder = nn.ModuleDict({m: nn.Linear(2 * width, width, bias=False) for m in widths})

    def forward(self, modality: str, x: Tensor, mask: Tensor) -> Decoupled:
        """x (B, T, D) with zeros beyond `mask` (B, T), decoupled into T' = T steps (`valid`: T -
        kernel + 1).
        """
        kernel = self.kernels[modality]
        x = x.transpose(1, 2)
        if not self.valid:
            x = F.pad(x, ((kernel - 1) // 2, kernel // 2))
        elif x.shape[2] < kernel:
            raise DataError(
                f"{modality}: {plural(x.shape[2], 'step is', 'steps are')} fewer than the "
                f"convolution's kernel {kernel}; "
                f"set model_args.kernel_{modality} lower or leave out as_published "
                "'valid_convolution'"
            )
        else:  # an utterance keeps its whole windows; one shorter than the kernel keeps its first
            steps = torch.arange(x.shape[2] - kernel + 1, device=mask.device)
            length = mask.sum(1, keepdim=True)
            mask = (steps < (length - kernel + 1).clamp_min(1)) & (length > 0)
        origin = self.project[modality](x).transpose(1, 2)
        specific, shared = self.private[modality](origin), self.common(origin)
        restored = self.decoder[modality](torch.cat([specific, shared], -1))
        return Decoupled(origin, specific, shared, restored, self.private[modality](restored), mask)
