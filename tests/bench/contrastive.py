"""`python -m tests.bench contrastive`: time and memory of the contrastive losses against their peers.

One process; the peers of a size are checked against float64 first, then timed in interleaved rounds (so that a slow spell of the
machine hits all of them), and the minimum and the median are reported. On a CPU time is CPU time of one thread. On a GPU it is event
time, per call and per replay of a captured CUDA graph, beside the host's time. The share of the floor is that of the fewest matrix
operations, at the rate of this machine's own matrix product on a CPU and of an H200's data sheet on a GPU. Rows already in the CSV
stay, unless they are measured anew: a grid may be run in slices.

A peer that lacks a term (no mask) is left out of that workload and not credited with skipping it. pytorch-metric-learning, lightly and
open_clip are timed where they are installed; the first two take the temperature as a number and skip its gradient.
"""

from __future__ import annotations

import argparse
import csv
import gc
import json
import os
import statistics
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from fusion.ops import drkf_contrastive, info_nce, nt_xent
from tests.bench.machine import RESULTS, describe, save

TAU = 0.1
H200 = {"tf32x3": 132e12, "tf32": 395e12, "16 bit": 790e12}  # matrix operations a second, NVIDIA's data sheet; the first is tf32 / 3
EAGER_LIMIT = 20e9  # bytes of a CPU's memory that eager may take
CPU_GRID = [(4, 256), (32, 256), (128, 256), (512, 64), (512, 256), (512, 1024), (2048, 256), (8192, 256)]
GPU_GRID = [(b, d) for d in (64, 256, 1024) for b in (4, 16, 32, 64, 128, 512, 1024, 4096, 16384, 65536, 131072)]
# name -> (views, fewest matrix operations over B*B*D: similarities once, by symmetry half, and both products with G; eager's
# float32 entries over B*B)
WORKLOADS = {"nt_xent": (2, 12, 25.2), "info_nce": (2, 6, 6.3), "clip": (2, 6, 8.0), "drkf": (4, 30, 58.4)}
TITLES = {"nt_xent": "NT-Xent", "info_nce": "InfoNCE", "clip": "InfoNCE, both directions", "drkf": "DRKF's three terms"}
KEYS = ("workload", "B", "D", "dtype", "peer", "what")


# --- peers ------------------------------------------------------------------------------------------------------------------------


class Eager:
    """The losses as plain PyTorch, at their best: masks and targets are made once for a size."""

    def __init__(self, rows: int, device: torch.device):
        self.mask = torch.eye(2 * rows, dtype=torch.bool, device=device)
        index = torch.arange(rows, device=device)
        self.positive, self.same = torch.cat([index + rows, index]), index

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


OURS = {
    "nt_xent": nt_xent,
    "info_nce": info_nce,
    "clip": lambda x, y, tau: info_nce(x, y, tau, symmetric=True),
    "drkf": lambda *a: drkf_contrastive(*a).sum(),
}


class _InfCL(torch.autograd.Function):
    """Mean of log-sum-exp minus positive by the published algorithm of Inf-CL (Cheng et al., arXiv 2410.17243): tiles of the
    similarities with a running log-sum-exp, recomputed in the backward pass for dq and dk. Its kernel has no self-mask; it is added
    here, as its algorithm allows, to make it a peer at all. On a CPU: the same tiles in PyTorch."""

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
        return one_way(x, y, tau) if workload == "info_nce" else (one_way(x, y, tau) + one_way(y, x, tau)) / 2

    return function


def packages(workload: str, rows: int, device: torch.device) -> dict[str, Callable]:
    """Published losses of the same value, where they are installed."""
    found: dict[str, Callable] = {}
    if workload == "nt_xent" and rows <= 256:  # O(B^3) memory
        try:
            from pytorch_metric_learning.losses import NTXentLoss

            metric, labels = NTXentLoss(TAU), torch.arange(rows, device=device).repeat(2)
            found["pytorch-metric-learning"] = lambda x, y, tau: metric(torch.cat([x, y]), labels)
        except ImportError as missing:
            print(f"pytorch-metric-learning left out: {missing}")
    if workload == "nt_xent":
        try:
            from lightly.loss import NTXentLoss as LightlyNTXent

            lightly = LightlyNTXent(TAU)
            found["lightly"] = lambda x, y, tau: lightly(x, y)
        except ImportError as missing:
            print(f"lightly left out: {missing}")
    if workload == "clip":
        try:
            from open_clip.loss import ClipLoss

            clip = ClipLoss(cache_labels=True)
            found["open_clip"] = lambda x, y, tau: clip(F.normalize(x), F.normalize(y), 1 / tau)
        except ImportError as missing:
            print(f"open_clip left out: {missing}")
    return found


