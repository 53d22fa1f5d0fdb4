"""Dropout drawn from 16 random bits an element, and attention that uses it."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from mer.fusion.modules.crossmodal import attend
from mer.fusion.modules.dropout import (
    Dropout,
    LockedDropout,
    dropout,
    keep_mask,
    plus_dropout,
    relu_dropout,
)

N = 1 << 18


@pytest.mark.parametrize("p", [1e-5, 0.1, 0.3, 0.5, 0.9, 0.99999])
def test_the_share_of_zeroes_is_p_and_the_mean_stays(p):
    """Within 4.5 deviations of a binomial; 1e-5 is rounded to 2^-16."""
    torch.manual_seed(3)
    rounded = max(min(round(p * 2**16), 2**16 - 1), 1) / 2**16
    mask = keep_mask((N,), p, torch.ones(()))
    zeroes = (mask == 0).double().mean().item()
    assert abs(zeroes - rounded) <= 4.5 * (rounded * (1 - rounded) / N) ** 0.5
    assert set(mask.unique().tolist()) <= {0.0, float(torch.tensor(1 / (1 - rounded)))}


def test_neighbours_are_independent():
    """Four elements share a draw: each pair among them is kept together as often as chance has
    it.
    """
    torch.manual_seed(4)
    kept = (keep_mask((N // 4, 4), 0.5, torch.ones(())) > 0).double()
    together = kept.T @ kept / len(kept)
    expected = torch.full((4, 4), 0.25, dtype=torch.float64).fill_diagonal_(0.5)
    assert (together - expected).abs().max() < 4.5 * 0.5 / len(kept) ** 0.5


def test_a_seed_decides_and_another_one_differs():
    x = torch.ones(7, 5)

    def drawn(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return dropout(x, 0.4)

    assert torch.equal(drawn(1), drawn(1)) and not torch.equal(drawn(1), drawn(2))


@pytest.mark.parametrize("shape", [(), (1,), (3, 5), (2, 3, 7), (0, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_shape_and_dtype_stay(shape, dtype):
    y = dropout(torch.ones(shape, dtype=dtype), 0.5)
    assert y.shape == shape and y.dtype == dtype and bool(((y == 0) | (y == 2)).all())


def test_the_gradient_passes_where_the_value_does():
    x = torch.randn(64, requires_grad=True)
    torch.manual_seed(0)
    y = dropout(x, 0.25)
    y.sum().backward()
    assert torch.equal(x.grad != 0, y != 0)


def test_outside_training_nothing_happens():
    x = torch.randn(3, 4, 5)
    for layer in (Dropout(0.5), LockedDropout(0.5)):
        assert layer.eval()(x) is x and layer.train()(x) is not x
    assert dropout(x, 0.0) is x


def test_one_mask_for_all_steps():
    y = LockedDropout(0.5)(torch.ones(4, 6, 8))
    assert torch.equal(y, y[:, :1].expand_as(y)) and 0 < (y == 0).sum() < y.numel()


def test_attention_with_a_mask_is_that_of_pytorch_on_average():
    """Without dropout it is PyTorch's; with it, what is drawn has that as its mean."""
    torch.manual_seed(5)
    q, k, v = torch.randn(3, 2, 2, 5, 4).unbind(0)
    mask = torch.rand(2, 1, 5, 5) < 0.7
    mask[..., 0] = True
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    assert torch.equal(attend(q, k, v, mask, 0.0), expected)
    drawn = torch.stack([attend(q, k, v, mask, 0.3) for _ in range(4000)])
    error = drawn.std(0) / len(drawn) ** 0.5
    assert ((drawn.mean(0) - expected).abs() <= 5 * error + 1e-6).all()
    assert torch.equal(attend(q, k, v, mask, 1e-12), expected) is False
    torch.testing.assert_close(attend(q, k, v, mask, 1e-12), expected)


NOTHING = 1e-6  # a probability that 16 bits round to none: attention's own steps, nothing dropped


