"""A learned dictionary over which every modality of a space expresses itself (DHMD's fine stage;
our reconstruction, see docs/papers/dhmd.md): if two modalities of an utterance light up the same
atoms, they speak at the same semantic granularity.

    q_m = Query_m(F_m)                     (B, T, d)
    sim = q_m D' / (sqrt(d) tau)           (B, T, K), padding -inf
    a_m = sparsemax(max over t of sim)     (B, K)     activation
    e_m = a_m D, normalised                (B, d)     code
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mer.fusion.losses.precision import widened


@dataclass(frozen=True)
class Matches:
    """What the modalities of one space found: activation (M, B, K), rows on the simplex; code (M,
    B, d), unit rows. Both are 0 for an absent modality.
    """

    activation: Tensor
    code: Tensor


def sparsemax(z: Tensor) -> Tensor:
    """Euclidean projection of the last axis onto the simplex (Martins and Astudillo 2016, alg. 1):
    like softmax, with exact zeros.

    >>> sparsemax(torch.tensor([1.0, 0.5, -1.0]))
    tensor([0.7500, 0.2500, 0.0000])
    """
    z = widened(z)
    ordered = z.sort(-1, descending=True).values
    rank = torch.arange(1, z.shape[-1] + 1, device=z.device, dtype=z.dtype)
    total = ordered.cumsum(-1)
    support = (1 + rank * ordered > total).sum(-1, keepdim=True)  # the condition holds for a prefix
    threshold = (total.gather(-1, support - 1) - 1) / support
    return (z - threshold).clamp(min=0)


def query_map(width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.LayerNorm(width),
        nn.Linear(width, width),
        nn.GELU(),
        nn.LayerNorm(width),
        nn.Linear(width, width),
    )


class Dictionary(nn.Module):
    """`shared`: the modalities look up one set of `atoms`; otherwise each has its own (an ablation:
    then nothing makes atom k of one modality mean what atom k of another means, but the losses).
    """

    def __init__(
        self, modalities: tuple[str, ...], width: int, atoms: int, *,
        shared: bool = True, activation: str = "sparsemax", temperature: float = 2.0,
    ):  # fmt: skip
        super().__init__()
        self.modalities, self.activation = modalities, activation
        self.scale = 1 / (math.sqrt(width) * temperature)
        self.atoms = nn.Parameter(torch.empty(1 if shared else len(modalities), atoms, width))
        for book in self.atoms:
            nn.init.xavier_normal_(book)
        self.query = nn.ModuleDict({m: query_map(width) for m in modalities})

    def forward(self, sequences: dict[str, Tensor], masks: dict[str, Tensor]) -> Matches:
        """sequences (B, T_m, d), masks (B, T_m) bool, by modality."""
        found = [
            self.look_up(m, self.atoms[i % len(self.atoms)], sequences[m], masks[m])
            for i, m in enumerate(self.modalities)
        ]
        return Matches(*(torch.stack(part) for part in zip(*found, strict=True)))

    def look_up(
        self, modality: str, atoms: Tensor, x: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        similarity = widened(self.query[modality](x) @ atoms.T) * self.scale
        least = torch.finfo(similarity.dtype).min
        strongest = similarity.masked_fill(~mask[..., None], least).amax(1)
        present = mask.any(1, keepdim=True)
        strongest = strongest.where(present, 0)  # an absent modality has no finite maximum
        sparse = self.activation == "sparsemax"
        activation = (sparsemax(strongest) if sparse else strongest.softmax(-1)) * present
        return activation, F.normalize(activation @ widened(atoms), dim=-1, eps=1e-6)


def jensen_shannon(p: Tensor, q: Tensor) -> Tensor:
    """Over the last axis, in nats, between 0 and log 2.

    Exact zeros are fine, and so are their gradients.

    >>> jensen_shannon(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])).exp().item()
    2.0
    """

    def entropy(x: Tensor) -> Tensor:
        return -(x * x.clamp(min=1e-12).log()).sum(-1)

    return entropy((p + q) / 2) - (entropy(p) + entropy(q)) / 2


def usage_entropy(usage: Tensor) -> Tensor:
    """Entropy of the mean activation (..., K), divided by log K: 1 if all atoms are used alike, 0
    if one does everything.
    """
    share = usage / usage.sum(-1, keepdim=True).clamp(min=1e-12)
    return -(share * share.clamp(min=1e-12).log()).sum(-1) / math.log(usage.shape[-1])


def dead_atoms(usage: Tensor) -> Tensor:
    """Share of atoms (..., K) that get less than a hundredth of an equal share."""
    share = usage / usage.sum(-1, keepdim=True).clamp(min=1e-12)
    return (share < 0.01 / usage.shape[-1]).float().mean(-1)


def top_atom_overlap(activation: Tensor, present: Tensor) -> Tensor:
    """Share of (utterance, pair of modalities) with the same strongest atom; activation (M, B, K),
    present (M, B).
    """
    m = len(activation)
    first, second = torch.triu_indices(m, m, 1, device=activation.device)
    both = present[first] & present[second]
    top = activation.argmax(-1)
    return ((top[first] == top[second]) & both).sum() / both.sum().clamp(min=1)
