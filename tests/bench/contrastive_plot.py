"""The picture of `python -m tests.bench contrastive --plot`."""

from __future__ import annotations

import csv
from pathlib import Path

from tests.bench.contrastive_peers import WORKLOADS

TITLES = {
    "nt_xent": "NT-Xent",
    "info_nce": "InfoNCE",
    "clip": "InfoNCE, both directions",
    "drkf": "DRKF's three terms",
}


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