DISTRIBUTIONS = {"pytorch-metric-learning": "pytorch-metric-learning", "lightly": "lightly", "open_clip": "open_clip_torch"}


def peers(workload: str, rows: int, device: torch.device, *, compile_peers: bool) -> dict[str, Callable]:
    """name -> function of (views..., tau). `mer` is ours; `eager` is what the ratios are of."""
    eager = Eager(rows, device)
    limit = EAGER_LIMIT if device.type == "cpu" else torch.cuda.get_device_properties(device).total_memory
    fits = WORKLOADS[workload][2] * 4 * rows * rows < limit
    plain = getattr(eager, workload)
    out: dict[str, Callable] = {"eager": plain} if fits else {}
    if workload != "drkf" and (device.type == "cpu" or rows <= 16384):  # beyond, its loop in Python is what would be timed
        out["inf-cl"] = inf_cl(workload, eager)
    if fits:
        out |= packages(workload, rows, device)
    if compile_peers and fits:
        out["torch.compile"] = torch.compile(plain)
        if device.type == "cuda":
            out["torch.compile reduce-overhead"] = torch.compile(plain, mode="reduce-overhead")
    out["mer"] = OURS[workload]
    return out


# --- measuring --------------------------------------------------------------------------------------------------------------------


def make_inputs(workload: str, rows: int, d: int, device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    g = torch.Generator().manual_seed(rows * 7919 + d)
    views = [torch.randn(rows, d, generator=g) for _ in range(WORKLOADS[workload][0])]
    return [v.to(device, dtype).requires_grad_() for v in views] + [torch.tensor(TAU, device=device, requires_grad=True)]


def step(function: Callable, inputs: list[Tensor], *, backward: bool) -> Tensor:
    if not backward:
        with torch.no_grad():
            return function(*inputs)
    for tensor in inputs:
        tensor.grad = None
    loss = function(*inputs)
    loss.backward()
    return loss


def check(functions: dict[str, Callable], inputs: list[Tensor], workload: str, rows: int) -> dict[str, float]:
    """Relative error of the first view's gradient against float64 (beyond B = 2048 against eager float32, for want of memory). A peer
    that is off leaves `functions`; if it is ours, nothing is timed."""
    errors = {}
    exact = [t.detach().to(torch.float64 if rows <= 2048 else torch.float32).requires_grad_() for t in inputs]
    step(getattr(Eager(rows, inputs[0].device), workload), exact, backward=True)
    for name in list(functions):
        step(functions[name], inputs, backward=True)
        want, got = exact[0].grad, inputs[0].grad.double()
        errors[name] = float((got - want).norm() / want.norm())
        if errors[name] > (1e-3 if inputs[0].dtype == torch.float32 else 5e-2):
            print(f"{name}: gradient off by {errors[name]:.1e}; not timed")
            del functions[name]
    if "mer" not in functions:
        raise SystemExit("mer's own gradient is off")
    return errors


def cpu_seconds(function: Callable, inputs: list[Tensor], *, backward: bool) -> float:
    start = time.process_time()
    step(function, inputs, backward=backward)
    return time.process_time() - start


def high_water() -> int:
    """KiB."""
    return next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))


def cpu_peak_bytes(function: Callable, inputs: list[Tensor]) -> int:
    """Growth of the resident set over one step, in a forked child, whose high-water mark is its own."""
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


def gpu_seconds(function: Callable, inputs: list[Tensor], *, backward: bool, repeats: int) -> tuple[float, float]:
    """(device, host) seconds a call."""
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    host = time.perf_counter()
    begin.record()
    for _ in range(repeats):
        step(function, inputs, backward=backward)
    end.record()
    host = time.perf_counter() - host
    end.synchronize()
    return begin.elapsed_time(end) / 1e3 / repeats, host / repeats


