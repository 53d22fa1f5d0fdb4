"""The dense and the chunked path against the definition in plain loops, in float64 and float32."""

from __future__ import annotations

import doctest
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mer.fusion.losses import mi_lower_bound
from mer.fusion.ops import Term, contrastive_terms
from mer.fusion.ops.cpu import chunked, strips
from mer.fusion.ops.terms import lay_out

from tests.ops import cases, frozen, oracle
from tests.ops.cases import info_nce, nt_xent


@pytest.fixture
def small_tiles(monkeypatch):
    """Tiles smaller than the inputs, so that every kind of boundary occurs."""
    monkeypatch.setattr(chunked, "TILE_ROWS", 4)
    monkeypatch.setattr(chunked, "TILE_COLS", 6)
    monkeypatch.setattr(strips, "ROWS", 2)


@pytest.fixture(params=cases.PATHS)
def impl(request):
    """Each path in turn, by the `impl` that leads to it."""
    with cases.forced(request.param) as impl:
        yield impl


def run(path, views, tau, terms, labels, mode, weights):
    def function(v, t):
        with cases.forced(path) as impl:
            return contrastive_terms(
                v, t, terms, None if mode == "none" else labels, mode, impl=impl
            )

    return oracle.gradients(function, views, tau, weights)


@pytest.mark.parametrize("tau", [0.5, 0.002], ids=["unshifted", "shifted"])
@pytest.mark.parametrize("mode", oracle.MODES)
@pytest.mark.parametrize("name", cases.TERMS)
def test_definition_in_loops(name, mode, tau, small_tiles, monkeypatch):
    """All entries recomputed in the backward pass, the first tiles' kept, all kept; tiles listed
    and generated.
    """
    views, terms, labels = cases.make(name, 5, 3, dtype=torch.float64)
    # one temperature each
    taus = torch.full((len(terms),), tau, dtype=torch.float64) * (1 + torch.arange(len(terms)))
    weights = torch.arange(1.0, 1 + len(terms))
    want = oracle.gradients(
        lambda v, t: oracle.loops(v, t, terms, labels, mode), views, taus, weights
    )
    for path, keep, listed in (
        ("eager", 0, 0),
        ("dense", 0, 0),
        ("chunked", 0, 0),
        ("chunked", 8 * 4 * 6 * 3, 99),
        ("chunked", 1 << 20, 99),
    ):
        monkeypatch.setattr(chunked, "KEEP_BYTES", keep)
        monkeypatch.setattr(chunked, "LISTED_ROWS", listed)
        got = run(path, views, taus, terms, labels, mode, weights)
        assert max(cases.errors(got, want, 1e-3)) < 1e-11, (path, keep)


@pytest.mark.parametrize("mode", oracle.MODES)
@pytest.mark.parametrize("name", cases.TERMS)
def test_dense_reference_is_the_loops(name, mode):
    views, terms, labels = cases.make(name, 6, 4, dtype=torch.float64, seed=1)
    tau, weights = torch.tensor(0.2, dtype=torch.float64), torch.ones(len(terms))
    want = oracle.gradients(
        lambda v, t: oracle.loops(v, t, terms, labels, mode), views, tau, weights
    )
    got = oracle.gradients(
        lambda v, t: oracle.dense(v, t, terms, labels, mode), views, tau, weights
    )
    assert max(cases.errors(got, want, 1e-3)) < 1e-12


@pytest.mark.parametrize(("rows", "d"), [(1, 1), (2, 1), (7, 20), (33, 129), (300, 17)])
@pytest.mark.parametrize("tau", [1e-3, 0.07, 0.731, 100.0])
def test_float32_no_worse_than_eager(rows, d, tau):
    views, terms, labels = cases.make("drkf", rows, d)
    weights, t = torch.tensor([0.2, 0.3, 0.5]), torch.tensor(tau)
    for path in ("chunked",) if rows >= 300 else cases.PATHS:
        cases.no_worse(
            lambda v, u, w, p=path: run(p, v, u, terms, labels, "none", w),
            views,
            t,
            terms,
            weights=weights,
            eps=2.0**-23,
        )


