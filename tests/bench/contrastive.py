"""`python -m tests.bench contrastive`: time and memory of the contrastive losses against their
peers.

The peers of a size are checked against float64 first, then timed in interleaved rounds of one
process (so that a slow spell of the machine hits all of them), and the minimum and the median are
reported. On a CPU time is CPU time of one thread. On a GPU it is event time, per call and per
replay of a captured CUDA graph, beside the host's time. The share of the floor is that of the
fewest matrix operations, at the rate of this machine's own matrix product on a CPU and of an H200's
data sheet on a GPU. Rows already in the CSV stay, unless they are measured anew: a grid may be run
in slices, and `--minutes` and `--missing` cut and continue one.

A peer that fails costs no other's figures: it gets a row "failed" with the reason. On a GPU the
measuring process is a child, as a kernel that faults takes its process with it and one that hangs
must be killed; the size is then measured again without that peer.

A peer that lacks a term (no mask) is left out of that workload and not credited with skipping it.
pytorch-metric-learning, lightly and open_clip are timed where they are installed; the first two
take the temperature as a number and skip its gradient.
"""

from __future__ import annotations

import argparse
import csv
import gc
import json
import math
import os
import statistics
import time
from collections.abc import Callable
from functools import cache, cached_property
from importlib import metadata
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from mer.fusion.ops import Term, contrastive_terms

from tests.bench.child import Child, reason_of
from tests.bench.machine import RESULTS, describe, save

TAU = 0.1
# matrix operations per second, NVIDIA's data sheet; the first is tf32 / 3
H200 = {"tf32x3": 132e12, "tf32": 395e12, "16 bit": 790e12}
EAGER_LIMIT = 20e9  # bytes of a CPU's memory that eager may take
CPU_GRID = [
    (4, 256),
    (32, 256),
    (128, 256),
    (512, 64),
    (512, 256),
    (512, 1024),
    (2048, 256),
    (8192, 256),
]
GPU_GRID = [
    (b, d)
    for d in (256, 1024, 64)
    for b in (4, 16, 32, 64, 128, 512, 1024, 4096, 16384, 65536, 131072)
]
# name -> (views, fewest matrix operations over B*B*D: similarities once, by symmetry half, and both
# products with G; eager's float32 entries over B*B)
WORKLOADS = {
    "nt_xent": (2, 12, 25.2),
    "info_nce": (2, 6, 6.3),
    "clip": (2, 6, 8.0),
    "drkf": (4, 30, 58.4),
}
TITLES = {
    "nt_xent": "NT-Xent",
    "info_nce": "InfoNCE",
    "clip": "InfoNCE, both directions",
    "drkf": "DRKF's three terms",
}
KEYS = ("workload", "B", "D", "dtype", "peer", "what")
BATCH_SECONDS = 0.02  # of calls between two events on a GPU
SIZE_SECONDS = 6.0  # of all rounds of one size on a GPU
# longer steps are not captured: their launches are no part of the time, and the graph doubles the
# memory
GRAPH_SECONDS = 0.05


# --- peers


class Eager:
    """The losses as plain PyTorch, at their best: masks and targets are made once for a size."""

    def __init__(self, rows: int, device: torch.device):
        self.rows = rows
        self.same = torch.arange(rows, device=device)
        self.positive = torch.cat([self.same + rows, self.same])

    @cached_property
    def mask(self) -> Tensor:
        """Of NT-Xent alone; 69 GB at B = 131,072, where only peers without it are left."""
        return torch.eye(2 * self.rows, dtype=torch.bool, device=self.same.device)

    def nt_xent(self, x: Tensor, y: Tensor, tau: Tensor) -> Tensor:
        z = torch.cat([F.normalize(x), F.normalize(y)])
        return F.cross_entropy((z @ z.T / tau).masked_fill(self.mask, -torch.inf), self.positive)

    def info_nce(self, x: Tensor, y: Tensor, tau: Tensor) -> Tensor:
        return F.cross_entropy(F.normalize(x) @ F.normalize(y).T / tau, self.same)

    def clip(self, x: Tensor, y: Tensor, tau: Tensor) -> Tensor:
        logits = F.normalize(x) @ F.normalize(y).T / tau
        return (F.cross_entropy(logits, self.same) + F.cross_entropy(logits.T, self.same)) / 2

    def drkf(self, t: Tensor, gt: Tensor, a: Tensor, ga: Tensor, tau: Tensor) -> Tensor:
        return self.nt_xent(t, gt, tau) + self.nt_xent(a, ga, tau) + self.clip(a, t, tau)


