"""Which path runs, what is said about it, and that nothing here needs Triton."""

from __future__ import annotations

import logging
from typing import get_args

import pytest
import torch

import mer.fusion.losses as losses
import mer.fusion.ops.contrastive as contrastive
import mer.fusion.ops.limits as limits
import mer.fusion.ops.paths as paths
from mer.fusion.losses import info_nce, nt_xent
from mer.fusion.ops import Term, path_for
from mer.pipeline.errors import DependencyError

from tests.ops import cases


@pytest.fixture
def no_triton(monkeypatch):
    paths._triton_obstacle.cache_clear()
    monkeypatch.setattr(paths.importlib.util, "find_spec", lambda name: None)
    yield
    paths._triton_obstacle.cache_clear()


def test_without_triton_everything_but_triton_works(no_triton):
    x, y = torch.randn(4, 3), torch.randn(4, 3)
    for impl in ("auto", "eager", "chunked"):
        assert torch.isfinite(nt_xent(x, y, temperature=0.1, impl=impl))
    with pytest.raises(DependencyError, match="impl=triton: Triton is not installed"):
        nt_xent(x, y, temperature=0.1, impl="triton")


def test_the_log_says_once_which_path_a_call_takes_and_path_for_says_the_same(monkeypatch, caplog):
    """By the rows of all views; an impl that is named is taken at its word."""
    monkeypatch.setattr(limits, "DENSE_ROWS", 12)
    x, y = torch.randn(7, 3), torch.randn(7, 3)

    def said(loss, rows, impl):
        contrastive._announce.cache_clear()
        caplog.clear()
        with caplog.at_level(logging.INFO, "mer.fusion.ops"):
            for _ in range(2):
                loss(x[:rows], y[:rows], temperature=0.1, impl=impl)
        return [record.message for record in caplog.records]

    terms = {nt_xent: Term((0, 1), (0, 1)), info_nce: Term((0,), (1,))}
    for rows, impl, loss, path in (
        (6, "auto", nt_xent, "dense"),
        (6, "auto", info_nce, "dense"),
        (7, "auto", nt_xent, "chunked"),
        (7, "auto", info_nce, "strips"),
        (5, "chunked", nt_xent, "chunked"),
        (5, "chunked", info_nce, "strips"),
    ):
        assert said(loss, rows, impl) == [f"contrastive loss: 1 term on path {path} (impl={impl})"]
        assert path_for([x[:rows], y[:rows]], [terms[loss]], impl) == path
    assert said(nt_xent, 7, "eager") == []
    assert path_for([x, y], [terms[nt_xent]], "eager") == "eager"
    labelled = path_for([x, y], [terms[info_nce]], "chunked", label_mode="exclude")
    assert labelled == "chunked"
    with pytest.raises(ValueError, match="one of auto, eager, chunked, triton"):
        path_for([x, y], [terms[nt_xent]], "cuda")


def test_one_vocabulary_of_impl():
    """Losses and ops each have it, as either works without the other."""
    assert get_args(losses.Impl) == get_args(paths.Impl)


@pytest.mark.parametrize("path", ["dense", "chunked"])
@pytest.mark.parametrize("tau", [0.07, 0.731])
def test_same_values_and_gradients_as_the_eager_losses(tau, path):
    for loss, options in ((nt_xent, {}), (info_nce, {}), (info_nce, {"symmetric": True})):
        x, y, t = (
            v.requires_grad_() for v in (torch.randn(9, 5), torch.randn(9, 5), torch.tensor(tau))
        )
        want = torch.autograd.grad(loss(x, y, temperature=t, impl="eager", **options), [x, y, t])
        with cases.forced(path) as impl:
            got = torch.autograd.grad(loss(x, y, temperature=t, impl=impl, **options), [x, y, t])
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
