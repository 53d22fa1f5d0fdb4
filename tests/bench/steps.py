"""A training step beside that of an earlier commit: `python -m tests.bench steps --before COMMIT`.

Both trees take steps of the same models on the same batches by turns, in a process of one thread
each, so that a busy machine is busy for both; the ratio is of medians of CPU time. `drkf` sees 32
utterances of MELD's lengths (five batches of five lengths, 1024 numbers of audio and of text per
step), `dmd` and `dhmd` MOSI's shapes: 16 utterances of 50 steps, widths 768, 5 and 20.

The steps are losses, gradients, clipping and AdamW as the trainer has them, each tree by its own
code (`--side` is such a process). Nothing but the model's module, `losses`, `weights` and the
configuration is asked of the earlier tree. Where the processor computes in bfloat16, a third
process takes the steps of the present tree as `--set train.precision=bf16` does.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parent.parent.parent
PRESETS = "drkf,dmd,dmd-mosi,dhmd,dhmd-mosi"


def batches(preset: str) -> tuple:
    """The spec and the batches of a preset, from a fixed seed."""
    import torch

    from mer.fusion.batch import Batch, DataSpec

    g = torch.Generator().manual_seed(0)
    if preset.startswith("drkf"):
        widths, task, labels = {"audio": 1024, "text": 1024}, "single", tuple("abcdefg")
        seconds = torch.randn(512, generator=g).mul(0.75).exp().mul(2.3).clamp(0.3, 41)
        chosen = seconds.sort().values.view(16, 32)[[2, 6, 8, 10, 13]]
        lengths = [
            {"audio": (s * 12.5).long().clamp(1), "text": (s * 4.5).long().clamp(3, 80)}
            for s in chosen
        ]
    else:
        widths, task, labels = {"audio": 5, "text": 768, "vision": 20}, "regression", ("sentiment",)
        lengths = [dict.fromkeys(widths, torch.full((16,), 50))]
    made = []
    for n in lengths:
        rows = len(n["text"])
        x = {
            m: torch.randn(rows, int(n[m].max()), width, generator=g) for m, width in widths.items()
        }
        target = (
            torch.arange(rows) % 7 if task == "single" else torch.linspace(-3, 3, rows)[:, None]
        )
        made.append(Batch(x, n, target, torch.arange(rows)))
    return DataSpec(widths, dict.fromkeys(widths), task, labels), made


def stepping(preset: str, precision: str) -> Callable[[], None]:
    """Takes a step on every batch of a preset, in `fp32` or `bf16`."""
    import torch

    from mer.fusion import config
    from mer.fusion.models import build

    try:
        from mer.fusion.training import optim
    except ModuleNotFoundError:  # before fusion had rooms, and before it had this module
        optim = None

    torch.set_num_threads(1)
    torch.manual_seed(0)
    settings, (spec, each) = config.load(preset=preset), batches(preset)
    model = build(settings.model, settings.model_args, spec).train()
    if optim is not None:
        optimizer, clip = optim.adamw(model, settings), optim.clip_gradients
    else:
        from mer.fusion import train

        groups = train.parameter_groups(model, settings)
        optimizer = torch.optim.AdamW(groups, betas=settings.optim.betas)
        clip = torch.nn.utils.clip_grad_norm_
    parameters = list(model.parameters())

    def steps() -> None:
        for batch in each:
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
                weights, terms = model.weights(0.5), model.losses(batch, 0.5)
                total = sum(weights[name] * value for name, value in terms.items())
            total.backward()
            clip(parameters, settings.optim.clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return steps


def side(preset: str, precision: str) -> None:
    """Answer each line with the CPU seconds of that many rounds of steps."""
    steps = stepping(preset, precision)
    for line in sys.stdin:
        started = time.process_time()
        for _ in range(int(line)):
            steps()
        print(json.dumps(time.process_time() - started), flush=True)


class Side:
    """A process in which one tree takes its steps."""

    def __init__(self, folder: Path, preset: str, precision: str = "fp32") -> None:
        self.process = subprocess.Popen(
            # -P: this folder has a `profile`, which would stand for Python's own
            [sys.executable, "-P", str(Path(__file__).resolve()), "--side", preset, precision],
            env={**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def seconds(self, rounds: int) -> float:
        """CPU seconds of a round."""
        assert self.process.stdin is not None and self.process.stdout is not None
        print(rounds, file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline()) / rounds

    def end(self) -> None:
        self.process.communicate()


def beside(trees: dict[str, Path], preset: str, turns: int, rounds: int) -> dict:
    """CPU milliseconds of a step in each tree and precision, and their ratios."""
    from tests.bench.machine import computes_in_bf16

    sides = {name: Side(folder, preset) for name, folder in trees.items()}
    if computes_in_bf16():
        sides["bf16"] = Side(trees["now"], preset, "bf16")
    found: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(turns + 1):
        for name, one in sides.items():
            spent = one.seconds(rounds if turn else 1)
            if turn:  # the first one warms up
                found[name].append(spent)
    for one in sides.values():
        one.end()
    steps = 5 if preset.startswith("drkf") else 1
    medians = {name: median(spent) / steps for name, spent in found.items()}
    row = {
        "preset": preset,
        **{f"{name}_cpu_ms": round(1e3 * spent, 1) for name, spent in medians.items()},
        "ratio": round(medians["before"] / medians["now"], 2),
    }
    if "bf16" in medians:
        row["bf16_ratio"] = round(medians["before"] / medians["bf16"], 2)
    return row


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench steps", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--before", default="0e80040", help="the commit beside which")
    parser.add_argument("--presets", default=PRESETS)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=2, help="of every batch, in a turn")
    options = parser.parse_args(argv)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        trees = {name: Path(folder) / name for name in ("before", "now")}
        for place in trees.values():
            place.mkdir()
        (trees["now"] / "mer").symlink_to(ROOT)
        (trees["before"] / "mer").mkdir()
        archive = subprocess.run(
            ["git", "archive", options.before], cwd=ROOT, check=True, stdout=subprocess.PIPE
        )
        subprocess.run(
            ["tar", "x", "-C", str(trees["before"] / "mer")], input=archive.stdout, check=True
        )
        for preset in options.presets.split(","):
            rows.append(beside(trees, preset, options.turns, options.rounds))
            print("  ".join(f"{key}={value}" for key, value in rows[-1].items()), flush=True)
    if options.presets == PRESETS:
        from tests.bench.machine import save

        print(save("steps", rows, command=" ".join(["python -m tests.bench steps", *argv])))


if __name__ == "__main__":
    side(*sys.argv[2:])
