"""Which path runs, what is said about it, and that nothing here needs Triton."""

from __future__ import annotations

import logging

import pytest
import torch

import mer.fusion.ops as ops
from mer.fusion.losses import info_nce, nt_xent
from mer.fusion.ops import paths
from mer.pipeline.errors import DependencyError


@pytest.fixture
def no_triton(monkeypatch):
    paths._triton_obstacle.cache_clear()
    monkeypatch.setattr(paths.importlib.util, "find_spec", lambda name: None)
    yield
    paths._triton_obstacle.cache_clear()


def test_without_triton_everything_but_triton_works(no_triton):
    x, y = torch.randn(4, 3), torch.randn(4, 3)
    assert torch.isfinite(ops.nt_xent(x, y, 0.1))
    assert ops.available() == {
        "dense": "yes",
        "chunked": "yes",
        "triton": "Triton is not installed",
    }
    with pytest.raises(DependencyError, match="impl=triton: Triton is not installed"):
        ops.nt_xent(x, y, 0.1, impl="triton")


def test_a_cpu_call_takes_the_same_path_from_both_doors_and_the_log_says_so_once(
    monkeypatch, caplog
):
    """mer.fusion.losses and fusion.ops choose alike, by the rows of all views; an impl that is
    named is taken at its word.
    """
    monkeypatch.setattr(paths, "DENSE_ROWS", 12)
    x, y = torch.randn(7, 3), torch.randn(7, 3)

    def said(call):
        ops._announce.cache_clear()
        caplog.clear()
        with caplog.at_level(logging.INFO, "mer.fusion.ops"):
            call(), call()
        return [r.message for r in caplog.records]

    for rows, path in ((6, "dense"), (7, "chunked")):
        expected = [f"contrastive loss: 1 term(s) on path {path} (impl=auto)"]
        for loss in (nt_xent, info_nce):
            assert said(lambda f=loss, n=rows: f(x[:n], y[:n], temperature=0.1)) == expected
        for loss in (ops.nt_xent, ops.info_nce):
            assert said(lambda f=loss, n=rows: f(x[:n], y[:n], 0.1)) == expected
    assert said(lambda: nt_xent(x[:5], y[:5], temperature=0.1, impl="chunked")) == [
        "contrastive loss: 1 term(s) on path chunked (impl=chunked)"
    ]
    assert said(lambda: nt_xent(x, y, temperature=0.1, impl="eager")) == []
    with pytest.raises(ValueError, match="one of auto, dense, chunked, triton"):
        ops.nt_xent(torch.randn(2, 2), torch.randn(2, 2), 0.1, impl="cuda")


@pytest.mark.parametrize("impl", ["dense", "chunked"])
@pytest.mark.parametrize("tau", [0.07, 0.731])
def test_same_values_and_gradients_as_the_eager_losses(tau, impl):
    for eager, fused in (
        (lambda *a, **k: nt_xent(*a, **k), ops.nt_xent),
        (lambda *a, **k: info_nce(*a, **k), ops.info_nce),
        (
            lambda *a, **k: info_nce(*a, symmetric=True, **k),
            lambda *a, **k: ops.info_nce(*a, symmetric=True, **k),
        ),
    ):
        x, y, t = (
            v.requires_grad_() for v in (torch.randn(9, 5), torch.randn(9, 5), torch.tensor(tau))
        )
        want = torch.autograd.grad(eager(x, y, temperature=t, impl="eager"), [x, y, t])
        got = torch.autograd.grad(fused(x, y, t, impl=impl), [x, y, t])
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
