"""One pass of the optimizer and clipping against what PyTorch does parameter by parameter."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from mer.fusion import config
from mer.fusion.data import sources, splits
from mer.fusion.models import build
from mer.fusion.training import experiment, one_epoch, optim, resume, training_setup
from mer.pipeline.errors import DataError

from tests.fusion.models import Operators, make_batch, make_model, make_spec
from tests.fusion.stores import make_store


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
OPERATORS = {"concat": 180, "drkf": 3871, "dmd": 4841, "dhmd": 6169}


@pytest.mark.parametrize("name", OPERATORS)
def test_a_step_is_no_more_operators_than_it_was(name):
    spec = make_spec(("audio", "text", "vision"))
    model, batch = make_model(name, spec), make_batch(spec, 8)
    optimizer = optim.adamw(model, config.load(model=name))
    step(model, optimizer, batch)
    with Operators() as asked:
        step(model, optimizer, batch)
    assert asked.count <= OPERATORS[name]


def test_a_plateau_is_that_of_pytorch():
    """For random walks of the loss, epoch by epoch."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        losses = np.abs(1 + 0.05 * rng.normal(size=40).cumsum()).round(3).tolist()
        p = torch.nn.Parameter(torch.zeros(1))
        plain = torch.optim.SGD([p], lr=1.0)
        theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(plain, factor=0.5, patience=3)
        for epoch, loss in enumerate(losses, start=1):
            theirs.step(loss)
            ours = optim.plateau(losses[:epoch], 0.5, 3)
            assert ours == pytest.approx(plain.param_groups[0]["lr"])


def test_an_epoch_is_that_of_the_authors_of_dmd(tmp_path):
    """Adam, batches summed, every number of the gradient clipped after each batch, and the group
    that is left at the end of an epoch dropped: the loop of their trainer, written out.
    """
    store = make_store(tmp_path, n=60, task="regression")
    sets = ("accumulate=4", "accumulate_as=sum", "clip=inf", "clip_value=0.02", "warmup=0")
    more = ("schedule=constant", "betas=0.9,0.999", "weight_decay=0", "lr=0.01")
    chosen = config.load(
        model="concat",
        sets=[
            "train.batch_size=4",
            "model_args.dropout=0",
            *(f"optim.{one}" for one in (*sets, *more)),
        ],
    )
    spec = training_setup.spec_of(store, chosen)
    target = splits.targets(store.table(), "regression", spec.labels)
    rows = np.arange(39)  # ten batches: two steps, and two batches that are left
    part = sources.batch_source(
        store, spec, chosen.data, rows, target[rows], device="cpu", summary=True
    )
    ours = build("concat", chosen.model_args, spec)
    theirs = copy.deepcopy(ours)
    passed = one_epoch.run_epoch(ours, optim.adamw(ours, chosen), part, chosen, 1, 2)
    assert passed.step == 2

    adam = torch.optim.Adam(theirs.parameters(), lr=0.01)
    left = 4
    for batch in part.batches(part.shuffled(4, (0, 1))):
        if left == 4:
            adam.zero_grad()
        left -= 1
        theirs.losses(batch, 0.0)["ec"].backward()
        torch.nn.utils.clip_grad_value_(list(theirs.parameters()), 0.02)
        if not left:
            adam.step()
            left = 4
    for (key, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6, msg=key)


def test_too_few_batches_for_a_summed_step_are_one_line(tmp_path):
    store = make_store(tmp_path, n=60)
    few = ("optim.accumulate=10", "optim.accumulate_as=sum")
    chosen = config.load(model="concat", sets=few)
    with pytest.raises(DataError, match="an epoch has 2 batches"):
        experiment.train(store, chosen, tmp_path / "run", note=lambda line: None)


def test_the_rate_of_a_training_falls_on_a_plateau_and_a_resume_knows(tmp_path, monkeypatch):
    monkeypatch.setattr(resume, "SAVE_SECONDS", 0)
    store = make_store(tmp_path, n=60, shuffled_labels=True)
    sets = ("schedule=plateau", "plateau_patience=0", "warmup=0", "lr=0.05")
    chosen = config.load(
        model="concat",
        sets=["train.epochs=8", "train.patience=8", "model_args.hidden=8"]
        + [f"optim.{one}" for one in sets],
    )
    whole = experiment.train(store, chosen, tmp_path / "whole", note=lambda line: None)
    entries = [json.loads(line) for line in (whole.path / "log.jsonl").read_text().splitlines()]
    losses = [entry["dev"]["loss"] for entry in entries]
    for epoch, entry in enumerate(entries):
        assert entry["lr"] == pytest.approx(0.05 * optim.plateau(losses[:epoch], 0.5, 0))
    assert entries[-1]["lr"] < 0.05

    class Killed(BaseException):
        pass

    def kill(line: str) -> None:
        if line.startswith("epoch   5"):
            raise Killed

    with pytest.raises(Killed):
        experiment.train(store, chosen, tmp_path / "cut", note=kill)
    again = experiment.train(store, chosen, tmp_path / "cut", note=lambda line: None)
    weights = [(one.path / "model.safetensors").read_bytes() for one in (whole, again)]
    assert weights[0] == weights[1]