@pytest.mark.parametrize(("dtype", "eps"), [(torch.bfloat16, 2.0**-8), (torch.float16, 2.0**-11)])
@pytest.mark.parametrize("path", cases.PATHS)
def test_16_bit_inputs_no_worse_than_eager(path, dtype, eps):
    """Computed in float32, gradients in the dtype of their view."""
    views, terms, labels = cases.make("drkf", 9, 20, dtype=dtype)

    def ours(v, u, w):
        got = run(path, v, u, terms, labels, "none", w)
        assert [g.dtype for g in got] == [torch.float32, *(x.dtype for x in v), torch.float32]
        return got

    cases.no_worse(
        ours, views, torch.tensor(0.2), terms, weights=torch.ones(3), eps=eps, factor=1.0
    )


@pytest.mark.parametrize("kind", cases.EXTREMES)
@pytest.mark.parametrize("mode", oracle.MODES)
def test_extremes(kind, mode):
    views, terms, labels = cases.make("drkf", 9, 12)
    views, weights, tau = cases.extreme(views, kind), torch.ones(3), torch.tensor(0.07)
    for path in cases.PATHS:
        cases.no_worse(
            lambda v, u, w, p=path: run(p, v, u, terms, labels, mode, w),
            views,
            tau,
            terms,
            labels,
            mode,
            weights=weights,
            eps=2.0**-23,
            factor=8.0,
        )


@pytest.mark.parametrize(
    ("name", "mode"),
    [("drkf", "none"), ("queue", "supcon"), ("queue", "exclude"), ("symmetric+one-way", "none")],
)
def test_gradcheck(name, mode, impl, small_tiles):
    views, terms, labels = cases.make(name, 4, 2, dtype=torch.float64)
    tau = torch.linspace(0.3, 0.9, len(terms), dtype=torch.float64)

    def function(t, *v):
        return contrastive_terms(v, t, terms, None if mode == "none" else labels, mode, impl=impl)

    assert torch.autograd.gradcheck(
        function, [tau.requires_grad_(), *(v.requires_grad_() for v in views)]
    )


@pytest.mark.parametrize("tau", [0.1, 0.01])
def test_one_row_is_exactly_zero(impl, tau):
    x, y = torch.randn(1, 5, requires_grad=True), torch.randn(1, 5, requires_grad=True)
    tau = torch.tensor(tau, requires_grad=True)
    loss = nt_xent(x, y, tau, impl=impl) + info_nce(x, y, tau, symmetric=True, impl=impl)
    loss.backward()
    assert loss == 0 and not x.grad.any() and not y.grad.any() and tau.grad == 0


@pytest.mark.parametrize(
    ("views", "terms", "more", "message"),
    [
        ([(0, 4), (0, 4)], [((0, 1), (0, 1))], {}, "no rows"),
        ([(3, 4), (3, 5)], [((0, 1), (0, 1))], {}, "the same D"),
        ([(3, 4), (2, 4)], [((0, 1), (0, 1))], {}, "positives"),
        ([(3, 4), (3, 4)], [((0,), (0,))], {}, "no candidate view with a positive"),
        ([(3, 4), (3, 4)], [((0, 2), (0, 1))], {}, "names views"),
        ([(3, 4), (3, 4)], [], {}, "no terms"),
        ([(3, 4), (3, 4)], [((0, 1), (0, 1))], {"tau": torch.ones(2)}, "temperature"),
        ([(3, 4), (3, 4)], [((0, 1), (0, 1))], {"label_mode": "supcon"}, "needs labels"),
        ([(3, 4), (3, 4)], [((0, 1), (0, 1))], {"labels": torch.zeros(3)}, "ignores labels"),
        (
            [(3, 4), (3, 4)],
            [((0, 1), (0, 1))],
            {"labels": torch.zeros(2), "label_mode": "supcon"},
            "labels of shapes",
        ),
        ([(3, 4), (3, 4)], [((0, 1), (0, 1))], {"precision": "double"}, "not an option"),
        ([(3, 4), (3, 4), (5, 4)], [((0, 1), (1, 0, 2)), ((0, 0), (1,))], {}, "names a view twice"),
        ([(3, 4), (3, 4)], [((0, 1), (0, 1))], {"impl": "dense"}, "auto, eager, chunked, triton"),
    ],
)
def test_bad_input_is_named(views, terms, more, message):
    with pytest.raises(ValueError, match=message):
        contrastive_terms([torch.ones(s) for s in views], more.pop("tau", 0.1), terms, **more)