TERMS = {
    "nt_xent": (Term((0, 1), (0, 1)),),
    "info_nce": (Term((0,), (1,)),),
    "clip": (Term((0, 1), (0, 1), mask_self=False),),
    # of text, augmented text, audio, augmented audio
    "drkf": (
        Term((0, 1), (0, 1)),
        Term((2, 3), (2, 3)),
        Term((2, 0), (2, 0), mask_self=False),
    ),
}


def ours(workload: str) -> Callable:
    def function(*inputs: Tensor) -> Tensor:
        *views, tau = inputs
        return contrastive_terms(views, tau, TERMS[workload]).sum()

    return function


class _InfCL(torch.autograd.Function):
    """Mean of log-sum-exp minus positive by the published algorithm of Inf-CL (Cheng et al., arXiv
    2410.17243): tiles of the similarities with a running log-sum-exp, recomputed in the backward
    pass for dq and dk. Its kernel has no self-mask; it is added here, as its algorithm allows, to
    make it a peer at all. On a CPU: the same tiles in PyTorch.
    """

    TILE = 1024

    @staticmethod
    def forward(ctx, q, k, positive, masked):
        lse = q.new_full((len(q),), -torch.inf)
        for i in range(0, len(q), _InfCL.TILE):
            rows = slice(i, i + _InfCL.TILE)
            for j in range(0, len(k), _InfCL.TILE):
                lse[rows] = torch.logaddexp(lse[rows], _InfCL.tile(q, k, i, j, masked).logsumexp(1))
        ctx.save_for_backward(q, k, positive, lse)
        ctx.masked = masked
        return (lse - (q * k[positive]).sum(1)).mean()

    @staticmethod
    def tile(q, k, i, j, masked):
        s = q[i : i + _InfCL.TILE] @ k[j : j + _InfCL.TILE].T
        return s.fill_diagonal_(-torch.inf) if masked and i == j else s

    @staticmethod
    def backward(ctx, grad):
        q, k, positive, lse = ctx.saved_tensors
        dq, dk = -k[positive], torch.zeros_like(k).index_add_(0, positive, -q)
        for i in range(0, len(q), _InfCL.TILE):
            for j in range(0, len(k), _InfCL.TILE):
                p = _InfCL.tile(q, k, i, j, ctx.masked).sub_(lse[i : i + _InfCL.TILE, None]).exp_()
                dq[i : i + _InfCL.TILE].addmm_(p, k[j : j + _InfCL.TILE])
                dk[j : j + _InfCL.TILE].addmm_(p.T, q[i : i + _InfCL.TILE])
        share = grad / len(q)
        return dq.mul_(share), dk.mul_(share), None, None


def inf_cl(workload: str, eager: Eager) -> Callable:
    def one_way(x: Tensor, y: Tensor, tau: Tensor) -> Tensor:
        return _InfCL.apply(x / tau, y, eager.same, False)

    def function(x: Tensor, y: Tensor, tau: Tensor) -> Tensor:
        x, y = F.normalize(x), F.normalize(y)
        if workload == "nt_xent":
            z = torch.cat([x, y])
            return _InfCL.apply(z / tau, z, eager.positive, True)
        return (
            one_way(x, y, tau)
            if workload == "info_nce"
            else (one_way(x, y, tau) + one_way(y, x, tau)) / 2
        )

    return function


