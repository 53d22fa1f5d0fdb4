"""Writes oracle.json: values of the definition in plain loops (oracle.loops), float64, frozen, so
that a change of the oracle and of what is held to it cannot go together unnoticed. Run as `python
-m tests.ops.frozen`, by hand, and only when a term is added.

Inputs are not random numbers of a library but sines, the same everywhere: entry (i, j) of view v is
sin(1.7 v + 2.3 i + 3.1 j + 0.4).
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from tests.ops import cases, oracle

FILE = Path(__file__).with_name("oracle.json")
ROWS, WIDTH, TAU = 4, 3, 0.3
LABELS = [1, 0, 1, -1]


def inputs(name: str) -> tuple[list[Tensor], tuple, list[Tensor]]:
    """(views, terms, labels)."""
    terms, paired, queue = cases.TERMS[name]
    sizes = [ROWS] * paired + [2] * (queue > 0)
    views = [
        torch.sin(
            1.7 * v
            + 2.3 * torch.arange(n, dtype=torch.float64)[:, None]
            + 3.1 * torch.arange(WIDTH, dtype=torch.float64)
            + 0.4
        )
        for v, n in enumerate(sizes)
    ]
    return views, terms, [torch.tensor(LABELS[:n]) for n in sizes]


def values(function, name: str, mode: str) -> list[Tensor]:
    """[losses, d views..., d tau] of sum_t (t+1) loss_t."""
    views, terms, labels = inputs(name)
    tau, weights = (
        torch.tensor(TAU, dtype=torch.float64),
        torch.arange(1.0, 1 + len(terms), dtype=torch.float64),
    )
    return oracle.gradients(
        lambda v, t: function(v, t, terms, labels if mode != "none" else None, mode),
        views,
        tau,
        weights,
    )


if __name__ == "__main__":
    found = {
        f"{name}, {mode}": [x.tolist() for x in values(oracle.loops, name, mode)]
        for name in cases.TERMS
        for mode in oracle.MODES
    }
    FILE.write_text(
        "{\n"
        + ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in found.items())
        + "\n}\n"
    )