def test_partial_requires_grad(impl, small_tiles):
    """Every subset of the inputs; products for a view that needs no gradient are left out."""
    terms = (Term((0, 1), (0, 1, 2)), Term((0,), (1, 2)))
    data = [torch.randn(6, 4), torch.randn(6, 4), torch.randn(9, 4), torch.tensor(0.3)]
    want = oracle.gradients(
        lambda v, t: oracle.dense(v, t, terms), data[:3], data[3], torch.ones(2)
    )[1:]
    for wanted in list(itertools.product([False, True], repeat=4))[1:]:
        *views, tau = (t.clone().requires_grad_(w) for t, w in zip(data, wanted, strict=True))
        contrastive_terms(views, tau, terms, impl=impl).sum().backward()
        for tensor, w, reference in zip((*views, tau), wanted, want, strict=True):
            assert (tensor.grad is not None) == w
            if w:
                torch.testing.assert_close(tensor.grad, reference, rtol=1e-5, atol=1e-6)


def test_mixed_dtypes_and_layouts(impl):
    """Strided, transposed and expanded views of three dtypes; gradients come back in each input's
    dtype and shape.
    """
    base = torch.randn(8, 12)
    views = [
        base[:, ::2],
        base.T[:6].T.to(torch.bfloat16),
        torch.randn(1, 6, dtype=torch.float16).expand(8, 6),
    ]
    terms = (Term((0, 1), (0, 1)), Term((0,), (2,)))
    leaves = [v.detach().clone().requires_grad_() for v in views]
    strided = [v.detach().requires_grad_() for v in views]
    for v in (leaves, strided):
        contrastive_terms(v, 0.2, terms, impl=impl).sum().backward()
    for a, b in zip(leaves, strided, strict=True):
        assert b.grad.dtype == a.dtype and torch.equal(a.grad, b.grad)


@pytest.mark.parametrize("path", cases.PATHS)
def test_autocast_leaves_the_computation_alone(path):
    x, y = torch.randn(16, 8, requires_grad=True), torch.randn(16, 8, requires_grad=True)
    with cases.forced(path) as impl:
        want = nt_xent(x, y, 0.1, impl=impl)
        with torch.autocast("cpu", torch.bfloat16):
            loss = nt_xent(x, y, 0.1, impl=impl)
            assert loss.dtype == torch.float32 and torch.equal(loss, want)
            if path == "eager":  # whose backward pass is autograd's, under autocast if called there
                return
            got = torch.autograd.grad(loss, [x, y])
    want = torch.autograd.grad(want, [x, y])
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_a_graph_can_be_walked_twice(impl):
    """What is kept for the backward pass is read, not used up; a repeated call gives the same bits;
    nothing is kept without need.
    """
    x, y, tau = (
        torch.randn(40, 6, requires_grad=True),
        torch.randn(40, 6, requires_grad=True),
        torch.tensor(0.1, requires_grad=True),
    )
    loss = nt_xent(x, y, tau, impl=impl)
    first = torch.autograd.grad(loss, [x, y, tau], retain_graph=True)
    for again in (
        torch.autograd.grad(loss, [x, y, tau]),
        torch.autograd.grad(nt_xent(x, y, tau, impl=impl), [x, y, tau]),
    ):
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    with torch.no_grad():
        bare = nt_xent(x, y, tau, impl=impl)
    assert bare.grad_fn is None and torch.equal(bare, loss)


def test_properties():
    """Permutation equivariance, scale invariance, and gradients orthogonal to their rows: what
    normalisation implies.
    """
    x, y = (
        torch.randn(10, 7, dtype=torch.float64, requires_grad=True),
        torch.randn(10, 7, dtype=torch.float64, requires_grad=True),
    )
    loss = nt_xent(x, y, 0.2)
    gx, _ = torch.autograd.grad(loss, [x, y])
    order = torch.randperm(10, generator=torch.Generator().manual_seed(3))
    permuted = nt_xent(x[order], y[order], 0.2)
    (px,) = torch.autograd.grad(permuted, [x])
    torch.testing.assert_close(permuted, loss)
    torch.testing.assert_close(px, gx)
    torch.testing.assert_close(
        nt_xent(x * torch.rand(10, 1, dtype=torch.float64).add(0.1), y * 1e3, 0.2), loss
    )
    torch.testing.assert_close(
        (x * gx).sum(1), torch.zeros(10, dtype=torch.float64), atol=1e-12, rtol=0
    )