def on_gpu(function: Callable, path: str | None = None, tile: str | None = None) -> Callable:
    """Ours with the launcher's own table, or on another path, or with other tiles on that path:
    where the table's borders and sizes should be is what this shows. What is set at a call holds
    until the next, as its backward pass needs it, too.
    """
    import mer.fusion.ops.gpu.launch as launch
    import mer.fusion.ops.paths as paths

    table = [(paths, "kernel_path"), (launch, "mid_tile"), (launch, "large_tile")]
    chosen = {}
    for module, name in table:
        kept = vars(module).setdefault("_of_bench", {})
        chosen[module, name] = kept.setdefault(name, getattr(module, name))
    if path:
        chosen[paths, "kernel_path"] = lambda rows, d: path
    if tile:
        sizes = launch.KernelTile(*map(int, tile.split("x")))
        chosen[launch, f"{path}_tile"] = lambda *a: sizes

    def call(*inputs: Tensor) -> Tensor:
        for (module, name), value in chosen.items():
            setattr(module, name, value)
        return function(*inputs)

    return call


def new_step(function: Callable) -> Callable:
    """Tells reduce-overhead that earlier results may be overwritten."""

    def call(*inputs: Tensor) -> Tensor:
        torch.compiler.cudagraph_mark_step_begin()
        return function(*inputs)

    return call


@cache
def absent(name: str, missing: str) -> None:
    print(f"{name} left out: {missing}", flush=True)


def packages(workload: str, rows: int, device: torch.device) -> dict[str, Callable]:
    """Published losses of the same value, where they are installed."""
    found: dict[str, Callable] = {}
    if workload == "nt_xent" and rows <= 256:  # O(B^3) memory
        try:
            from pytorch_metric_learning.losses import NTXentLoss

            metric, labels = NTXentLoss(TAU), torch.arange(rows, device=device).repeat(2)
            found["pytorch-metric-learning"] = lambda x, y, tau: metric(torch.cat([x, y]), labels)
        except ImportError as missing:
            absent("pytorch-metric-learning", str(missing))
    if workload == "nt_xent":
        try:
            from lightly.loss import NTXentLoss as LightlyNTXent

            lightly = LightlyNTXent(TAU)
            found["lightly"] = lambda x, y, tau: lightly(x, y)
        except ImportError as missing:
            absent("lightly", str(missing))
    if workload == "clip":
        try:
            from open_clip.loss import ClipLoss

            clip = ClipLoss(cache_labels=True)
            found["open_clip"] = lambda x, y, tau: clip(F.normalize(x), F.normalize(y), 1 / tau)
        except ImportError as missing:
            absent("open_clip", str(missing))
    return found


DISTRIBUTIONS = {
    "pytorch-metric-learning": "pytorch-metric-learning",
    "lightly": "lightly",
    "open_clip": "open_clip_torch",
}


def peers(
    workload: str,
    rows: int,
    d: int,
    device: torch.device,
    *,
    compile_peers: bool,
    paths: bool,
    tiles: tuple[str, ...],
) -> dict[str, Callable]:
    """name -> function of (views..., tau). `mer` is ours; `eager` is what the ratios are of."""
    eager = Eager(rows, device)
    cuda = device.type == "cuda"
    limit = torch.cuda.get_device_properties(device).total_memory if cuda else EAGER_LIMIT
    fits = WORKLOADS[workload][2] * 4 * rows * rows < limit
    plain = getattr(eager, workload)
    # first: it makes the mask that torch.compile finds
    out: dict[str, Callable] = {"eager": plain} if fits else {}
    # beyond, its loop in Python is what would be timed
    if workload != "drkf" and (not cuda or rows <= 4096):
        out["inf-cl's tiles in PyTorch" if cuda else "inf-cl"] = inf_cl(workload, eager)
    if fits:
        out |= packages(workload, rows, device)
    if compile_peers and fits:
        out["torch.compile"] = torch.compile(plain, dynamic=False)
        if cuda:
            out["torch.compile reduce-overhead"] = new_step(
                torch.compile(plain, dynamic=False, mode="reduce-overhead")
            )
    out["mer"] = on_gpu(ours(workload)) if cuda else ours(workload)
    if cuda:
        flat = rows * WORKLOADS[workload][0]
        for path, most in (("tiny", 64), ("mid", 32768), ("large", 1 << 20)):
            if paths and flat <= most:
                out[f"mer, {path} path"] = on_gpu(ours(workload), path)
        for name in tiles:
            out[f"mer, {name}"] = on_gpu(ours(workload), *name.split(":"))
    return out


