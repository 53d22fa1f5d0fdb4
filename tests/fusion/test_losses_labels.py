"""Terms that read labels or posteriors, and reconstruction."""

from __future__ import annotations

import doctest

import pytest
import torch
import torch.nn.functional as F

from mer.fusion.losses import (
    balanced_bce,
    kl_to_label,
    kl_to_posterior,
    masked_mse,
    same_emotion,
    supervised,
    task_loss,
)
from mer.pipeline.errors import DataError

from tests.fusion.models import make_model, make_spec

TASKS = ("single", "multi", "regression")


def logits(b: int = 6, c: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.randn(b, c, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("task", TASKS)
def test_kl_is_zero_only_between_equals_and_never_negative(task):
    """Acceptance 6.1. The authors' term is negative for equal posteriors."""
    p, q = logits(), logits(seed=1)
    assert kl_to_posterior(p, p.clone(), task=task).item() == pytest.approx(0, abs=1e-12)
    for seed in range(5):
        assert kl_to_posterior(p, logits(seed=seed + 1), task=task).item() > 1e-3
    assert (
        kl_to_posterior(p, q, task=task).item()
        != pytest.approx(kl_to_posterior(q, p, task=task).item())
        or task == "regression"
    )


def test_kl_equals_torch_distributions():
    p, q = logits(), logits(seed=1)
    d = torch.distributions
    pairs = {
        "single": (d.Categorical(logits=p), d.Categorical(logits=q)),
        "multi": (d.Bernoulli(logits=p), d.Bernoulli(logits=q)),
        "regression": (d.Normal(p, 1.0), d.Normal(q, 1.0)),
    }
    for task, (a, b) in pairs.items():
        assert kl_to_posterior(p, q, task=task).item() == pytest.approx(
            d.kl_divergence(a, b).mean().item(), abs=1e-10
        )


@pytest.mark.parametrize("task", TASKS)
def test_the_teacher_gets_no_gradient(task):
    p, q = logits().requires_grad_(), logits(seed=1).requires_grad_()
    kl_to_posterior(p, q, task=task).backward()
    assert p.grad is None and q.grad.abs().sum() > 0


def test_kl_to_label_is_cross_entropy_less_the_label_entropy():
    x, y = logits(), torch.tensor([0, 1, 2, 0, 1, 2])
    assert kl_to_label(x, y, task="single", smoothing=0.0).item() == pytest.approx(
        F.cross_entropy(x, y).item(), abs=1e-12
    )
    smooth = F.one_hot(y, 3).double() * 0.9 + 0.1 / 3
    assert kl_to_label(smooth.log(), y, task="single", smoothing=0.1).item() == pytest.approx(
        0, abs=1e-12
    )
    sets = torch.tensor([[1.0, 0, 1]]).double()
    assert kl_to_label(
        torch.logit(sets * 0.9 + 0.05), sets, task="multi", smoothing=0.1
    ).item() == pytest.approx(0, abs=1e-12)
    value = torch.tensor([[1.5], [-2.0]]).double()
    assert kl_to_label(value + 2.0, value, task="regression").item() == pytest.approx(2.0)


def test_unlabelled_rows_do_not_count():
    x = logits(4, 3)
    single, some = torch.tensor([0, -1, 2, -1]), torch.tensor([0, 2])
    multi = torch.tensor([[1.0, 0, 0], [torch.nan] * 3, [0, 1, 1], [torch.nan] * 3]).double()
    value = torch.tensor([[1.0], [torch.nan], [0.5], [torch.nan]]).double()
    for task, target, scores in (
        ("single", single, x),
        ("multi", multi, x),
        ("regression", value, x[:, :1]),
    ):
        known = some if task == "single" else target[[0, 2]]
        for loss in (task_loss, kl_to_label):
            full = scores.clone().requires_grad_()
            term = loss(full, target, task=task)
            term.backward()
            assert term.item() == pytest.approx(
                loss(scores[[0, 2]], known, task=task).item(), abs=1e-12
            )
            assert not full.grad[[1, 3]].any() and full.grad.isfinite().all()
            none = target.clone()
            none[:] = -1 if task == "single" else torch.nan
            assert loss(scores, none, task=task).item() == 0


def test_class_weights_are_the_weighted_mean_of_torch():
    x, y, w = logits(), torch.tensor([0, 1, 1, 2, 2, 2]), torch.tensor([3.0, 1.0, 0.5])
    assert task_loss(x, y, task="single", class_weights=w).item() == pytest.approx(
        F.cross_entropy(x, y, weight=w.double()).item()
    )
    sets = (logits(seed=3) > 0).double()
    want = F.binary_cross_entropy_with_logits(x, sets, pos_weight=w.double()).item()
    assert task_loss(x, sets, task="multi", class_weights=w).item() == pytest.approx(want)


def test_regression_losses():
    x, y = torch.tensor([[1.0], [4.0]]), torch.tensor([[0.0], [0.0]])
    assert task_loss(x, y, task="regression").item() == 2.5
    assert task_loss(x, y, task="regression", regression="mse").item() == 8.5
    with pytest.raises(DataError, match="l1, mse"):
        task_loss(x, y, task="regression", regression="huber")


def test_masked_mse_counts_real_steps_only():
    x = torch.zeros(2, 3, 2)
    target = torch.ones(2, 3, 2)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    target[0, 0] = 3.0
    target[~mask] = torch.nan
    x.requires_grad_()
    loss = masked_mse(x, target, mask)
    loss.backward()
    assert loss.item() == pytest.approx((9 + 1 + 1) / 3)
    assert x.grad.isfinite().all() and not x.grad[~mask].any()
    assert masked_mse(x, target, torch.zeros_like(mask)).item() == 0


def test_same_emotion():
    same, labelled = same_emotion(torch.tensor([0, 1, 0, -1]), task="single")
    assert labelled.tolist() == [True, True, True, False]
    assert same[0].tolist() == [True, False, True, False]
    sets = torch.tensor([[1.0, 1, 0], [1, 0, 0], [0, 0, 0], [0, 0, 0]])
    assert same_emotion(sets, task="multi")[0].int().tolist() == [
        [1, 0, 0, 0],
        [0, 1, 0, 0],
        [0, 0, 1, 1],
        [0, 0, 1, 1],
    ]
    assert same_emotion(sets, task="multi", jaccard=0.5)[0][0].tolist() == [
        True,
        True,
        False,
        False,
    ]
    # neutral, neutral, 1, 1, -1
    values = torch.tensor([[-0.4], [0.4], [0.6], [1.4], [-1.0], [torch.nan]])
    same, labelled = same_emotion(values, task="regression")
    assert same[:5, :5].int().tolist() == [
        [1, 1, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [0, 0, 1, 1, 0],
        [0, 0, 1, 1, 0],
        [0, 0, 0, 0, 1],
    ]
    assert labelled.tolist() == [True] * 5 + [False]


def test_balanced_bce_weighs_both_answers_alike():
    x = torch.tensor([2.0, -1.0, -1.0, -1.0, 5.0], requires_grad=True)
    y = torch.tensor([True, False, False, False, False])
    valid = torch.tensor([True, True, True, True, False])
    want = (F.softplus(torch.tensor(-2.0)) + F.softplus(torch.tensor(-1.0))) / 2
    loss = balanced_bce(x, y, valid)
    loss.backward()
    assert loss.item() == pytest.approx(want.item()) and x.grad[4] == 0
    assert balanced_bce(x, torch.ones_like(y), valid).item() == 0


def test_doctests():
    assert doctest.testmod(supervised).failed == 0


def test_class_weights_weigh_the_kl_as_they_weigh_the_cross_entropy():
    """Row by row. Without smoothing KL to a label is the cross-entropy, which PyTorch weighs."""
    g = torch.Generator().manual_seed(0)
    logits, target = torch.randn(6, 3, generator=g), torch.tensor([0, 1, 2, -1, 1, 0])
    weights = torch.tensor([0.5, 2.0, 1.0])
    plain = kl_to_label(logits, target, task="single", smoothing=0.0, class_weights=weights)
    theirs = F.cross_entropy(logits, target, weight=weights, ignore_index=-1)
    torch.testing.assert_close(plain, theirs)
    rows = [
        kl_to_label(logits[[i]], target[[i]], task="single", smoothing=0.1)
        for i in range(6)
        if target[i] >= 0
    ]
    w = weights[target[target >= 0]]
    smoothed = kl_to_label(logits, target, task="single", smoothing=0.1, class_weights=weights)
    torch.testing.assert_close(smoothed, (torch.stack(rows) * w).sum() / w.sum())
    ones = kl_to_label(logits, target, task="single", class_weights=torch.ones(3))
    torch.testing.assert_close(ones, kl_to_label(logits, target, task="single"))
    sets = torch.tensor([[1.0, 0, 0], [0, 1, 1]])
    multi = kl_to_label(logits[:2], sets, task="multi", smoothing=0.0, class_weights=weights)
    theirs = F.binary_cross_entropy_with_logits(logits[:2], sets, pos_weight=weights)
    torch.testing.assert_close(multi, theirs)


def test_the_kl_of_the_authors_is_divided_by_the_number_of_classes():
    """`F.kl_div` as it is by default, of the smoothed label against log-probabilities."""
    spec = make_spec()
    g = torch.Generator().manual_seed(0)
    means, target = torch.randn(4, 16, generator=g), torch.tensor([0, 1, 2, 1])
    one = make_model("drkf", spec, kl_reduction="classes").eval()
    label = F.one_hot(target, 3) * 0.9 + 0.1 / 3
    log_q = one.unimodal["text"](means).log_softmax(1)
    with pytest.warns(UserWarning, match="reduction: 'mean'"):
        theirs = F.kl_div(log_q, label)
    torch.testing.assert_close(one.kl("text", means, means, target), theirs)