@pytest.mark.parametrize("path", cases.PATHS)
def test_double_backward_is_refused_but_under_autograd(path):
    x, y = torch.randn(4, 3, dtype=torch.float64, requires_grad=True), torch.randn(4, 3).double()
    with cases.forced(path) as impl:
        if path == "eager":
            assert torch.autograd.gradgradcheck(lambda a: nt_xent(a, y, 0.5, impl=impl), x)
            return
        with pytest.raises(RuntimeError, match="second derivatives .* use impl='eager'"):
            torch.autograd.grad(nt_xent(x, y, 0.1, impl=impl), x, create_graph=True)


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing(reentrant):
    x = torch.randn(4, 3, requires_grad=True)
    y = torch.randn(4, 3)
    loss = torch.utils.checkpoint.checkpoint(
        lambda a: nt_xent(a * 2, y, 0.1), x, use_reentrant=reentrant
    )
    (got,) = torch.autograd.grad(loss, x) if not reentrant else (loss.backward(), x.grad)[1:]
    x2 = x.detach().requires_grad_()
    torch.testing.assert_close(got, torch.autograd.grad(nt_xent(x2 * 2, y, 0.1), x2)[0])


def test_bounds_in_nats():
    """log N - L by hand: orthonormal rows, equal views, tau = 1, B = 2: L = log(e + 2)
    - 1, N = 3.
    """
    terms, eye = (Term((0, 1), (0, 1)),), torch.eye(2)
    loss = contrastive_terms([eye, eye], 1.0, terms)
    np.testing.assert_allclose(loss.item(), np.log(np.e + 2) - 1, rtol=1e-6)
    assert lay_out(terms, (2, 2)).candidates == (3,)
    np.testing.assert_allclose(
        mi_lower_bound(loss, 3).item(), np.log(3) - (np.log(np.e + 2) - 1), rtol=1e-5
    )
    sharp = contrastive_terms([eye, eye], 0.01, terms)
    assert mi_lower_bound(sharp, 3).item() <= np.log(3) + 1e-6


def test_supcon_of_distinct_labels_is_nt_xent():
    x, y = torch.randn(6, 4), torch.randn(6, 4)
    want = nt_xent(x, y, 0.3)
    for mode in ("supcon", "exclude"):
        got = contrastive_terms([x, y], 0.3, (Term((0, 1), (0, 1)),), torch.full((6,), -1), mode)[0]
        torch.testing.assert_close(got, want)