# --- measuring


def make_inputs(
    workload: str, rows: int, d: int, device: torch.device, dtype: torch.dtype
) -> list[Tensor]:
    g = torch.Generator().manual_seed(rows * 7919 + d)
    views = [torch.randn(rows, d, generator=g) for _ in range(WORKLOADS[workload][0])]
    return [v.to(device, dtype).requires_grad_() for v in views] + [
        torch.tensor(TAU, device=device, requires_grad=True)
    ]


def step(function: Callable, inputs: list[Tensor], *, backward: bool) -> Tensor:
    if not backward:
        with torch.no_grad():
            return function(*inputs)
    for tensor in inputs:
        tensor.grad = None
    loss = function(*inputs)
    loss.backward()
    return loss


def reference(workload: str, inputs: list[Tensor], rows: int) -> Tensor:
    """Gradient of the first view in float64 (beyond B = 2048 that of eager float32, for want of
    memory).
    """
    exact = [
        t.detach().to(torch.float64 if rows <= 2048 else torch.float32).requires_grad_()
        for t in inputs
    ]
    step(getattr(Eager(rows, inputs[0].device), workload), exact, backward=True)
    return exact[0].grad


def check(function: Callable, inputs: list[Tensor], want: Tensor) -> float:
    """Relative error of the first view's gradient; RuntimeError if the peer is off and not to be
    timed.
    """
    step(function, inputs, backward=True)
    error = float((inputs[0].grad.double() - want).norm() / want.norm())
    if not error <= (1e-3 if inputs[0].dtype == torch.float32 else 5e-2):  # NaN is off, too
        raise RuntimeError(f"gradient off by {error:.1e}")
    return error


def high_water() -> int:
    """KiB."""
    return next(
        int(line.split()[1])
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("VmHWM")
    )


def cpu_peak_bytes(function: Callable, inputs: list[Tensor]) -> int:
    """Growth of the resident set over one step, in a forked child, whose high-water mark is its
    own.
    """
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        Path("/proc/self/clear_refs").write_text("5")  # the mark starts at what is resident now
        before = high_water()
        step(function, inputs, backward=True)
        os.write(write, str(high_water() - before).encode())
        os._exit(0)
    os.close(write)
    text = os.read(read, 64).decode()
    os.close(read)
    os.waitpid(child, 0)
    return int(text) * 1024 if text else -1


def gpu_seconds(call: Callable[[], object], repeats: int) -> tuple[float, float]:
    """(device, host) seconds per call.

    The host's is of the first few, which no full queue holds up.
    """
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    few = min(repeats, 4)
    torch.cuda.synchronize()
    start = time.perf_counter()
    begin.record()
    for _ in range(few):
        call()
    host = (time.perf_counter() - start) / few
    for _ in range(repeats - few):
        call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3 / repeats, host


def gpu_warm(call: Callable[[], object]) -> tuple[float, int]:
    """Seconds per call once compiled and recorded (reduce-overhead takes two calls for that), and
    calls for one round.
    """
    call()
    seconds = math.inf
    for _ in range(3):
        seconds = min(seconds, gpu_seconds(call, 1)[0])
        if seconds > 2:
            break
    return seconds, max(1, min(200, int(BATCH_SECONDS / seconds)))


def gpu_peak_bytes(function: Callable, inputs: list[Tensor]) -> int:
    """Memory of one step beyond the inputs, their gradients included."""
    for tensor in inputs:
        tensor.grad = None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step(function, inputs, backward=True)
    return torch.cuda.max_memory_allocated() - before


