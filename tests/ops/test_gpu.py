"""What only a GPU can show: real tensor-core products in each type, run-to-run equality, graph
capture, compiled steps. Not part of any run without one (`-m gpu`).
"""

from __future__ import annotations

import pytest
import torch

import mer.fusion.ops.paths as paths
from mer.fusion.ops import Term, contrastive_terms, path_for

from tests.ops import cases, oracle
from tests.ops.cases import drkf, nt_xent

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
# the smallest at which the launcher takes them, or nearly
SIZES = {"tiny": (4, 256), "mid": (129, 200), "large": (516, 264)}


@pytest.mark.parametrize("path", SIZES)
@pytest.mark.parametrize(
    ("dtype", "precision", "eps"),
    [
        (torch.float32, "ieee", 2.0**-23), (torch.float32, "tf32", 2.0**-11),
        (torch.float16, "auto", 2.0**-11), (torch.bfloat16, "auto", 2.0**-8),
    ],
)  # fmt: skip
def test_against_float64(path, dtype, precision, eps, monkeypatch):
    monkeypatch.setattr(paths, "kernel_path", lambda rows, d: path)
    views, terms, _ = cases.make("drkf", *SIZES[path], dtype=dtype)
    weights, tau = torch.ones(3), torch.tensor(0.1)

    def ours(v, t, w):
        def function(x, u):
            return drkf(*x, tau=u, symmetric=False, impl="triton", precision=precision)

        return [
            g.cpu() for g in oracle.gradients(function, [x.cuda() for x in v], t.cuda(), w.cuda())
        ]

    cases.no_worse(ours, views, tau, terms, weights=weights, eps=eps)


@pytest.mark.parametrize(
    ("name", "mode"), [("symmetric+one-way", "none"), ("queue", "supcon"), ("queue", "exclude")]
)
@pytest.mark.parametrize("path", SIZES)
def test_terms_and_labels(path, name, mode, monkeypatch):
    """Views of negatives only, both label modes, one temperature per term."""
    monkeypatch.setattr(paths, "kernel_path", lambda rows, d: path)
    views, terms, labels = cases.make(name, 12 if path == "tiny" else 130, 72)
    labels = labels if mode != "none" else None
    taus, weights = torch.linspace(0.1, 0.3, len(terms)), torch.ones(len(terms))

    def ours(v, t, w):
        def function(x, u):
            there = [each.cuda() for each in labels] if labels else None
            return contrastive_terms(x, u, terms, there, mode, impl="triton", precision="ieee")

        return [
            g.cpu() for g in oracle.gradients(function, [x.cuda() for x in v], t.cuda(), w.cuda())
        ]

    cases.no_worse(ours, views, taus, terms, labels, mode, weights=weights, eps=2.0**-23)


@pytest.mark.parametrize("path", SIZES)
def test_bitwise_repeatable_and_capturable(path):
    rows, d = SIZES[path]
    views = [torch.randn(rows, d, device="cuda", requires_grad=True) for _ in range(4)]
    tau = torch.tensor(0.1, device="cuda", requires_grad=True)
    terms = (*oracle.DRKF[:2], Term((2, 0), (2, 0), mask_self=False))
    assert path_for(views, terms) == path

    def step():
        return torch.autograd.grad(drkf(*views, tau=tau).sum(), [*views, tau])

    first = step()
    assert all(torch.equal(a, b) for _ in range(20) for a, b in zip(first, step(), strict=True))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = step()
    for _ in range(3):
        graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(first, out, strict=True))


@pytest.mark.parametrize("path", SIZES)
def test_calls_in_flight_on_two_streams(path):
    """Each stream has its own counter for the last-block sum; the tables were made on neither."""
    rows, d = SIZES[path]
    views = [torch.randn(rows, d, device="cuda", requires_grad=True) for _ in range(4)]

    def step():
        return torch.autograd.grad(drkf(*views, tau=0.1).sum(), views)

    first, streams = step(), [torch.cuda.Stream() for _ in range(2)]
    torch.cuda.synchronize()
    got: list = []
    for _ in range(30):
        for stream in streams:
            with torch.cuda.stream(stream):
                got.append(step())
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for each in got for a, b in zip(first, each, strict=True))


@pytest.mark.parametrize("precision", ["ieee", "tf32", "fast"])
@pytest.mark.parametrize("path", SIZES)
def test_what_is_not_a_number_stays_so(path, precision):
    """A gradient scaler skips a step by its NaN: no rounding or maximum may swallow it."""
    rows, d = SIZES[path]
    x, y = (torch.randn(2 * rows, d, device="cuda") for _ in range(2))
    x[3, 5] = torch.zeros((), device="cuda") / 0  # as the chip writes it
    x, y = x.requires_grad_(), y.requires_grad_()
    assert path_for([x, y], [Term((0, 1), (0, 1))]) == path
    loss = nt_xent(x, y, 0.1, precision=precision)
    assert all(t.isnan().all() for t in (loss, *torch.autograd.grad(loss, [x, y])))


@pytest.mark.parametrize("path", SIZES)
def test_low_temperature_far_below(path, monkeypatch):
    monkeypatch.setattr(paths, "kernel_path", lambda rows, d: path)
    x = torch.rand(21, 40, generator=torch.Generator().manual_seed(0)) + 0.2
    terms = (Term((0,), (1,)),)

    def ours(v, t, w):
        def function(u, s):
            return contrastive_terms(u, s, terms, impl="triton", precision="ieee")

        return [
            g.cpu() for g in oracle.gradients(function, [u.cuda() for u in v], t.cuda(), w.cuda())
        ]

    cases.no_worse(
        ours, [x, -x.flip(0)], torch.tensor(0.005), terms, weights=torch.ones(1), eps=2.0**-23
    )


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
def test_no_synchronisation():
    x, tau = (
        torch.randn(64, 64, device="cuda", requires_grad=True),
        torch.tensor(0.1, device="cuda", requires_grad=True),
    )
    nt_xent(x, x.detach(), tau).backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        nt_xent(x, x.detach(), tau).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


# the compiler warns about float32 products without tf32, among others
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
@pytest.mark.parametrize(
    ("path", "rows", "d"), [("tiny", 5, 64), ("mid", 40, 64), ("large", 70, 1032)]
)
def test_compiled_step(path, rows, d, mode):
    """No eager call of these sizes before: tables and counters must not be made inside of a
    captured graph's memory.
    """
    torch._dynamo.reset()
    x, y = (torch.randn(rows, d, device="cuda", requires_grad=True) for _ in range(2))
    tau = torch.tensor(0.1, device="cuda", requires_grad=True)
    assert path_for([x, y], [Term((0, 1), (0, 1))]) == path
    compiled = torch.compile(lambda a, b, t: nt_xent(a, b, t), fullgraph=True, mode=mode)
    for _ in range(4):
        torch.compiler.cudagraph_mark_step_begin()
        loss = compiled(x, y, tau)
        got = [loss.detach().clone(), *(g.clone() for g in torch.autograd.grad(loss, [x, y, tau]))]
        del loss
    with torch.no_grad():
        for _ in range(4):
            torch.compiler.cudagraph_mark_step_begin()
            alone = compiled(x, y, tau).clone()
    loss = nt_xent(x, y, tau)
    want = [loss.detach(), *torch.autograd.grad(loss, [x, y, tau])]
    for a, b in zip([*got, alone], [*want, want[0]], strict=True):
        torch.testing.assert_close(a, b)
