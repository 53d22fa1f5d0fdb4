"""How `python -m tests.bench contrastive` measures one size: every peer is checked against float64,
then all are timed in interleaved rounds of one process, so that a slow spell of the machine hits
all of them.

On a CPU time is CPU time of one thread. On a GPU it is event time, per call and per replay of a
captured CUDA graph, beside the host's time. The share of the floor is that of the fewest matrix
operations, at the rate of this machine's own matrix product on a CPU and of an H200's data sheet on
a GPU.
"""

from __future__ import annotations

import gc
import math
import os
import statistics
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import torch
from torch import Tensor

from tests.bench.child import reason_of
from tests.bench.contrastive_peers import DISTRIBUTIONS, TAU, WORKLOADS, Eager, peers

# matrix operations per second, NVIDIA's data sheet; the first is tf32 / 3
H200 = {"tf32x3": 132e12, "tf32": 395e12, "16 bit": 790e12}
BATCH_SECONDS = 0.02  # of calls between two events on a GPU
SIZE_SECONDS = 6.0  # of all rounds of one size on a GPU
# longer steps are not captured: their launches are no part of the time, and the graph doubles the
# memory
GRAPH_SECONDS = 0.05


def make_inputs(
    workload: str, rows: int, d: int, device: torch.device, dtype: torch.dtype
) -> list[Tensor]:
    g = torch.Generator().manual_seed(rows * 7919 + d)
    views = [torch.randn(rows, d, generator=g) for _ in range(WORKLOADS[workload].views)]
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
    operations = WORKLOADS[workload].operations * rows * rows * d
    x = inputs[0].detach()
    if x.is_cuda:
        rate = "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "tf32x3"
        return operations / H200[rate if x.dtype == torch.float32 else "16 bit"]
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


class Size:
    """One size of a workload: its peers, what is measured of them, and why some have failed.

    `note` is told which peer is run next.
    """

    def __init__(
        self,
        workload: str,
        rows: int,
        d: int,
        inputs: list[Tensor],
        functions: dict[str, Callable],
        note: Callable[[str], None],
    ):
        self.workload, self.rows, self.d = workload, rows, d
        self.inputs, self.functions, self.note = inputs, functions, note
        self.cuda = inputs[0].is_cuda
        self.key = {"workload": workload, "B": rows, "D": d, "dtype": str(inputs[0].dtype)[6:]}
        self.want: Tensor | None = None  # gradient of the first view
        self.series: list[Series] = []
        self.errors: dict[str, float] = {}
        self.peaks: dict[str, int] = {}
        self.failed: list[dict] = []

    def attempt(self, name: str, prepare: Callable[[str], None]) -> None:
        """Prepare a peer; one that fails gets a row with the reason and costs no other's figures.
        Raises where it has ended this process's use of the GPU: the child is then replaced.
        """
        self.note(name)
        failure = None
        try:
            prepare(name)
        except Exception as error:
            failure = reason_of(error)
            self.failed.append(self.key | {"peer": name, "what": "failed", "failure": failure})
        for tensor in self.inputs:
            tensor.grad = None
        if self.cuda:
            torch.cuda.synchronize()
            if failure is not None:
                gc.collect()
                torch.cuda.empty_cache()

    def compute_reference(self, name: str) -> None:
        """What the gradients of all peers are held against."""
        self.want = reference(self.workload, self.inputs, self.rows)

    def prepare(self, name: str) -> None:
        """Check a peer and compile it; what is timed of it is its forward pass and a whole step."""
        function = self.functions[name]
        error = check(function, self.inputs, self.want) if self.want is not None else math.nan
        self.errors[name] = error
        series = []
        for what, backward in (("forward", False), ("forward+backward", True)):
            series.append(Series(name, what, self.call(function, backward), self.cuda))
        # the memory of reduce-overhead is a pool of its own, taken once
        if self.cuda and "reduce-overhead" not in name:
            self.peaks[name] = gpu_peak_bytes(function, self.inputs)
        self.series += series

    def prepare_graph(self, peer: str, name: str) -> None:
        """The step of a peer as a captured graph, where it is short. A capture that fails leaves
        the allocator and the current stream behind as they were in it: it ends the child, too.
        """
        for series in list(self.series):
            whole = (series.peer, series.what) == (peer, "forward+backward")
            if whole and series.seconds < GRAPH_SECONDS:
                self.note(name)
                replay = captured(self.functions[peer], self.inputs)
                self.series.append(Series(name, "forward+backward", replay, self.cuda))

    def call(self, function: Callable, backward: bool) -> Callable[[], object]:
        return lambda: step(function, self.inputs, backward=backward)

    def time(self, rounds: int) -> int:
        """Time all series in turn, in at most so many rounds; returns how many there were."""
        if self.cuda and self.series:
            once = sum(series.seconds * series.repeats for series in self.series)
            rounds = max(3, min(rounds, int(SIZE_SECONDS / once)))
        for _ in range(rounds):
            for series in self.series:
                self.note(series.peer)
                series.measure()
        return rounds

    def row(self, series: Series, rounds: int, eager: float | None, floor: float) -> dict:
        """What the CSV says of a series. `eager`: the quickest of the same by eager."""
        name, quickest = series.peer, min(series.samples)
        row = self.key | {
            "peer": name,
            "what": series.what,
            "rounds": rounds,
            "min_ms": round(quickest * 1e3, 4),
            "median_ms": round(statistics.median(series.samples) * 1e3, 4),
            "times_eager": round(eager / quickest, 3) if eager is not None else None,
            "gradient_error": f"{self.errors[name]:.1e}" if name in self.errors else None,
            "version": metadata.version(DISTRIBUTIONS[name]) if name in DISTRIBUTIONS else None,
        }
        if self.cuda:
            row["host_ms"] = round(min(series.hosts) * 1e3, 4)
        if series.what == "forward+backward" and name in self.functions:
            row["percent_of_floor"] = round(100 * floor / quickest, 1)
            if self.cuda:
                peak = self.peaks.get(name)
                row["peak_MiB"] = None if peak is None else round(peak / 2**20, 2)
            elif "compile" not in name:
                peak = cpu_peak_bytes(self.functions[name], self.inputs)
                row["peak_MiB"] = round(peak / 2**20, 2)
        return row


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
    """The rows of one size, those of peers that failed last. `note` is told which peer is next."""
    inputs = make_inputs(workload, rows, d, device, dtype)
    functions = peers(workload, rows, device, compile_peers=compile_peers, paths=paths, tiles=tiles)
    size = Size(workload, rows, d, inputs, functions, note)
    if "eager" in functions:
        size.attempt("reference", size.compute_reference)
    for name in functions:
        if name not in left_out:
            size.attempt(name, size.prepare)
    for peer in ("eager", "mer") if size.cuda else ():
        graph = f"{peer} in a CUDA graph"
        if graph not in left_out:
            size.prepare_graph(peer, graph)
    rounds = size.time(rounds)
    floor = floor_seconds(workload, rows, d, inputs)
    of_eager = {
        series.what: min(series.samples) for series in size.series if series.peer == "eager"
    }
    measured = []
    for series in size.series:
        measured.append(size.row(series, rounds, of_eager.get(series.what), floor))
    return measured + size.failed
