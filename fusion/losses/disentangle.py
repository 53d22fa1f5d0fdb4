"""What keeps the shared and the specific part of a modality apart (DMD section 3.1): orthogonality,
step by step.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from mer.fusion.losses.precision import widened


def orthogonality(
    specific: Tensor, shared: Tensor, mask: Tensor, *, kind: str = "squared"
) -> Tensor:
    """Mean over real steps of how parallel S_m and C_m are; both (B, T, d), mask (B, T). 0 where no
    step is real.

    kind: `squared` cos^2; `absolute` |cos|; `hinge` max(0, cos), the published one, which is
    content with opposites.

    >>> import torch
    >>> specific, shared = torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[-2.0, 0.0]]])
    >>> orthogonality(specific, shared, torch.tensor([[True]])).item()
    1.0
    """
    cosine = F.cosine_similarity(widened(specific), widened(shared), dim=-1, eps=1e-6)
    cosine = cosine.where(mask, 0)
    value = {"squared": cosine.square, "absolute": cosine.abs, "hinge": cosine.relu}[kind]()
    return value.sum() / mask.sum().clamp(min=1)


def orthogonality_over_batch(specific: Tensor, shared: Tensor) -> Tensor:
    """What the published call computed under torch 1.x: it summed over the batch, padding included,
    where it meant the features, so it compares each feature of the two parts across utterances.
    Kept to reproduce the public model.
    """
    s, c = widened(specific), widened(shared)
    dot, s_square, c_square = (s * c).sum(0), (s * s).sum(0), (c * c).sum(0)
    return (dot / ((s_square + 1e-12) * (c_square + 1e-12)).sqrt()).relu().mean()