def captured(function: Callable, inputs: list[Tensor]) -> Callable:
    """The training step as one CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step(function, inputs, backward=True)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step(function, inputs, backward=True)
    return graph.replay


def floor_seconds(workload: str, rows: int, d: int, inputs: list[Tensor]) -> float:
    """Least time of the matrix operations that forward and backward need."""
    operations = WORKLOADS[workload][1] * rows * rows * d
    x = inputs[0].detach()
    if x.is_cuda:
        high = torch.backends.cuda.matmul.fp32_precision == "tf32"
        return (
            operations
            / H200["16 bit" if x.dtype != torch.float32 else "tf32" if high else "tf32x3"]
        )
    a, best = torch.randn(512, d), float("inf")
    out = torch.empty(512, 512)
    for _ in range(20):
        start = time.process_time()
        torch.mm(a, a.T, out=out)
        best = min(best, time.process_time() - start)
    return operations * best / (2 * 512 * 512 * d)


class Series:
    """The calls of one peer and what has been measured of them."""

    def __init__(self, peer: str, what: str, call: Callable[[], object], cuda: bool):
        self.peer, self.what, self.call, self.cuda = peer, what, call, cuda
        self.samples: list[float] = []
        self.hosts: list[float] = []
        self.seconds, self.repeats = gpu_warm(call) if cuda else (0.0, 1)

    def measure(self) -> None:
        if self.cuda:
            device, host = gpu_seconds(self.call, self.repeats)
            self.samples.append(device)
            self.hosts.append(host)
        else:
            start = time.process_time()
            self.call()
            self.samples.append(time.process_time() - start)


def measure(
    workload: str,
    rows: int,
    d: int,
    device: torch.device,
    dtype: torch.dtype,
    *,
    rounds: int,
    compile_peers: bool,
    paths: bool = False,
    tiles: tuple[str, ...] = (),
    left_out: tuple[str, ...] = (),
    note: Callable[[str], None] = lambda peer: None,
) -> list[dict]:
    """The rows of one size. `note` is told which peer is run next."""
    cuda = device.type == "cuda"
    key = {"workload": workload, "B": rows, "D": d, "dtype": str(dtype)[6:]}
    inputs = make_inputs(workload, rows, d, device, dtype)
    functions = peers(
        workload, rows, d, device, compile_peers=compile_peers, paths=paths, tiles=tiles
    )
    want, errors, peaks, failed = None, {}, {}, []
    series: list[Series] = []

    def call(name: str, backward: bool) -> Callable[[], object]:
        return lambda: step(functions[name], inputs, backward=backward)

    for name in ["reference"] * ("eager" in functions) + [
        name for name in functions if name not in left_out
    ]:
        note(name)
        try:
            if name == "reference":
                want = reference(workload, inputs, rows)
                continue
            errors[name] = check(functions[name], inputs, want) if want is not None else math.nan
            mine = [
                Series(name, "forward", call(name, False), cuda),
                Series(name, "forward+backward", call(name, True), cuda),
            ]
            # whose memory is a pool of its own, taken once
            if cuda and "reduce-overhead" not in name:
                peaks[name] = gpu_peak_bytes(functions[name], inputs)
            series += mine
        except Exception as failure:
            failed.append(key | {"peer": name, "what": "failed", "failure": reason_of(failure)})
        finally:
            for tensor in inputs:
                tensor.grad = None
            if cuda:
                # raises where the peer has ended this process's use of the GPU: the child is then
                # replaced
                torch.cuda.synchronize()
                if failed and failed[-1]["peer"] == name:
                    gc.collect()
                    torch.cuda.empty_cache()
    for name in ("eager", "mer") if cuda else ():
        graph, whole = (
            f"{name} in a CUDA graph",
            [one for one in series if (one.peer, one.what) == (name, "forward+backward")],
        )
        if whole and whole[0].seconds < GRAPH_SECONDS and graph not in left_out:
            # a failed capture leaves the allocator and the current stream behind as they were in
            # it: the child ends, too
            note(graph)
            series.append(
                Series(graph, "forward+backward", captured(functions[name], inputs), cuda)
            )
    if cuda and series:
        rounds = max(3, min(rounds, int(SIZE_SECONDS / sum(s.seconds * s.repeats for s in series))))
    for _ in range(rounds):
        for one in series:
            note(one.peer)
            one.measure()
    rows_out, floor = [], floor_seconds(workload, rows, d, inputs)
    bases = {one.what: min(one.samples) for one in series if one.peer == "eager"}
    for one in series:
        name, seconds = one.peer, one.samples
        row = key | {
            "peer": name,
            "what": one.what,
            "rounds": rounds,
            "min_ms": round(min(seconds) * 1e3, 4),
            "median_ms": round(statistics.median(seconds) * 1e3, 4),
            "times_eager": round(bases[one.what] / min(seconds), 3) if one.what in bases else None,
            "gradient_error": f"{errors[name]:.1e}" if name in errors else None,
            "version": metadata.version(DISTRIBUTIONS[name]) if name in DISTRIBUTIONS else None,
        }
        if cuda:
            row["host_ms"] = round(min(one.hosts) * 1e3, 4)
        if one.what == "forward+backward" and name in functions:
            row["percent_of_floor"] = round(100 * floor / min(seconds), 1)
            if cuda:
                row["peak_MiB"] = round(peaks[name] / 2**20, 2) if name in peaks else None
            elif "compile" not in name:
                row["peak_MiB"] = round(cpu_peak_bytes(functions[name], inputs) / 2**20, 2)
        rows_out.append(row)
    return rows_out + failed


# --- the grid


def merged(path: Path, new: list[dict]) -> list[dict]:
    """Rows of an earlier run's JSON, with what was measured anew in their place."""
    old = json.loads(path.read_text())["rows"] if path.exists() else []
    taken = {tuple(row[key] for key in KEYS[:4]) for row in new}  # a size is measured as a whole
    rows = [row for row in old if tuple(row[key] for key in KEYS[:4]) not in taken] + new
    return sorted(
        rows,
        key=lambda row: (list(WORKLOADS).index(row["workload"]), row["D"], row["B"], row["dtype"]),
    )


