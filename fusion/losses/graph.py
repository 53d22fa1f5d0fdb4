"""Graph distillation (DMD section 3.2, eqs. 6-8): every modality teaches every other, by the weight
of a learned edge.

    L = sum over edges j <- i of mean over utterances of  w_ji * distance(student j,
    stop-gradient(teacher i))

Shapes: logits (M, B, C), representations (M, B, d), `student` and `teacher` (E,) index tensors,
distances and edges (E, B).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from mer.fusion.losses.precision import widened


def logit_distances(
    logits: Tensor, student: Tensor, teacher: Tensor, *, task: str, temperature: float = 4.0
) -> Tensor:
    """(E, B). regression: |s - t| (published); single: KL(t || s) at `temperature`, times its
    square; multi: the same over each label's own yes and no, summed over labels. Always >= 0, and 0
    iff student and teacher agree.
    """
    s, t = widened(logits)[student], widened(logits).detach()[teacher]
    if task == "regression":
        return (s - t).abs().sum(-1)
    s, t = s / temperature, t / temperature
    if task == "multi":  # a two-way softmax over (logit, 0) is the sigmoid
        s, t = (torch.stack([z, torch.zeros_like(z)], -1) for z in (s, t))
    divergence = (
        F.kl_div(s.log_softmax(-1), t.log_softmax(-1), reduction="none", log_target=True)
        .flatten(2)
        .sum(-1)
    )
    return divergence * temperature**2


def representation_distances(
    x: Tensor, student: Tensor, teacher: Tensor, *, kind: str = "match"
) -> Tensor:
    """(E, B).

    `match`: 1 - cos; `l1`: sum of absolute differences (published, homogeneous space); `repel`:
    max(0, cos), the published heterogeneous term, which drives the modalities apart.
    """
    s, t = widened(x)[student], widened(x).detach()[teacher]
    if kind == "l1":
        return (s - t).abs().sum(-1)
    cosine = F.cosine_similarity(s, t, dim=-1, eps=1e-6)
    return cosine.relu() if kind == "repel" else 1 - cosine


def distillation(distances: Tensor, weights: Tensor) -> Tensor:
    """Sum over edges of the mean over utterances, of distances and weights (E, B).

    >>> distillation(torch.tensor([[1.0, 3.0], [2.0, 2.0]]), torch.tensor([[1.0, 0.0], [0.5, 0.5]]))
    tensor(1.5000)
    """
    return (distances * weights).mean(1).sum()


def edge_regulariser(edges: Tensor, prior: Tensor, complete: Tensor) -> Tensor:
    """Sum over edges of (mean edge - prior)^2; edges (E, B), prior (E,).

    Without it the graph would lower its loss by favouring pairs that agree already. Only `complete`
    (B,) utterances count: an absent modality has no edges to regularise.
    """
    mean = (edges * complete).sum(1) / complete.sum().clamp_min(1)
    return (mean - prior).square().sum() * complete.any()
