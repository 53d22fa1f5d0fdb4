"""The pictures of the papers from a run folder and its store, as PNG and SVG: `mer evaluate RUN
--figures DIR`; and those of a report, as PNG, SVG and PDF.

What the pictures of results show is in `pictures.py`; here matplotlib draws it. Pictures of
features come from the first run of a group.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import singledispatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mer.fusion import infer
from mer.fusion.data import sources, splits
from mer.fusion.report import pictures
from mer.fusion.report.pictures import (
    BLACK,
    COLOURS,
    GREY,
    ORANGE,
    Bars,
    Curves,
    Intervals,
    Layers,
    Line,
    Matrix,
    Picture,
    Reliability,
)
from mer.fusion.runs import checkpoint, moved
from mer.fusion.runs.checkpoint import Run
from mer.fusion.runs.records import GroupMetrics, SingleMetrics
from mer.fusion.runtime import files
from mer.pipeline.runtime.terminal import escape, shown
from mer.pipeline.store import FeatureStore

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# for what DejaVu lacks
FONTS = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "WenQuanYi Micro Hei",
    "PingFang SC",
    "Microsoft YaHei",
)
DPI = 150  # of a PNG
MOST_POINTS = 400  # per modality in a scatter plot
SHOWN_ATOMS = 64  # of a dictionary, those used most
MOST_TICKS = 26  # layers that are numbered on an axis
MOST_CHARACTERS = 40  # of a run's name beside its row
THRESHOLD = 1e-3  # up to which a logarithmic axis is linear, so that it also shows 0
COUNTED_CLASSES = 12  # of a confusion matrix whose cells have counts below the percentages


def write(
    run: Run,
    found: SingleMetrics | GroupMetrics,
    folder: Path,
    *,
    features: Path | None = None,
    device: torch.device | str = "cpu",
) -> list[Path]:
    """Draw all that a run has, as PNG and SVG.

    Args:
        run: A finished run.
        found: What `mer.fusion.evaluation.evaluate.evaluate` returned for it.
        folder: Where the pictures go.
        features: The store whose dev rows are pictured; None: the one that it was trained on.
        device: Where the model runs.

    Returns:
        The files.

    Raises:
        DataError: The run is damaged.
        KeyMismatchError: The store is of another recipe or of other labels.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    children = run.children
    logs = [pictures.read_log(child) for child in children]
    with style():
        results = pictures.of_results(children, found, logs)
        made = [(picture.name, draw(picture)) for picture in results]
        for name, figure in [*made, *of_features(children[0], features, device)]:
            for kind in ("png", "svg"):
                files.write_bytes(folder / f"{name}.{kind}", drawn_as(figure, kind))
                written.append(folder / f"{name}.{kind}")
    return written


def drawn_as(figure: Figure, kind: str, *, dpi: int = DPI) -> bytes:
    """The bytes of a PNG, an SVG or a PDF."""
    drawn = io.BytesIO()  # a full disk is then met by us, not inside matplotlib
    metadata = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind)
    figure.savefig(drawn, format=kind, dpi=dpi, bbox_inches="tight", metadata=metadata)
    raw = drawn.getvalue()
    return escape(raw.decode(), breaks=True).encode() if kind == "svg" else raw


def element(figure: Figure) -> str:
    """An `<svg>` for an HTML page: without the XML declaration, the document type and the metadata,
    which have no place within one.
    """
    file = io.StringIO()
    figure.savefig(
        file,
        format="svg",
        bbox_inches="tight",
        metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")),
    )
    return file.getvalue().partition("<!DOCTYPE")[2].partition(">")[2].strip()


@contextmanager
def style(**more: Any) -> Iterator[None]:
    """Settings that end with the drawing.

    The same run gives the same file: no random ids. Names are text, never formulas; a letter that
    no font here has becomes a box in PNG and stays itself in the report.
    """
    import matplotlib
    from matplotlib.font_manager import fontManager

    here = set(fontManager.get_font_names())
    fonts = ["DejaVu Sans", *(name for name in FONTS if name in here)]
    spines = {f"axes.spines.{side}": False for side in ("top", "right")}
    looks: dict[Any, Any] = {
        "svg.hashsalt": "mer",
        "font.family": fonts,
        "font.size": 9,
        "text.parse_math": False,
        **spines,
        **more,
    }
    with matplotlib.rc_context(looks), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        yield