def captured(function: Callable, inputs: list[Tensor]) -> Callable | None:
    """The training step as one CUDA graph; None where it cannot be captured."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    try:
        with torch.cuda.stream(stream):
            for _ in range(3):
                step(function, inputs, backward=True)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step(function, inputs, backward=True)
    except RuntimeError as reason:
        print(f"  not capturable: {str(reason).splitlines()[0]}")
        return None
    return graph.replay


def floor_seconds(workload: str, rows: int, d: int, inputs: list[Tensor]) -> float:
    """Least time of the matrix operations that forward and backward need."""
    operations = WORKLOADS[workload][1] * rows * rows * d
    x = inputs[0].detach()
    if x.is_cuda:
        high = torch.backends.cuda.matmul.fp32_precision == "tf32"
        return operations / H200["16 bit" if x.dtype != torch.float32 else "tf32" if high else "tf32x3"]
    a, best = torch.randn(512, d), float("inf")
    out = torch.empty(512, 512)
    for _ in range(20):
        start = time.process_time()
        torch.mm(a, a.T, out=out)
        best = min(best, time.process_time() - start)
    return operations * best / (2 * 512 * 512 * d)


def measure(workload: str, rows: int, d: int, device: torch.device, dtype: torch.dtype, *, rounds: int, compile_peers: bool) -> list[dict]:
    inputs = make_inputs(workload, rows, d, device, dtype)
    functions = peers(workload, rows, device, compile_peers=compile_peers)
    errors = check(functions, inputs, workload, rows) if "eager" in functions else dict.fromkeys(functions, float("nan"))
    cuda = device.type == "cuda"
    samples: dict[tuple[str, str], list[float]] = {}
    hosts: dict[str, list[float]] = {}
    if cuda:
        graphs = {name: captured(functions[name], inputs) for name in ("eager", "mer") if name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            for what, backward in (("forward", False), ("forward+backward", True)):
                if cuda:
                    device_time, host = gpu_seconds(function, inputs, backward=backward, repeats=20 if rows < 4096 else 2)
                    samples.setdefault((name, what), []).append(device_time)
                    hosts.setdefault(name, []).append(host)
                else:
                    samples.setdefault((name, what), []).append(cpu_seconds(function, inputs, backward=backward))
            if cuda and graphs.get(name):
                graph_time, _ = gpu_seconds(lambda *a, r=graphs[name]: r(), inputs, backward=False, repeats=20)
                samples.setdefault((f"{name} in a CUDA graph", "forward+backward"), []).append(graph_time)
    rows_out, floor = [], floor_seconds(workload, rows, d, inputs)
    for (name, what), seconds in samples.items():
        base = samples.get(("eager", what))
        row = {
            "workload": workload, "B": rows, "D": d, "dtype": str(dtype)[6:], "peer": name, "what": what, "rounds": rounds,
            "min_ms": round(min(seconds) * 1e3, 4), "median_ms": round(statistics.median(seconds) * 1e3, 4),
            "times_eager": round(min(base) / min(seconds), 3) if base else None,
            "gradient_error": f"{errors[name]:.1e}" if name in errors else None,
            "version": metadata.version(DISTRIBUTIONS[name]) if name in DISTRIBUTIONS else None,
        }  # fmt: skip
        if what == "forward+backward" and name in functions:
            row["percent_of_floor"] = round(100 * floor / min(seconds), 1)
            if cuda:
                torch.cuda.reset_peak_memory_stats()
                before = torch.cuda.memory_allocated()
                step(functions[name], inputs, backward=True)
                row["peak_MiB"] = round((torch.cuda.max_memory_allocated() - before) / 2**20, 2)
                row["host_ms"] = round(min(hosts[name]) * 1e3, 4)
            elif "compile" not in name:
                row["peak_MiB"] = round(cpu_peak_bytes(functions[name], inputs) / 2**20, 2)
        rows_out.append(row)
    return rows_out


def merged(path: Path, new: list[dict]) -> list[dict]:
    """Rows of an earlier run's JSON, with what was measured anew in their place."""
    old = json.loads(path.read_text())["rows"] if path.exists() else []
    taken = {tuple(row[key] for key in KEYS[:4]) for row in new}  # a size is measured as a whole
    rows = [row for row in old if tuple(row[key] for key in KEYS[:4]) not in taken] + new
    return sorted(rows, key=lambda row: (list(WORKLOADS).index(row["workload"]), row["D"], row["B"], row["dtype"]))


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
    parser.add_argument("--size", action="append", metavar="BxD", help="instead of the whole grid; may be repeated")
    parser.add_argument("--workload", choices=list(WORKLOADS), action="append")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for contrastive_{cpu,gpu}.csv and .json")
    parser.add_argument("--plot", action="store_true", help="only redraw docs/contrastive_*.svg from the CSV files")
    options = parser.parse_args(argv)
    if options.plot:
        for path in sorted(options.out.glob("contrastive_*.csv")):
            plot(path, Path("docs") / f"{path.stem}.svg")
        return
    device = torch.device(options.device)
    if device.type == "cpu":
        torch.set_num_threads(1)
    grid = [tuple(map(int, s.split("x"))) for s in options.size] if options.size else CPU_GRID if device.type == "cpu" else GPU_GRID
    path = options.out / f"contrastive_{'cpu' if device.type == 'cpu' else 'gpu'}.json"
    machine = describe()
    for workload in options.workload or list(WORKLOADS):
        for b, d in grid:
            few = max(2, min(options.rounds, int(2e9 / (b * b * d + 1)) + 2))
            rounds = options.rounds if device.type == "cuda" else 20 * options.rounds if b <= 128 else few
            compile_peers = not options.no_compile and (device.type == "cuda" or b <= 512)
            new = measure(workload, b, d, device, getattr(torch, options.dtype), rounds=rounds, compile_peers=compile_peers)
            for row in new:
                row |= {
                    "machine": machine["gpu"] or machine["cpu"], "torch": machine["versions"]["torch"], "commit": machine["commit"],
                    "load": round(os.getloadavg()[0], 2),
                }  # fmt: skip
                if row["what"] == "forward+backward":
                    ratio = f"{row['times_eager']:6.2f} x eager" if row["times_eager"] else ""
                    print(f"{workload:8} B={b:<6} D={d:<5} {row['peer']:32} {row['min_ms']:12.3f} ms {ratio}", flush=True)
            gc.collect()
            torch._dynamo.reset()
            rows = merged(path, new)  # after every size: an interrupted run keeps what it has
            save(path.stem, rows, command="python -m tests.bench contrastive", folder=options.out)
            write_csv(path.with_suffix(".csv"), rows)
    print(f"wrote {path} and {path.with_suffix('.csv').name}")


