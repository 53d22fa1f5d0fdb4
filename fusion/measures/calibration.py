"""Temperature scaling (Guo et al. 2017): one number, fitted on dev, by which logits are divided, so
that a probability says how often the answer is right. No answer changes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from mer.fusion.measures import metrics

# A dev part that is answered without a mistake asks for a temperature of 0.
LOWEST, HIGHEST = 0.25, 10.0
STEPS = 60  # of the golden section: an interval of 3.7 becomes one of 1e-12
GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True)
class Scaling:
    """The temperature, and the calibration error (ECE) and negative log-likelihood of the dev rows
    before and after. They are measured on the very rows that it was fitted on.
    """

    temperature: float
    ece_before: float
    ece_after: float
    nll_before: float
    nll_after: float

    def __str__(self) -> str:
        end = " (its bound: dev is too easy, or too small)" if self._at_a_bound else ""
        return (
            f"temperature {self.temperature:.2f}{end} fitted on dev: ECE {self.ece_before:.3f} -> "
            f"{self.ece_after:.3f}"
        )

    @property
    def _at_a_bound(self) -> bool:
        ends = (LOWEST, HIGHEST)
        return any(math.isclose(self.temperature, end, rel_tol=1e-3) for end in ends)


def fit(scores: np.ndarray, target: np.ndarray) -> Scaling | None:
    """The temperature with the least negative log-likelihood.

    Args:
        scores: (N, C) probabilities.
        target: (N,) the classes; -1: unlabelled.

    Returns:
        It, and what it does; None where no row has a label.

    >>> half = np.array([[0.9, 0.1], [0.9, 0.1]])  # of two such answers one is right
    >>> round(fit(half, np.array([0, 1])).temperature, 3)
    10.0
    """
    known = target >= 0
    scores, target = scores[known], target[known]
    if not len(target):
        return None

    def loss(log_temperature: float) -> float:
        return _nll(scaled(scores, math.exp(log_temperature)), target)

    # The loss is convex in 1/T, so that between its bounds it has one valley.
    low, high = math.log(LOWEST), math.log(HIGHEST)
    for _ in range(STEPS):
        left, right = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
        if loss(left) <= loss(right):
            high = right
        else:
            low = left
    temperature = math.exp((low + high) / 2)
    after = scaled(scores, temperature)
    return Scaling(
        temperature=temperature,
        ece_before=_ece(scores, target),
        ece_after=_ece(after, target),
        nll_before=_nll(scores, target),
        nll_after=_nll(after, target),
    )


def scaled(scores: np.ndarray, temperature: float) -> np.ndarray:
    """Probabilities (N, C) as they are when the logits are divided by `temperature`.

    >>> scaled(np.array([[0.8, 0.2]]), 2.0).round(4)  # 2 to 1
    array([[0.6667, 0.3333]])
    """
    with np.errstate(divide="ignore"):
        logits = np.log(scores) / temperature
    powers = np.exp(logits - logits.max(1, keepdims=True, initial=-np.inf))
    return powers / powers.sum(1, keepdims=True)


def _nll(scores: np.ndarray, target: np.ndarray) -> float:
    chosen = scores[np.arange(len(target)), target]
    return float(-np.log(np.maximum(chosen, np.finfo(float).tiny)).mean())


def _ece(scores: np.ndarray, target: np.ndarray) -> float:
    return metrics.ece(scores.max(1), scores.argmax(1) == target)
