"""Optimisers without hooks for a compiler: the same numbers, bit for bit, as PyTorch's own."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from mer.fusion.training import optim

STEPS = 5


def stepped(kind, model: nn.Module, saved: dict | None = None, **settings):
    """Train `model` for some steps; the optimiser, so that its state can be saved."""
    optimizer = kind(model.parameters(), **settings)
    if saved is not None:
        optimizer.load_state_dict(saved)
    x = torch.linspace(-1, 1, 24).reshape(8, 3)

    def closure():
        optimizer.zero_grad()
        loss = (model(x) - x.sum(1, keepdim=True).sin()).square().mean()
        loss.backward()
        return loss

    for _ in range(STEPS):
        optimizer.step(closure)
    return optimizer


@pytest.mark.parametrize(
    ("ours", "theirs", "settings"),
    [
        (optim.AdamW, torch.optim.AdamW, {"lr": 0.05, "weight_decay": 0.1}),
        (optim.AdamW, torch.optim.AdamW, {"lr": 0.05, "amsgrad": True}),
        (optim.LBFGS, torch.optim.LBFGS, {"max_iter": 4, "line_search_fn": "strong_wolfe"}),
    ],
    ids=["adamw", "amsgrad", "lbfgs"],
)
def test_the_steps_are_those_of_pytorch(ours, theirs, settings):
    """Also where one goes on from the state of the other."""
    torch.manual_seed(3)
    a = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    b = copy.deepcopy(a)
    before = [p.detach().clone() for p in a.parameters()]
    first, second = stepped(ours, a, **settings), stepped(theirs, b, **settings)
    stepped(theirs, a, copy.deepcopy(first.state_dict()), **settings)
    stepped(ours, b, copy.deepcopy(second.state_dict()), **settings)
    for p, q, start in zip(a.parameters(), b.parameters(), before, strict=True):
        assert torch.equal(p, q)
        assert not torch.equal(p, start)
