"""Run by test_compile.py in a fresh process: what an import brings with it, then torch.compile of a
training step, with the compiler's frames counted. (A cached or skipped frame would pass any
comparison of numbers.)
"""

from __future__ import annotations

import sys

import torch

before = set(sys.modules)
from mer.fusion.ops import contrastive_terms  # noqa: E402

new = set(sys.modules) - before
assert "mer.fusion.ops.cpu.chunked" in new
heavy = ("triton", "mer.fusion.losses", "mer.fusion.ops.gpu")
assert not {m for m in new if m.startswith(heavy)}, (
    "the import brings Triton, kernels or the losses room"
)

from torch._dynamo.testing import CompileCounterWithBackend  # noqa: E402

backend = sys.argv[1]
TERMS = (((0, 1), (0, 1)), ((2, 3), (2, 3)), ((2, 0), (2, 0), False))
torch.manual_seed(0)
heads = torch.nn.ModuleList(torch.nn.Linear(6, 8) for _ in range(4))
theta = torch.nn.Parameter(torch.tensor(1.0))
x = [torch.randn(10, 6) for _ in range(4)]


def step():
    views = [head(v) for head, v in zip(heads, x, strict=True)]
    return contrastive_terms(views, torch.sigmoid(theta), TERMS).sum()


def grads(function):
    for p in (*heads.parameters(), theta):
        p.grad = None
    loss = function()
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in (*heads.parameters(), theta))]


want = grads(step)
counter = CompileCounterWithBackend(backend)
got = grads(torch.compile(step, fullgraph=True, backend=counter))
for a, b in zip(got, want, strict=True):
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
operators = [str(node.target) for graph in counter.graphs for node in graph.graph.nodes]
assert counter.frame_count == 1 and operators.count("mer.contrastive_terms.default") == 1, (
    counter.frame_count,
    operators,
)
print("frames", counter.frame_count)