def write_csv(path: Path, rows: list[dict]) -> None:
    fields = list(dict.fromkeys(key for row in rows for key in row))
    fields.sort(key=lambda key: key in ("machine", "torch", "commit", "load"))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fields)
        writer.writeheader()
        writer.writerows(rows)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench contrastive", description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument(
        "--size", action="append", metavar="BxD", help="instead of the whole grid; may be repeated"
    )
    parser.add_argument("--workload", choices=list(WORKLOADS), action="append")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument(
        "--compile-everywhere",
        action="store_true",
        help="on a GPU torch.compile is measured at D = 256 alone, else",
    )
    parser.add_argument(
        "--paths", action="store_true", help="on a GPU: ours on each of its paths, too"
    )
    parser.add_argument(
        "--tile", action="append", default=[], metavar="PATH:BMxBNxBKxBDxWARPSxSTAGES",
        help="on a GPU: ours with these tiles, too (mid:..., large:...); may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--minutes", type=float, default=math.inf, help="begin no size after this time"
    )
    parser.add_argument(
        "--missing", action="store_true", help="only sizes that the CSV does not have"
    )
    parser.add_argument(
        "--out", type=Path, default=RESULTS, help="folder for contrastive_{cpu,gpu}.csv and .json"
    )
    parser.add_argument(
        "--plot", action="store_true", help="only redraw docs/contrastive_*.svg from the CSV files"
    )
    options = parser.parse_args(argv)
    if options.plot:
        for path in sorted(options.out.glob("contrastive_*.csv")):
            plot(path, Path("docs") / f"{path.stem}.svg")
        return
    device = torch.device(options.device)
    if device.type == "cpu":
        torch.set_num_threads(1)
    grid = CPU_GRID if device.type == "cpu" else GPU_GRID
    if options.size:
        grid = [tuple(map(int, size.split("x"))) for size in options.size]
    path = options.out / f"contrastive_{'cpu' if device.type == 'cpu' else 'gpu'}.json"
    cuda, dtype, machine, begin, late, broken = (
        device.type == "cuda",
        options.dtype,
        describe(),
        time.monotonic(),
        [],
        [],
    )
    tasks = [(workload, b, d) for workload in options.workload or list(WORKLOADS) for b, d in grid]
    if cuda and not options.size:  # D = 256 of all workloads first
        tasks.sort(key=lambda task: [d for _, d in GPU_GRID].index(task[2]))
    if options.missing:
        have = {tuple(row[key] for key in KEYS[:4]) for row in merged(path, [])}
        tasks = [task for task in tasks if (*task, dtype) not in have]
    child = Child(measure)
    run = child if cuda else measure
    try:
        for workload, b, d in tasks:
            if time.monotonic() - begin > 60 * options.minutes:
                late.append(f"{workload} {b}x{d}")
                continue
            few = max(2, min(options.rounds, int(2e9 / (b * b * d + 1)) + 2))
            rounds, compiles = options.rounds, d == 256 or options.compile_everywhere
            if not cuda:
                rounds, compiles = 20 * rounds if b <= 128 else few, b <= 512
            compiles = compiles and not options.no_compile
            more = {"compile_peers": compiles, "paths": options.paths, "tiles": tuple(options.tile)}
            new = run(workload, b, d, device, getattr(torch, dtype), rounds=rounds, **more)
            for row in new:
                row |= {
                    "machine": machine["gpu"] or machine["cpu"],
                    "torch": machine["versions"]["torch"],
                    "commit": machine["commit"],
                    "load": round(os.getloadavg()[0], 2),
                }
                place = f"{workload:8} B={b:<6} D={d:<5} {row['peer']:32}"
                if row["what"] == "failed":
                    print(f"{place} failed: {row['failure']}", flush=True)
                    broken += [place] * (row["peer"].startswith("mer") or row["peer"] == "start")
                elif row["what"] == "forward+backward":
                    ratio = f"{row['times_eager']:6.2f} x eager" if row["times_eager"] else ""
                    print(f"{place} {row['min_ms']:12.3f} ms {ratio}", flush=True)
            if not cuda:  # the child does so itself
                gc.collect()
                torch._dynamo.reset()
            rows = merged(path, new)  # after every size: an interrupted run keeps what it has
            save(path.stem, rows, command="python -m tests.bench contrastive", folder=options.out)
            write_csv(path.with_suffix(".csv"), rows)
    finally:
        child.close()
    if late:
        print(
            f"not begun within {options.minutes:g} minutes (--missing continues): {', '.join(late)}"
        )
    print(f"wrote {path} and {path.with_suffix('.csv').name}")
    if broken:
        raise SystemExit("not measured: " + "; ".join(" ".join(place.split()) for place in broken))