@pytest.mark.parametrize(("width", "steps"), [(5, (7, 7)), (16, (7, 4)), (3, (1, 6))])
@pytest.mark.parametrize("kind", ["none", "keys", "pairs"])
def test_attention_is_that_of_pytorch_with_its_gradients(width, steps, kind):
    """Of what is computed with dropout, where nothing is dropped."""
    g = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64).requires_grad_()

    queries, keys = steps
    inputs = [random(2, 3, queries, width), random(2, 3, keys, width), random(2, 3, keys, width)]
    shape = {"none": None, "keys": (2, 1, 1, keys), "pairs": (2, 1, queries, keys)}[kind]
    mask = None if shape is None else torch.rand(shape, generator=g) > 0.4
    if mask is not None:
        mask[..., 0] = True  # every query has a key
    weights = torch.randn(2, 3, queries, width, generator=g, dtype=torch.float64)
    ours = attend(*inputs, mask, NOTHING)
    theirs = F.scaled_dot_product_attention(*inputs, attn_mask=mask)
    torch.testing.assert_close(ours, theirs)
    gradients = [torch.autograd.grad((y * weights).sum(), inputs) for y in (ours, theirs)]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("masked", [True, False])
def test_dropped_weights_have_the_gradient_of_autograd(masked):
    """The same draw, in the steps of the formula; what is kept for it is one share for each pair of
    steps.
    """
    q, k, v = torch.randn(3, 2, 3, 7, 4, dtype=torch.float64).requires_grad_().unbind(0)
    weights = torch.randn(2, 3, 7, 4, dtype=torch.float64)
    mask = torch.arange(7) < torch.tensor([3, 7])[:, None, None, None]
    sizes = []

    def noted(kept: torch.Tensor) -> torch.Tensor:
        sizes.append(kept.numel())
        return kept

    torch.manual_seed(0)
    with torch.autograd.graph.saved_tensors_hooks(noted, lambda kept: kept):
        ours = attend(q, k, v, mask if masked else None, 0.4)
    torch.manual_seed(0)
    kept = keep_mask((6, 7, 7), 0.4, q).view(2, 3, 7, 7)
    scores = q @ k.transpose(2, 3) / 2
    share = (scores.masked_fill(~mask, -torch.inf) if masked else scores).softmax(-1)
    theirs = (share * kept) @ v
    assert sizes.count(kept.numel()) == 1 and 0 < (kept == 0).sum() < kept.numel()
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    gradients = [
        torch.autograd.grad((y * weights).sum(), (q, k, v), retain_graph=True)
        for y in (ours, theirs)
    ]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("steps", [5, 130])
def test_attention_that_drops_nothing_has_the_gradient_of_pytorch(steps):
    """On both sides of the length from which PyTorch's own is taken."""
    inputs = torch.randn(3, 1, 2, steps, 4, dtype=torch.float64).requires_grad_().unbind(0)
    mask = torch.rand(1, 1, steps, steps) < 0.7
    mask[..., 0] = True
    weights = torch.randn(1, 2, steps, 4, dtype=torch.float64)
    ours = attend(*inputs, mask, 0.0)
    theirs = F.scaled_dot_product_attention(*inputs, attn_mask=mask)
    torch.testing.assert_close(ours, theirs)
    gradients = [torch.autograd.grad((y * weights).sum(), inputs) for y in (ours, theirs)]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


def test_units_that_are_dropped_or_not_positive_have_no_gradient():
    """The same draw as of the two steps, values and gradients; nothing else is kept."""
    x, weights = torch.randn(6, 50).requires_grad_(), torch.randn(6, 50)
    torch.manual_seed(0)
    ours = relu_dropout(x, 0.3)
    torch.manual_seed(0)
    theirs = dropout(x.relu(), 0.3)
    assert torch.equal(ours, theirs) and 0 < (ours > 0).sum() < (x > 0).sum()
    a, b = (torch.autograd.grad((y * weights).sum(), x)[0] for y in (ours, theirs))
    torch.testing.assert_close(a, b)
    assert torch.equal(relu_dropout(x, 0.3, training=False), x.relu())


def test_a_sum_with_what_is_dropped_out_is_the_two_steps():
    x, y = torch.randn(4, 50), torch.randn(4, 50)
    torch.manual_seed(0)
    at_once = plus_dropout(x, y, 0.3)
    torch.manual_seed(0)
    torch.testing.assert_close(at_once, x + dropout(y, 0.3))
    assert torch.equal(plus_dropout(x, y, 0.3, training=False), x + y)
