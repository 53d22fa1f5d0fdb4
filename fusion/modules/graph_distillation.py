"""The GD-Unit (DMD section 3.2): a fully connected graph over the modalities whose edge weights are
learned per utterance.

One class serves the homogeneous and the heterogeneous space. Edge e says how much its teacher's
prediction guides its student.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mer.fusion.losses.precision import widened

# Which edges the published priors favour, as (student, teacher); "the edge V -> A that emerges" is
# one of them.
AUTHORS_EDGES = {
    "homo": {("vision", "text"), ("audio", "text")},
    "hetero": {("vision", "text"), ("audio", "text"), ("audio", "vision")},
}


def authors_prior(modalities: tuple[str, ...], space: str) -> list[float]:
    """Softmax(favoured / 0.25) over all ordered pairs: .482 or .327 on the favoured edges of three
    modalities.
    """
    favoured = torch.tensor([float(pair in AUTHORS_EDGES[space]) for pair in pairs(modalities)])
    return (favoured / 0.25).softmax(0).tolist()


def pairs(modalities: tuple[str, ...]) -> list[tuple[str, str]]:
    """All (student, teacher), student-major: for L, V, A that is L<-V, L<-A, V<-L, V<-A, A<-L,
    A<-V.
    """
    return [(s, t) for s in modalities for t in modalities if s != t]


class GDUnit(nn.Module):
    """z_m = [W_logit logit_m ; W_repr repr_m], score(j <- i) = W_edge [z_j ; z_i], edges =
    softmax(score / temperature).

    `softmax`: over `all` edges of an utterance (published) or over those `incoming` to one student.
    `prior`: `uniform`, or `authors` for the published one of this `space`; it is added to the edges
    where they weigh a distance, and the regulariser (fusion.losses.graph) holds the mean edge near
    it.
    """

    student: Tensor  # (E,) positions of the edges' ends among the modalities
    teacher: Tensor
    prior: Tensor  # (E,)

    def __init__(
        self, modalities: tuple[str, ...], outputs: int, width: int, size: int, *, space: str,
        softmax: str = "all", temperature: float = 8.0, prior: str = "uniform",
    ):  # fmt: skip
        super().__init__()
        self.modalities, self.pairs = modalities, pairs(modalities)
        self.softmax, self.temperature = softmax, temperature
        self.logit, self.representation = nn.Linear(outputs, size), nn.Linear(width, size)
        self.edge = nn.Linear(4 * size, 1)
        students = torch.tensor([modalities.index(student) for student, _ in self.pairs])
        teachers = torch.tensor([modalities.index(teacher) for _, teacher in self.pairs])
        self.register_buffer("student", students, persistent=False)
        self.register_buffer("teacher", teachers, persistent=False)
        if prior == "uniform":
            competing = len(modalities) - 1 if softmax == "incoming" else len(self.pairs)
            value = [1 / competing] * len(self.pairs)
        else:
            value = authors_prior(modalities, space)
        self.register_buffer("prior", torch.tensor(value), persistent=False)

    def scores(self, logits: Tensor, representations: Tensor) -> Tensor:
        """logits (M, B, C), representations (M, B, d) -> (E, B), before the softmax."""
        z = torch.cat([self.logit(logits), self.representation(representations)], -1)
        return widened(self.edge(torch.cat([z[self.student], z[self.teacher]], -1)).squeeze(-1))

    def forward(
        self, logits: Tensor, representations: Tensor, present: Tensor | None = None
    ) -> Tensor:
        """(E, B) edges, of the arguments of `scores`.

        `present` (M, B) bool: an edge from or to an absent modality weighs 0.
        """
        score = self.scores(logits, representations) / self.temperature
        if present is None:
            present = torch.ones(logits.shape[:2], dtype=torch.bool, device=logits.device)
        usable = present[self.student] & present[self.teacher]
        # not -inf: an utterance without edges must not become NaN
        score = score.masked_fill(~usable, torch.finfo(score.dtype).min)
        if self.softmax == "all":
            return score.softmax(0) * usable
        per_student = score.unflatten(0, (len(self.modalities), -1))  # the pairs are student-major
        return per_student.softmax(1).flatten(0, 1) * usable

    def weights(self, edges: Tensor, present: Tensor) -> Tensor:
        """(E, B): edge + prior, 0 where one of the two modalities is absent."""
        return (edges + self.prior[:, None]) * (present[self.student] & present[self.teacher])

    def names(self) -> list[str]:
        """`teacher->student` of every edge."""
        return [f"{t}->{s}" for s, t in self.pairs]
