"""The Triton kernels under Triton's interpreter.

Not collected by pytest: test_kernels.py runs it in a process of its own, because TRITON_INTERPRET
must be set before Triton is imported and would follow every other test.
"""

from __future__ import annotations

import itertools

import pytest
import torch
import triton
import triton.language as tl

import mer.fusion.ops.limits as limits
import mer.fusion.ops.paths as paths
from mer.fusion.ops import Term, contrastive_terms
from mer.fusion.ops.function import contrastive_op, encode
from mer.fusion.ops.gpu import kernels, launch
from mer.fusion.ops.terms import lay_out
from mer.pipeline.errors import DependencyError

from tests.ops import cases, oracle
from tests.ops.cases import nt_xent

pytestmark = [
    # NumPy on masked-out entries
    pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning"),
    # inside Triton's interpreter
    pytest.mark.filterwarnings("ignore:Conversion of an array with ndim:DeprecationWarning"),
]
PATHS = ("tiny", "mid", "large")
SELDOM = [pytest.param(path, marks=pytest.mark.slow) for path in ("mid", "large")]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Tiles of 16 and a scratch of a few rows and columns: every boundary on small inputs, and
    quick enough to interpret.
    """
    monkeypatch.setattr(launch, "SCRATCH_BYTES", 1 << 10)
    monkeypatch.setattr(launch, "SCRATCH_COLS", 16)
    monkeypatch.setattr(
        launch, "mid_tile", lambda rows, d, dot, mode: launch.KernelTile(16, 16, 16, 32)
    )
    monkeypatch.setattr(launch, "large_tile", lambda dot, mode: launch.KernelTile(16, 32, 16))


def run(path, views, tau, terms, labels, mode, weights, precision="ieee"):
    def function(v, t):
        return contrastive_terms(
            v,
            t,
            terms,
            None if mode == "none" else labels,
            mode,
            impl="triton",
            precision=precision,
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paths, "kernel_path", lambda rows, d: path)
        return oracle.gradients(function, views, tau, weights)


def compare(path, name, mode, rows, d, tau, *, per_term=False, kind=None, factor=4.0):
    views, terms, labels = cases.make(name, rows, d)
    views = cases.extreme(views, kind) if kind else views
    weights = torch.linspace(0.2, 1.0, len(terms))
    t = torch.tensor(tau) * (1 + torch.arange(len(terms))) if per_term else torch.tensor(tau)

    def ours(v, u, w):
        return run(path, v, u, terms, labels, mode, w)

    cases.no_worse(
        ours,
        views,
        t,
        terms,
        labels,
        mode,
        weights=weights,
        eps=2.0**-23,
        factor=factor,
    )


@pytest.mark.parametrize(
    ("name", "mode"),
    [("drkf", "none"), ("symmetric+one-way", "none"), ("queue", "supcon"), ("queue", "exclude")],
)
@pytest.mark.parametrize("path", PATHS)
def test_terms_and_labels(path, name, mode):
    compare(path, name, mode, 5, 18, 0.1, per_term=mode == "none")


@pytest.mark.parametrize("path", ["tiny", *SELDOM])  # tiny is the path that this size takes
def test_drkf_at_its_own_batch(path):
    compare(path, "drkf", "none", 4, 64, 0.731)


@pytest.mark.parametrize("path", PATHS)
def test_reduced_tiers(path):
    """tf32 is emulated (rounded operands), 16-bit inputs are multiplied exactly: no worse than
    eager PyTorch under the same rounding of the inputs, i.e. than its own matrix product in that
    type.
    """
    views, terms, labels = cases.make("drkf", 5, 20)
    weights, tau = torch.ones(3), torch.tensor(0.2)
    for dtype, precision, eps in (
        (torch.float32, "tf32", 2.0**-11),
        (torch.float16, "auto", 2.0**-11),
        (torch.bfloat16, "auto", 2.0**-8),
    ):
        x = [v.to(dtype) for v in views]

        def ours(v, u, w, precision=precision):
            got = run(path, v, u, terms, labels, "none", w, precision)
            assert all(g.dtype == v[0].dtype for g in got[1:-1]) and got[0].dtype == torch.float32
            return got

        cases.no_worse(ours, x, tau, terms, weights=weights, eps=eps, factor=2.0)


@pytest.mark.parametrize("path", PATHS)
def test_one_row_is_exactly_zero(path):
    views, terms, labels = cases.make("drkf", 1, 5)
    got = run(path, views, torch.tensor(0.07), terms, labels, "none", torch.ones(3))
    assert all((g == 0).all() for g in got)


@pytest.mark.parametrize(
    "path",
    [
        pytest.param("tiny", marks=pytest.mark.slow),
        "mid",
        pytest.param("large", marks=pytest.mark.slow),
    ],
)
def test_gradients_only_where_wanted(path, monkeypatch):
    monkeypatch.setattr(paths, "kernel_path", lambda rows, d: path)
    x, y = torch.randn(6, 8), torch.randn(6, 8)
    want = oracle.gradients(
        lambda v, t: oracle.dense(v, t, (Term((0, 1), (0, 1)),)),
        [x, y],
        torch.tensor(0.3),
        torch.ones(1),
    )[1:]
    for wanted in itertools.product([False, True], repeat=3):
        tensors = [
            t.detach().clone().requires_grad_(w)
            for t, w in zip((x, y, torch.tensor(0.3)), wanted, strict=True)
        ]
        loss = nt_xent(*tensors, impl="triton")
        if any(wanted):
            loss.backward()
        for tensor, w, reference in zip(tensors, wanted, want, strict=True):
            assert (tensor.grad is not None) == w
            if w:
                torch.testing.assert_close(tensor.grad, reference, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("path", PATHS)
def test_repeated_calls_are_identical(path):
    """The counter of the last-block sum is back at zero, and sums are taken in a fixed order."""
    views, terms, labels = cases.make("drkf", 5, 12)  # two tiles of rows
    runs = [
        run(path, views, torch.tensor(0.1), terms, labels, "none", torch.ones(3)) for _ in range(2)
    ]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.parametrize("path", PATHS)
def test_all_candidates_far_below_at_a_low_temperature(path):
    """Columns beyond the last row have cosine 0, so e^(0 - lse) is infinite here: it must not meet
    a gradient, as inf * 0.
    """
    x = torch.rand(5, 6, generator=torch.Generator().manual_seed(0)) + 0.2
    views, terms, tau = [x, -x.flip(0)], (Term((0,), (1,)),), torch.tensor(0.005)

    def ours(v, u, w):
        return run(path, v, u, terms, None, "none", w)

    cases.no_worse(ours, views, tau, terms, weights=torch.ones(1), eps=2.0**-23)


@pytest.mark.parametrize("path", PATHS)
def test_default_type_of_the_process_does_not_matter(path, monkeypatch):
    views, terms, _ = cases.make("drkf", 3, 4)
    got = []
    for dtype in (torch.float32, torch.float64):
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            lay_out.cache_clear()  # its tables are made in this type, too
            got.append(
                run(
                    path,
                    views,
                    torch.tensor(0.2, dtype=torch.float32),
                    terms,
                    None,
                    "none",
                    torch.ones(3),
                )
            )
        finally:
            torch.set_default_dtype(before)
    assert all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(*got, strict=True))


@triton.jit
def _rounded(x, y, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(y + i, kernels._tf32(tl.load(x + i)))


def test_rounding_keeps_what_is_not_a_number():
    """All bits of a GPU's NaN are set, and x86 knows another: neither may come out of the rounding
    as a number.
    """
    x = torch.tensor(
        [0x7FFFFFFF, -1, 0x7FC00000, 0x7F800000, 0x3F800FFF, 0x3F801000, 0, 0x7F7FFFFF],
        dtype=torch.int32,
    ).view(torch.float32)
    y = torch.empty_like(x)
    _rounded[(1,)](x, y, 8)
    assert y[:3].isnan().all()
    torch.testing.assert_close(
        y[3:], torch.tensor([torch.inf, 1.0, 1 + 2.0**-10, 0.0, torch.inf]), rtol=0, atol=0
    )


@pytest.mark.parametrize("path", PATHS)
def test_operator_without_gradients(path, monkeypatch):
    """Evaluation of a compiled model: an operator's results must not share storage, whatever is not
    needed.
    """
    monkeypatch.setattr(paths, "kernel_path", lambda rows, d: path)
    views, terms, _ = cases.make("drkf", 4, 6)
    tau = torch.tensor(0.2)
    losses, _ = contrastive_op(
        views, tau, None, encode(terms), "none", "ieee", "triton", [False] * 5
    )
    torch.testing.assert_close(losses, contrastive_terms(views, tau, terms, impl="chunked"))


def test_layouts_and_mixed_dtypes(monkeypatch):
    base = torch.randn(8, 12)
    views = [
        base[:, ::2],
        base.T[:6].T.to(torch.bfloat16),
        torch.randn(1, 6, dtype=torch.float16).expand(8, 6),
    ]
    terms = (Term((0, 1), (0, 1)), Term((0,), (2,)))
    want = oracle.gradients(
        lambda v, t: contrastive_terms(v, t, terms, impl="chunked"),
        views,
        torch.tensor(0.2),
        torch.ones(2),
    )
    for path in PATHS:
        got = run(path, views, torch.tensor(0.2), terms, None, "none", torch.ones(2))
        for a, b in zip(got, want, strict=True):
            assert a.dtype == b.dtype
            torch.testing.assert_close(
                a, b, rtol=2e-2 if b.dtype == torch.bfloat16 else 2e-3, atol=1e-4
            )


def test_what_kernels_cannot_take():
    double = torch.randn(3, 4, dtype=torch.float64)
    with pytest.raises(DependencyError, match="kernels take"):
        nt_xent(double, double, 0.1, impl="triton")
    many = [torch.randn(3, 4) for _ in range(9)]
    with pytest.raises(DependencyError, match="at most 8"):
        contrastive_terms(many, 0.1, [((0, 1), (0, 1))], impl="triton")


# The compiler remembers an operator's fake results by its arguments, so each path has a size of its
# own here.
ROWS = {"tiny": 5, "mid": 6, "large": 7}


@pytest.mark.slow
@pytest.mark.parametrize("path", PATHS)
def test_operator_contract(path, monkeypatch):
    views = [torch.randn(ROWS[path], 8, requires_grad=True) for _ in range(2)]
    tau = torch.tensor(0.2, requires_grad=True)
    # every row an anchor: what is kept for other rows is never written nor read
    spec = encode((Term((0, 1), (0, 1)),))
    args = (views, tau, None, spec, "none", "ieee", "triton", [True] * 3)
    monkeypatch.setattr(paths, "kernel_path", lambda rows, d: path)
    torch.library.opcheck(contrastive_op, args)


@pytest.mark.slow
@pytest.mark.parametrize("path", PATHS)
def test_torch_compile(path, monkeypatch):
    monkeypatch.setattr(paths, "kernel_path", lambda rows, d: path)
    x, y = (torch.randn(ROWS[path], 8, requires_grad=True) for _ in range(2))
    tau = torch.tensor(0.2, requires_grad=True)
    want = torch.autograd.grad(nt_xent(x, y, tau, impl="triton"), [x, y, tau])
    compiled = torch.compile(
        lambda a, b, t: nt_xent(a * 1.0, b, t, impl="triton"), fullgraph=True, backend="aot_eager"
    )
    got = torch.autograd.grad(compiled(x, y, tau), [x, y, tau])
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b)
    with torch.no_grad():  # of the inputs some still require gradients, none is computed
        torch.testing.assert_close(compiled(x, y, tau), nt_xent(x, y, tau, impl="triton"))


# --- the grid: test_kernels.py asks for it with -m slow


@pytest.mark.slow
@pytest.mark.parametrize("mode", oracle.MODES)
@pytest.mark.parametrize("name", cases.TERMS)
@pytest.mark.parametrize("path", PATHS)
def test_all_terms_and_labels(path, name, mode):
    compare(path, name, mode, 9, 33, 0.3)


@pytest.mark.slow
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("rows", "d"), [(1, 1), (4, 1), (4, 100), (7, 16), (20, 33)])
def test_sizes(path, rows, d):
    grid(path, rows, d)


@pytest.mark.exhaustive
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("rows", [1, 4, 7, 20, 33])
@pytest.mark.parametrize("d", [1, 16, 33, 100])
def test_grid_of_sizes(path, rows, d):
    grid(path, rows, d)


def grid(path, rows, d):
    if path == "tiny" and 4 * rows > limits.TINY_ROWS:
        pytest.skip("more rows than the tiny path holds")
    compare(path, "drkf", "none", rows, d, 0.2)


@pytest.mark.slow
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("tau", [1e-3, 0.01, 0.07, 0.5, 100.0])
def test_temperatures(path, tau):
    compare(path, "drkf", "none", 9, 24, tau)


@pytest.mark.slow
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("kind", cases.EXTREMES)
@pytest.mark.parametrize("mode", oracle.MODES)
def test_extremes(path, kind, mode):
    compare(path, "drkf", mode, 9, 12, 0.07, kind=kind, factor=8.0)