def plot(source: Path, out: Path) -> None:
    """Speed relative to fair eager over B, at D = 256, forward and backward."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "mer"
    matplotlib.rcParams["svg.fonttype"] = "none"
    from matplotlib import pyplot as plt

    with source.open() as file:
        rows = [
            r
            for r in csv.DictReader(file)
            if r["what"] == "forward+backward" and r["D"] == "256" and r["times_eager"]
        ]
    names = list(dict.fromkeys(r["peer"] for r in rows))
    figure, axes = plt.subplots(
        1, len(WORKLOADS), figsize=(11, 3.2), sharey=True, layout="constrained"
    )
    for axis, workload in zip(axes, WORKLOADS, strict=True):
        for i, peer in enumerate(names):
            points = sorted(
                (int(r["B"]), float(r["times_eager"]))
                for r in rows
                if r["workload"] == workload and r["peer"] == peer
            )
            if points:
                axis.plot(
                    *zip(*points, strict=True),
                    f"C{i}o-",
                    label=peer,
                    linewidth=2.4 if peer == "mer" else 1.2,
                    markersize=4,
                )
        axis.set(xscale="log", yscale="log", xlabel="batch B", title=TITLES[workload])
        axis.set_ylim(bottom=0.22)  # what falls further behind leaves the picture; it is in the CSV
        ratios = [r for r in (0.25, 0.5, 1, 2, 4, 8, 16, 32, 64) if r <= axis.get_ylim()[1]]
        axis.set_yticks(ratios, [f"{r:g}" for r in ratios])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("times as fast as eager")
    handles = {
        label: handle
        for axis in axes
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        handles.values(), handles, loc="outside lower center", ncols=len(handles), fontsize=8
    )
    machines = ", ".join(sorted({r["machine"] for r in rows}))
    figure.suptitle(
        f"forward + backward, D = 256, {machines}{', one thread' if 'cpu' in source.stem else ''}",
        fontsize=10,
    )
    out.parent.mkdir(exist_ok=True)
    figure.savefig(out, metadata={"Date": None})
    print(f"wrote {out}")