def new(width: float = 5.0, height: float = 3.4, **grid: Any) -> tuple[Figure, Any]:
    """A figure of its own (no pyplot, no global state) and its axes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(**grid)


# ---- Of the results


@singledispatch
def draw(picture: Picture) -> Figure:
    """A picture as a figure of matplotlib's; within `style`."""
    raise TypeError(f"{type(picture).__name__} is no picture")


@draw.register(Curves)
def _curves(picture: Curves) -> Figure:
    """A line per name with the range between runs shaded, and the epochs that dev chose."""
    figure, axes = new(5.6, max(3.2, 0.6 + 0.17 * len(picture.lines)))
    unit = 100 if picture.percent else 1
    for line in picture.lines:
        _draw_line(axes, line, unit)
    for place, epoch in enumerate(sorted(set(picture.chosen))):
        label = None if place else "chosen by dev"
        axes.axvline(epoch, color=GREY, linestyle=":", linewidth=1, zorder=0, label=label)
    axes.set(title=picture.title, xlabel="epoch", ylabel=picture.label)
    axes.xaxis.get_major_locator().set_params(integer=True)
    if picture.log:
        _logarithmic(axes)
        if min(min(line.low or line.mean) for line in picture.lines) >= 0:
            axes.set_ylim(bottom=-0.3 * THRESHOLD)  # room for a line at 0, and no tick below it
    if picture.share:  # from 0, with room for a line that lies there
        top = axes.get_ylim()[1]
        axes.set_ylim(-0.03 * top, top)
    if len(picture.lines) > 1 or picture.chosen:
        axes.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def _draw_line(axes: Any, line: Line, unit: float) -> None:
    axes.plot(
        line.epochs,
        unit * np.array(line.mean),
        label=line.name,
        color=line.colour,
        linestyle=line.dash,
        marker="." if len(line.epochs) == 1 else "",
    )
    if line.low is not None and line.high is not None:
        low, high = unit * np.array(line.low), unit * np.array(line.high)
        axes.fill_between(line.epochs, low, high, color=line.colour, alpha=0.15, linewidth=0)


def _logarithmic(axes: Any) -> None:
    """A logarithmic axis that also shows 0 and what is below."""
    from matplotlib.ticker import SymmetricalLogLocator

    axes.set_yscale("symlog", linthresh=THRESHOLD)
    axes.yaxis.set(
        major_locator=SymmetricalLogLocator(base=10, linthresh=THRESHOLD, subs=(1, 3)),
        major_formatter="{x:g}",
    )


@draw.register(Matrix)
def _matrix(picture: Matrix) -> Figure:
    """Rows are the reference; colour and percentage are the share of the row, below it the count,
    where there is room.
    """
    labels = picture.labels
    size = 1.8 + 0.5 * len(labels)
    figure, axes = new(size + 0.6, size)
    shares, counts = 100 * picture.shares, np.array(picture.counts)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    for (row, column), share in np.ndenumerate(shares):
        count = ""
        if len(labels) <= COUNTED_CLASSES:
            count = f"\n({pictures.counted_as(float(counts[row, column]))})"
        axes.text(
            column,
            row,
            f"{share:.0f}{count}",
            ha="center",
            va="center",
            fontsize=7,
            color="white" if share > 50 else "black",
        )
    axes.set_xticks(range(len(labels)), labels, rotation=45, ha="right")
    axes.set_yticks(range(len(labels)), labels)
    axes.set(xlabel="predicted", ylabel="reference", title=picture.title)
    figure.colorbar(image, ax=axes, label="share of the row (%)")
    return figure


