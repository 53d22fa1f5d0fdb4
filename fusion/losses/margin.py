"""DMD's margin loss over the shared parts (eq. 5): an utterance in one modality is to be closer to
the same emotion in another modality than to a different emotion in its own modality, by a margin:

    L = mean over anchors, positives, negatives of max(0, margin - cos(anchor, positive) +
    cos(anchor, negative))
"""

from __future__ import annotations

import torch
from torch import Tensor

from mer.fusion.losses.precision import widened


def mean_hinge(
    similarity: Tensor, positive: Tensor, negative: Tensor, margin: Tensor | float
) -> Tensor:
    """Mean over anchors of the mean over their (positive, negative) pairs of max(0, margin_n - s_p
    + s_n).

    similarity (A, N), positive and negative (A, N) bool, margin a number or (A, N), one per
    negative. Anchors that lack either kind are left out; without any anchor the loss is 0. Exact in
    O(A N log N) time and O(A N) memory: the positives of an anchor are sorted once, and the sum
    over those below a negative's threshold t = s_n + margin_n is k t - (sum of the k smallest).

    >>> s = torch.tensor([[0.5, 0.25, 0.75]])
    >>> positive = torch.tensor([[True, False, False]])
    >>> mean_hinge(s, positive, ~positive, 0.5)  # (0.25 + 0.75) / 2
    tensor(0.5000)
    """
    ascending, order = torch.where(positive, similarity, torch.inf).sort(1)
    real = positive.gather(1, order)
    prefix = torch.nn.functional.pad(torch.where(real, ascending, 0.0).cumsum(1), (1, 0))
    threshold = similarity + margin
    # positives s_p < t; never counts the infinite ones
    below = torch.searchsorted(ascending.detach(), threshold.detach())
    pairs = torch.where(negative, below * threshold - prefix.gather(1, below), 0.0)
    n_pairs = positive.sum(1) * negative.sum(1)
    return (pairs.sum(1) / n_pairs.clamp_min(1)).sum() / (n_pairs > 0).sum().clamp_min(1)


def cosines(x: Tensor) -> Tensor:
    """(N, d) -> (N, N). The 1e-8 under the root is the published one."""
    x = widened(x)
    # the margin is 0.15; bfloat16 resolves 0.004 near 1
    with torch.autocast(x.device.type, enabled=False):
        unit = x / (x.square().sum(1, keepdim=True) + 1e-8).sqrt()
        return unit @ unit.T


def margin_loss(
    x: Tensor, same: Tensor, known: Tensor, present: Tensor, *, margin: float = 0.15
) -> Tensor:
    """x (M, B, d) shared vectors by modality; same (B, B) bool, known (B,) bool, present (M, B)
    bool.

    Anchors are all present, labelled (modality, utterance) pairs; positives are of another modality
    and the same class (the utterance itself included), negatives of the anchor's modality and
    another class.
    """
    m, b, _ = x.shape
    modality = torch.arange(m, device=x.device).repeat_interleave(b)
    usable = (present & known).flatten()
    usable = usable[:, None] & usable[None]
    same, alike = same.repeat(m, m), modality[:, None] == modality[None]
    return mean_hinge(
        cosines(x.flatten(0, 1)), usable & same & ~alike, usable & ~same & alike, margin
    )


def margin_loss_as_published(x: Tensor, score: Tensor) -> Tensor:
    """x (N, d), score (N,): positives are exactly equal floats, negatives everything else, margin
    0.15 |score difference|.
    """
    distance = (score[:, None] - score[None]).abs()
    itself = torch.eye(len(score), dtype=torch.bool, device=x.device)
    return mean_hinge(cosines(x), (distance == 0) & ~itself, distance != 0, 0.15 * distance)
