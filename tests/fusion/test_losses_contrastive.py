from __future__ import annotations

import doctest
import math
import sys

import pytest
import torch
import torch.nn.functional as F

from mer.fusion.losses import contrastive, info_nce, mi_lower_bound, nt_xent, nt_xent_apart
from mer.pipeline.errors import DataError, DependencyError


def views(
    b: int, d: int, *, seed: int = 0, dtype=torch.float64
) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(b, d, generator=g, dtype=dtype), torch.randn(b, d, generator=g, dtype=dtype)


def nt_xent_by_loops(x, y, tau):
    """The definition, an anchor at a time."""
    z = [v / v.norm() for v in torch.cat([x, y])]
    n, b = len(z), len(x)
    losses = []
    for i in range(n):
        candidates = [math.exp(float(z[i] @ z[k]) / tau) for k in range(n) if k != i]
        losses.append(math.log(sum(candidates)) - float(z[i] @ z[(i + b) % n]) / tau)
    return sum(losses) / n


def info_nce_by_loops(x, y, tau):
    u, v = [r / r.norm() for r in x], [r / r.norm() for r in y]
    losses = [
        math.log(sum(math.exp(float(a @ c) / tau) for c in v)) - float(a @ v[i]) / tau
        for i, a in enumerate(u)
    ]
    return sum(losses) / len(losses)


@pytest.mark.parametrize("b", [1, 2, 5])
@pytest.mark.parametrize("tau", [0.05, 1.0])
def test_equal_the_definition(b, tau):
    x, y = views(b, 4, seed=b)
    assert nt_xent(x, y, temperature=tau, impl="eager").item() == pytest.approx(
        nt_xent_by_loops(x, y, tau), abs=1e-12
    )
    there, back = info_nce_by_loops(x, y, tau), info_nce_by_loops(y, x, tau)
    assert info_nce(x, y, temperature=tau, impl="eager").item() == pytest.approx(there, abs=1e-12)
    assert info_nce(x, y, temperature=tau, symmetric=True, impl="eager").item() == pytest.approx(
        (there + back) / 2, abs=1e-12
    )


def test_chance_level_at_high_temperature():
    """Acceptance 6.2: log of the number of candidates, 2B - 1 and B."""
    x, y = views(64, 32)
    assert nt_xent(x, y, temperature=1e4).item() == pytest.approx(math.log(127), abs=1e-3)
    assert info_nce(x, y, temperature=1e4).item() == pytest.approx(math.log(64), abs=1e-3)


def test_mi_bound_rises_with_correlation_and_never_exceeds_log_n():
    """Acceptance 6.2: on correlated Gaussians, whose true MI grows with rho."""
    x, noise = views(256, 8)
    for loss, candidates in ((nt_xent, 511), (info_nce, 256)):
        bounds = []
        for rho in (0.0, 0.3, 0.6, 0.9, 0.99, 1.0):
            y = rho * x + math.sqrt(1 - rho**2) * noise
            bounds.append(mi_lower_bound(loss(x, y, temperature=0.2), candidates).item())
        assert bounds == sorted(bounds)
        assert bounds[-1] <= math.log(candidates)
        assert bounds[-1] - bounds[0] > 1.0


def test_gradients_by_finite_differences():
    x, y = (v.requires_grad_() for v in views(3, 4))
    tau = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda a, b, t: nt_xent(a, b, temperature=t, impl="eager"), (x, y, tau)
    )
    assert torch.autograd.gradcheck(
        lambda a, b, t: info_nce(a, b, temperature=t, symmetric=True, impl="eager"), (x, y, tau)
    )


def test_scale_of_the_rows_does_not_matter_and_order_of_rows_neither():
    x, y = views(6, 5)
    scale, order = torch.rand(6, 1, dtype=torch.float64) + 0.1, torch.randperm(6)
    for loss in (nt_xent, info_nce):
        assert loss(scale * x, y, temperature=0.1).item() == pytest.approx(
            loss(x, y, temperature=0.1).item(), abs=1e-12
        )
        assert loss(x[order], y[order], temperature=0.1).item() == pytest.approx(
            loss(x, y, temperature=0.1).item(), abs=1e-12
        )


def test_one_row_is_no_information_and_no_gradient():
    x, y = (v.requires_grad_() for v in views(1, 4))
    for loss in (nt_xent, info_nce):
        value = loss(x, y, temperature=0.1, impl="eager")
        value.backward()
        assert value.item() == 0 and not x.grad.any() and not y.grad.any()


def test_autocast_does_not_touch_the_similarities():
    x, y = views(8, 16, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = nt_xent(x, y, temperature=0.02, impl="eager")
    assert inside.dtype == torch.float32
    assert torch.equal(inside, nt_xent(x, y, temperature=0.02, impl="eager"))


def test_bad_input_is_one_line():
    x, y = views(4, 3)
    for a, b in ((x, y[:3]), (x[:0], y[:0]), (x[0], y[0])):
        with pytest.raises(DataError, match="two views of equal shape"):
            nt_xent(a, b, temperature=0.1)
    with pytest.raises(DataError, match="auto, eager, chunked, triton"):
        info_nce(x, y, temperature=0.1, impl="fast")


@pytest.mark.parametrize("gone", [None, "empty"])
def test_without_ops_auto_is_eager_and_the_rest_refuses(monkeypatch, gone):
    """fusion/ops deleted (import fails), or an empty folder in its place (import succeeds)."""
    monkeypatch.setitem(
        sys.modules, "mer.fusion.ops", None if gone is None else type(sys)("mer.fusion.ops")
    )
    x, y = views(4, 3)
    assert torch.equal(nt_xent(x, y, temperature=0.1), nt_xent(x, y, temperature=0.1, impl="eager"))
    for impl in ("chunked", "triton"):
        with pytest.raises(DependencyError, match="mer.fusion.ops"):
            info_nce(x, y, temperature=0.1, impl=impl)


def test_doctests():
    assert doctest.testmod(contrastive).failed == 0


def test_negatives_of_other_emotions_in_plain_loops():
    """Every anchor of both views against its positive and the rows of other emotions; an unlabelled
    row is everybody's negative.
    """
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(5, 4, generator=g).double(), torch.randn(5, 4, generator=g).double()
    label = [0, 1, 0, None, 1]
    same = torch.tensor([[a is not None and a == b for b in label] for a in label])
    tau = 0.3
    views = [F.normalize(v, dim=1) for v in (x, y)]
    found = []
    for mine, other in ((0, 1), (1, 0)):
        for i in range(5):
            positive = views[mine][i] @ views[other][i] / tau
            candidates = [positive]
            for view in views:
                for k in range(5):
                    if k != i and not same[i, k]:
                        candidates.append(views[mine][i] @ view[k] / tau)
            found.append(torch.stack(candidates).logsumexp(0) - positive)
    ours = nt_xent_apart(x, y, same, temperature=tau)
    torch.testing.assert_close(ours, torch.stack(found).mean())
    nobody = torch.zeros(5, 5, dtype=torch.bool)
    plain = nt_xent(x, y, temperature=tau, impl="eager")
    torch.testing.assert_close(nt_xent_apart(x, y, nobody, temperature=tau), plain)