@draw.register(Bars)
def _bars(picture: Bars) -> Figure:
    figure, axes = new(1.2 + 0.8 * len(picture.values), 3)
    unit = 100 if picture.percent else 1
    names, values, colours = zip(*picture.values, strict=True)
    heights = [np.nan if value is None else unit * value for value in values]
    drawn = axes.bar(names, heights, color=colours)
    axes.bar_label(drawn, fmt="%.1f" if picture.percent else "%.3f", fontsize=7)
    axes.set(title=picture.title, ylabel=picture.label)
    return figure


@draw.register(Layers)
def _layers(picture: Layers) -> Figure:
    """A dot for each run, the mean as a line, and dotted what equal weights would be."""
    figure, axes = new(5.6, 3.2)
    names = [layer for layer, _ in picture.weights]
    places, means = list(range(len(names))), [np.mean(v) for _, v in picture.weights]
    for place, (_, values) in zip(places, picture.weights, strict=True):
        axes.plot([place] * len(values), values, ".", color=picture.colour, alpha=0.5)
    axes.plot(places, means, color=picture.colour)
    axes.axhline(1 / len(names), color=GREY, linestyle=":", linewidth=1)
    every = -(-len(names) // MOST_TICKS)
    axes.set_xticks(places[::every])
    axes.set_xticklabels(names[::every])
    axes.set_ylim(bottom=0)
    axes.set(ylabel="weight", xlabel=f"layer of {picture.part}", title=picture.title)
    return figure


@draw.register(Intervals)
def _intervals(picture: Intervals) -> Figure:
    """A row for each run: its value, the interval, and a small dot for every seed or fold."""
    figure, axes = new(5.6, 1.1 + 0.32 * len(picture.rows))
    unit = 100 if picture.percent else 1
    for place, row in enumerate(picture.rows):
        axes.plot(unit * np.array(row.seeds), [place] * len(row.seeds), ".", color=ORANGE, zorder=1)
        if row.low is not None and row.high is not None:
            axes.plot([unit * row.low, unit * row.high], [place] * 2, color=BLACK, linewidth=1.2)
        if row.value is not None:
            axes.plot(unit * row.value, place, "o", color=COLOURS["text"], zorder=3)
    if picture.line is not None:
        at = unit * picture.line
        axes.axvline(at, color=GREY, linestyle="--", linewidth=1, label=picture.line_name)
        axes.legend(frameon=False, fontsize=7, loc="upper left", bbox_to_anchor=(0, -0.12))
    names = [shown(row.name, MOST_CHARACTERS) for row in picture.rows]
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set(title=picture.title, xlabel=picture.label)
    return figure


@draw.register(Reliability)
def _reliability(picture: Reliability) -> Figure:
    """The share of right answers over their probability, and the diagonal on which both agree."""
    figure, axes = new(3.8, 3.6)
    mean, share, _ = np.array(picture.bins).T
    axes.plot([0, 100], [0, 100], color=GREY, linestyle="--", linewidth=1)
    axes.plot(100 * mean, 100 * share, ".-", color=COLOURS["text"])
    axes.set(xlim=(0, 100), ylim=(0, 103), title=picture.title)
    axes.set(xlabel="probability of the answer (%)", ylabel="right (%)")
    return figure


# ---- Of the features


def of_features(
    run: Run, features: Path | None, device: torch.device | str
) -> list[tuple[str, Figure]]:
    """From dev rows, so that no picture opens the test part."""
    model: Any = run.model(device)
    core = model.core
    if not hasattr(core, "spaces"):
        return []
    spec = run.spec
    spaces, activations, targets = [], [], []
    if features is None:  # of which those were told who had the figures made
        features = moved.store_of(run, lambda line: None)
    with FeatureStore(features) as store:
        checkpoint.check_store(run, store)
        table = store.table()
        every = splits.targets(table, spec.task, spec.labels)
        split = splits.assign(table, every, run.config.data, run.fold)
        rows = split.dev
        part = sources.batch_source(
            store, spec, run.config.data, rows, every[rows], device=device, pool=split.dev_pool
        )
        with torch.inference_mode():
            for batch in part.batches(part.in_order(infer.BATCH)):
                seen = model.mixed(batch)
                spaces.append(core.spaces(seen))
                targets.append(batch.target)
                if hasattr(core, "activations"):
                    activations.append(core.activations(seen))
    target = torch.cat(targets).cpu().numpy()
    classes = groups(target, spec.task, spec.labels)
    drawn = [("spaces", scatter(spaces))]
    for space in activations[0] if activations else ():
        whole = torch.cat([one[space] for one in activations], 1).float().cpu().numpy()
        drawn.append((f"atoms-{space}", atoms(whole, classes, core.modalities, space)))
    return drawn


def groups(target: np.ndarray, task: str, labels: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Name -> (N,) bool: the classes, the labels, or the sign of a score."""
    if task == "single":
        return {name: target == c for c, name in enumerate(labels)}
    if task == "multi":
        return {name: target[:, c] > 0.5 for c, name in enumerate(labels)}
    return {
        "negative": target[:, 0] < 0,
        "neutral": target[:, 0] == 0,
        "positive": target[:, 0] > 0,
    }


def principal(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N, d) -> the first two principal components (N, 2), and the share of variance of each."""
    centred = x - x.mean(0)
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    flat = np.zeros((len(x), 2))
    flat[:, : len(s[:2])] = u[:, :2] * s[:2]
    share = np.zeros(2)
    share[: len(s[:2])] = s[:2] ** 2 / max((s**2).sum(), 1e-12)
    return flat, share


def scatter(spaces: list[dict[str, dict[str, torch.Tensor]]]) -> Figure:
    """Shared and specific parts in one plane: decoupling shows as shared parts that mix and
    specific ones that do not.
    """
    points = {}
    for kind in spaces[0]:
        for m in spaces[0]["shared"]:
            whole = torch.cat([space[kind][m] for space in spaces])
            points[kind, m] = whole.float().cpu().numpy()[:MOST_POINTS]
    flat, share = principal(np.concatenate(list(points.values())))
    figure, axes = new(5.4, 4)
    at = 0
    for (kind, m), x in points.items():
        axes.scatter(
            *flat[at : at + len(x)].T,
            s=9,
            alpha=0.6,
            linewidths=0.6,
            marker="o" if kind == "shared" else "x",
            color=COLOURS.get(m, GREY),
            label=f"{kind}, {m}",
        )
        at += len(x)
    first, second = (
        f"component {i} ({100 * s:.0f} % of the variance)" for i, s in enumerate(share, start=1)
    )
    axes.set(title="shared and specific parts of dev utterances (PCA)", xlabel=first, ylabel=second)
    axes.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def atoms(
    activation: np.ndarray,
    classes: dict[str, np.ndarray],
    modalities: Sequence[str],
    space: str,
) -> Figure:
    """Mean activation (M, N, K) by class and modality, atoms sorted by use: equal columns say that
    modalities share atoms.
    """
    order = np.argsort(-activation.mean((0, 1)), kind="stable")[:SHOWN_ATOMS]
    height = 0.8 + 0.28 * len(classes) * len(modalities)
    figure, axes = new(6.5, height, nrows=len(modalities), sharex=True, squeeze=False)
    means = np.array([_means(one, classes.values()) for one in activation])
    top = np.nanmax(means)
    for axis, m, values in zip(axes[:, 0], modalities, means, strict=True):
        image = axis.imshow(
            values[:, order], aspect="auto", cmap="magma", vmin=0, vmax=top, interpolation="nearest"
        )
        axis.set_yticks(range(len(classes)), classes)
        axis.set_ylabel(m)
    axes[-1, 0].set_xlabel("atom, by use")
    figure.suptitle(f"dictionary activation by class, {space} space")
    figure.colorbar(image, ax=axes[:, 0].tolist(), label="mean activation")
    return figure


def _means(activation: np.ndarray, classes: Iterable[np.ndarray]) -> list[np.ndarray]:
    """The mean row of each class, NaN where it has none."""
    none = np.full(activation.shape[1], np.nan)
    return [activation[rows].mean(0) if rows.any() else none for rows in classes]