def plot(source: Path, out: Path) -> None:
    """Speed relative to fair eager over B, at D = 256, forward and backward."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "mer"
    matplotlib.rcParams["svg.fonttype"] = "none"
    from matplotlib import pyplot as plt

    with source.open() as file:
        rows = [r for r in csv.DictReader(file) if r["what"] == "forward+backward" and r["D"] == "256" and r["times_eager"]]
    names = list(dict.fromkeys(r["peer"] for r in rows))
    figure, axes = plt.subplots(1, len(WORKLOADS), figsize=(11, 3.2), sharey=True, layout="constrained")
    for axis, workload in zip(axes, WORKLOADS, strict=True):
        for i, peer in enumerate(names):
            points = sorted((int(r["B"]), float(r["times_eager"])) for r in rows if r["workload"] == workload and r["peer"] == peer)
            if points:
                axis.plot(*zip(*points, strict=True), f"C{i}o-", label=peer, linewidth=2.4 if peer == "mer" else 1.2, markersize=4)
        axis.set(xscale="log", yscale="log", xlabel="batch B", title=TITLES[workload])
        axis.set_ylim(bottom=0.22)  # what falls further behind leaves the picture; it is in the CSV
        ratios = [r for r in (0.25, 0.5, 1, 2, 4, 8, 16, 32, 64) if r <= axis.get_ylim()[1]]
        axis.set_yticks(ratios, [f"{r:g}" for r in ratios])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("times as fast as eager")
    handles = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=len(handles), fontsize=8)
    machines = ", ".join(sorted({r["machine"] for r in rows}))
    figure.suptitle(f"forward + backward, D = 256, {machines}{', one thread' if 'cpu' in source.stem else ''}", fontsize=10)
    out.parent.mkdir(exist_ok=True)
    figure.savefig(out, metadata={"Date": None})
    print(f"wrote {out}")