def test_memory_is_linear(monkeypatch):
    """No tensor of B x B entries: the largest allocation of a step stays near B * D, or at the
    stated scratch.
    """
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            for t in out if isinstance(out, (tuple, list)) else [out]:
                if isinstance(t, torch.Tensor):
                    self.elements = max(self.elements, t.untyped_storage().nbytes() // 4)
            return out

    monkeypatch.setattr(chunked, "KEEP_BYTES", 1 << 20)
    x, y = torch.randn(3000, 8, requires_grad=True), torch.randn(3000, 8)
    with Largest() as largest:
        nt_xent(x, y, 0.1).backward()
    assert largest.elements <= max(
        2 * chunked.TILE_ROWS * chunked.TILE_COLS, 6000 * 8, chunked.KEEP_BYTES // 4
    )
    # a strip of fewer anchors than ROWS; too many candidates for any
    for strip, rows in ((1 << 19, 174), (1 << 17, 0)):
        monkeypatch.setattr(strips, "STRIP", strip)
        with Largest() as largest:
            info_nce(x, y, 0.1).backward()
        assert largest.elements <= max(
            3000 * rows,
            2 * chunked.TILE_ROWS * chunked.TILE_COLS,
            6000 * 8,
            chunked.KEEP_BYTES // 4,
        )
        assert strips.serves(lay_out((Term((0,), (1,)),), (3000, 3000)), "none") == (rows > 0)


@pytest.mark.parametrize("case", json.loads(frozen.FILE.read_text()).items(), ids=lambda c: c[0])
def test_frozen_values_of_the_definition(case):
    """Numbers in the repository, so that the oracle and what is held to it cannot
    change together.
    """
    name, mode = case[0].split(", ")
    want = [torch.tensor(x, dtype=torch.float64) for x in case[1]]

    def ours(path):
        def function(v, t, terms, labels, mode):
            with cases.forced(path) as impl:
                return contrastive_terms(v, t, terms, labels, mode, impl=impl)

        return function

    for function in (oracle.loops, oracle.dense, *map(ours, cases.PATHS)):
        for a, b in zip(frozen.values(function, name, mode), want, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)


def test_golden_values_of_the_reference(test_data):
    """Losses and gradients of the published DRKF code (float64)."""
    z = np.load(test_data / "golden" / "drkf_contrastive.npz")
    names = sorted({key.split("/")[0] for key in z.files if key.endswith("/emb1") and "/" in key})
    checked = 0
    for case in names:
        views = [torch.from_numpy(z[f"{case}/emb{i}"]) for i in (1, 2)]
        for kind, term in (("nt_xent", Term((0, 1), (0, 1))), ("modal_nt_xent", Term((0,), (1,)))):
            for i, tau in enumerate(z["temperatures"]):
                key = f"{case}/{kind}/t{i}"
                want = [
                    z[f"{key}/{n}"] for n in ("loss", "grad_emb1", "grad_emb2", "grad_temperature")
                ]
                for path in cases.PATHS:
                    got = run(path, views, torch.tensor(tau), (term,), None, "none", torch.ones(1))
                    for a, b in zip(got, want, strict=True):
                        # the zero row's gradient is of order 1e11 and meaningless beyond its size
                        keep = np.abs(b) < 1e6
                        np.testing.assert_allclose(
                            a.numpy().reshape(b.shape)[keep], b[keep], rtol=1e-9, atol=1e-11
                        )
                    checked += 1
    assert checked == len(names) * 18 and len(names) >= 13


@pytest.mark.parametrize("tau", [float("nan"), 0.0, -0.1, float("inf")])
def test_a_number_that_is_no_temperature_is_refused(tau):
    with pytest.raises(ValueError, match="a temperature is above 0 and finite"):
        nt_xent(torch.randn(4, 3), torch.randn(4, 3), tau)


@pytest.mark.parametrize("rows", [7, 200])
@pytest.mark.parametrize(
    "function", [nt_xent, info_nce, lambda x, y, t: info_nce(x, y, t, symmetric=True)]
)
def test_a_nan_temperature_shows_in_the_loss(rows, function):
    """One that was learnt and diverged; on each path, with and without gradients."""
    x, y, tau = torch.randn(rows, 5), torch.randn(rows, 5), torch.tensor(float("nan"))
    assert (
        function(x, y, tau).isnan()
        and function(x.requires_grad_(), y, tau.requires_grad_()).isnan()
    )


def test_documented_examples():
    from mer.fusion.ops import contrastive

    assert doctest.testmod(contrastive, raise_on_error=True).attempted > 0


def test_example_outside_of_mer():
    """The first code block of docs/kernels.md runs as it stands."""
    text = (Path(__file__).parents[2] / "docs" / "kernels.md").read_text()
    exec(text.split("```python\n", 1)[1].split("```", 1)[0], {})


def test_agrees_with_plain_cross_entropy():
    """The most common way to write NT-Xent."""
    x, y, n = torch.randn(20, 6, dtype=torch.float64), torch.randn(20, 6, dtype=torch.float64), 20
    z = F.normalize(torch.cat([x, y]))
    logits = (z @ z.T / 0.1).masked_fill(torch.eye(2 * n, dtype=torch.bool), -torch.inf)
    want = F.cross_entropy(logits, torch.cat([torch.arange(n, 2 * n), torch.arange(n)]))
    torch.testing.assert_close(nt_xent(x, y, 0.1), want)
