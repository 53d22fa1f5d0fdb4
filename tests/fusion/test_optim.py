"""One pass of the optimizer and clipping against what PyTorch does parameter by parameter."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from mer.fusion import config, optim

from tests.fusion.models import Operators, make_batch, make_model, make_spec


@pytest.mark.parametrize("longest", [0.1, 1.0, 100.0])
def test_gradients_are_scaled_as_pytorch_scales_them(longest):
    torch.manual_seed(0)
    ours = [torch.nn.Parameter(torch.zeros(3, 4)) for _ in range(3)]
    theirs = [torch.nn.Parameter(torch.zeros(3, 4)) for _ in range(3)]
    for a, b in zip(ours[:2], theirs[:2], strict=True):  # the last one was not used
        a.grad = torch.randn(3, 4)
        b.grad = a.grad.clone()
    norm = optim.clip_gradients(ours, longest)
    torch.testing.assert_close(norm, torch.nn.utils.clip_grad_norm_(theirs, longest))
    for a, b in zip(ours[:2], theirs[:2], strict=True):
        torch.testing.assert_close(a.grad, b.grad)
    assert ours[2].grad is None


def test_a_gradient_that_is_not_finite_shows():
    p = torch.nn.Parameter(torch.zeros(2))
    p.grad = torch.tensor([1.0, torch.nan])
    assert optim.clip_gradients([p], 1.0).isnan()


def test_without_any_gradient_there_is_nothing_to_clip():
    assert float(optim.clip_gradients([torch.nn.Parameter(torch.zeros(2))], 1.0)) == 0


def step(model, optimizer, batch) -> None:
    """One step of training as `run_epoch` takes it."""
    weights = model.weights(1.0)
    terms = model.losses(batch, 1.0)
    sum(weights[name] * value for name, value in terms.items()).backward()
    optim.clip_gradients(list(model.parameters()), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


@pytest.mark.parametrize("name", ["concat", "drkf"])
def test_steps_are_those_of_adamw_parameter_by_parameter(name):
    """Up to rounding, with decay, a rate of its own for the temperature, and three steps. In
    float64: AdamW blows up gradients that are nothing but rounding (of the keys' bias).
    """
    spec = make_spec()
    ours = make_model(name, spec).double()
    theirs = copy.deepcopy(ours)
    batch = make_batch(spec, 8)
    batch = replace(batch, x={m: x.double() for m, x in batch.x.items()})
    settings = config.load(model=name, sets=["optim.weight_decay=0.1"])
    plain = torch.optim.AdamW(
        optim.parameter_groups(theirs, settings), betas=settings.optim.betas, foreach=False
    )
    for model, optimizer in ((ours, optim.adamw(ours, settings)), (theirs, plain)):
        for number in range(3):
            torch.manual_seed(number)
            step(model, optimizer, batch)
    for (key, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6, msg=key)


# What a step asks PyTorch for, optimizer and clipping included, at small sizes with all three
# modalities. More is overhead that creeps in; whoever needs it says so here.
OPERATORS = {"concat": 180, "drkf": 3871, "dmd": 4847, "dhmd": 6175}


@pytest.mark.parametrize("name", OPERATORS)
def test_a_step_is_no_more_operators_than_it_was(name):
    spec = make_spec(("audio", "text", "vision"))
    model, batch = make_model(name, spec), make_batch(spec, 8)
    optimizer = optim.adamw(model, config.load(model=name))
    step(model, optimizer, batch)
    with Operators() as asked:
        step(model, optimizer, batch)
    assert asked.count <= OPERATORS[name]
