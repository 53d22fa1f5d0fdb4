"""`model_args.target_heads`: one head answers all of several targets, or each has its own; the
contract of models holds either way.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mer.fusion.models import REGISTRY, build, model_class
from mer.pipeline.errors import DataError

from tests.fusion.models import SMALL, make_batch, make_model, make_spec, total

NAMES = ("valence", "arousal", "dominance")
MODELS = sorted(REGISTRY)


def spec_of(model: str):
    names = ("audio", "text") if model != "vision" else ("audio", "vision")
    return replace(make_spec(names, "regression"), labels=NAMES)


def batch_of(model: str, **given):
    spec = spec_of(model)
    batch = make_batch(spec, summary=model_class(model)[0].summary, **given)
    g = torch.Generator().manual_seed(3)
    return replace(batch, target=torch.randn(len(batch), len(NAMES), generator=g))


def last_head(net):
    """The module that gives the answer."""
    return next(getattr(net, name) for name in ("ec", "head", "fused_head") if hasattr(net, name))


@pytest.mark.parametrize("model", MODELS)
def test_each_target_is_answered_by_its_own_head_alone(model):
    net = make_model(model, spec_of(model), target_heads="per_target").eval()
    answers = net(batch_of(model)).logits
    assert answers.shape == (8, len(NAMES))
    heads = last_head(net).heads
    assert len(heads) == len(NAMES)
    for target in range(len(NAMES)):
        net.zero_grad()
        answers[:, target].square().sum().backward(retain_graph=True)
        for number, head in enumerate(heads):
            moved = any(p.grad is not None and p.grad.any() for p in head.parameters())
            assert moved == (number == target)


@pytest.mark.parametrize("model", MODELS)
def test_padding_and_company_change_no_answer_and_it_learns(model):
    net = make_model(model, spec_of(model), target_heads="per_target")
    dirty = batch_of(model, padding=float("nan"))
    net.eval()
    answers = net(batch_of(model)).logits
    torch.testing.assert_close(net(dirty).logits, answers)
    alone = next(iter(batch_of(model).split([1, 7])))
    torch.testing.assert_close(net(alone).logits[0], answers[0], atol=1e-5, rtol=1e-4)
    net.train()
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-2)
    first = None
    for _ in range(12):
        torch.manual_seed(0)
        loss = total(net, batch_of(model))[0]
        first = loss.item() if first is None else first
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < first


@pytest.mark.parametrize("model", MODELS)
def test_the_default_is_as_it_was(model):
    spec = spec_of(model)
    plain, named = (make_model(model, spec, **more) for more in ({}, {"target_heads": "shared"}))
    assert plain.state_dict().keys() == named.state_dict().keys()
    assert not any(".heads." in name for name in plain.state_dict() if "attention" not in name)


@pytest.mark.parametrize("task", ["single", "multi", "regression"])
def test_without_several_targets_it_is_refused(task):
    for model in ("concat", "drkf", "dmd"):
        args = model_class(model)[1](**SMALL.get(model, {}), target_heads="per_target")
        with pytest.raises(DataError, match="per_target: for a regression on several targets"):
            build(model, args, make_spec(task=task))
