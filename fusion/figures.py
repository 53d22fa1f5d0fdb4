"""The pictures of the papers from a run folder and its store, as PNG and SVG: `mer evaluate RUN
--figures DIR`.

What a model does not have is left out: edges are DMD's and DHMD's, dictionaries DHMD's, [CLS]
attention and MI bounds DRKF's. Curves are means over the children of a group (seeds, folds) with
the range between them; pictures of features come from the first.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mer.fusion import checkpoint, data, evaluate, files, infer, metrics, splits
from mer.fusion.checkpoint import Run
from mer.fusion.records import Epoch, Figures, GroupMetrics, Metrics, SingleMetrics
from mer.pipeline.runtime.terminal import escape
from mer.pipeline.store import FeatureStore

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Pick = Callable[[Epoch], Mapping[str, float | None]]

COLOURS = {"text": "#1f77b4", "audio": "#d62728", "vision": "#2ca02c"}
OTHERS = ("#ff7f0e", "#9467bd", "#17becf", "#8c564b", "#bcbd22", "#e377c2", "#7f7f7f", "#000000")
DASHES = ("-", "--", ":")
# for what DejaVu lacks
FONTS = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "WenQuanYi Micro Hei",
    "PingFang SC",
    "Microsoft YaHei",
)
MOST_POINTS = 400  # per modality in a scatter plot
SHOWN_ATOMS = 64  # of a dictionary, those used most
MOST_TICKS = 26  # layers that are numbered on an axis


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
        found: What `mer.fusion.evaluate.evaluate` returned for it.
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
    with style():
        pictures = [*of_results(run, found), *of_features(run.children[0], features, device)]
        for name, figure in pictures:
            for kind in ("png", "svg"):
                files.write_bytes(folder / f"{name}.{kind}", drawn_as(figure, kind))
                written.append(folder / f"{name}.{kind}")
    return written


def drawn_as(figure: Figure, kind: str) -> bytes:
    """The bytes of a PNG or an SVG."""
    drawn = io.BytesIO()  # a full disk is then met by us, not inside matplotlib
    metadata = {"Date": None} if kind == "svg" else None
    figure.savefig(drawn, format=kind, dpi=150, bbox_inches="tight", metadata=metadata)
    raw = drawn.getvalue()
    return escape(raw.decode(), breaks=True).encode() if kind == "svg" else raw


def inline(run: Run, found: SingleMetrics | GroupMetrics) -> list[str]:
    """The pictures that need no store, as `<svg>` elements for an HTML page; their text
    stays text.
    """
    with style(**{"svg.fonttype": "none"}):
        return [element(figure) for _, figure in of_results(run, found)]


def element(figure: Figure) -> str:
    """Without the XML declaration, the document type and the metadata, which have no place within a
    page.
    """
    file = io.StringIO()
    figure.savefig(
        file,
        format="svg",
        bbox_inches="tight",
        metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")),
    )
    return file.getvalue().partition("<!DOCTYPE")[2].partition(">")[2].strip()


def of_results(run: Run, found: SingleMetrics | GroupMetrics) -> list[tuple[str, Figure]]:
    """(name, figure) of what the metrics and the logs hold."""
    logs = [read_log(child) for child in run.children]
    chosen = found.select_metric
    pictures = {
        "confusion": confusion(found),
        "unimodal": unimodal(found),
        "attention": bars(found.attention, "[CLS] attention", "share"),
        "losses": curves(logs, terms, "training loss terms, unweighted", log=True),
        "dev": curves(
            logs,
            lambda entry: {chosen: entry.dev.get(chosen)},
            f"dev {metrics.TITLES.get(chosen, chosen)}",
        ),
    }
    for space in ("homo", "hetero"):
        pictures[f"edges-{space}"] = curves(
            logs, under(f"edge/{space}/"), f"GD-Unit edges, {space} space (mean weight)"
        )
        used, unused = (under(f"dictionary/{space}/{what}/") for what in ("entropy", "dead"))
        pictures[f"entropy-{space}"] = curves(
            logs, used, f"entropy of atom usage / log K, {space} space"
        )
        pictures[f"dead-{space}"] = curves(
            logs, unused, f"share of unused atoms, {space} space", share=True
        )
    pictures["overlap"] = curves(
        logs, overlap, "share with the same strongest atom in two modalities", share=True
    )
    pictures["cosine"] = curves(
        logs, under("cosine_"), "cosine of raw and augmented view (identity: 1)"
    )
    pictures["mi-bounds"] = curves(
        logs, under("mi_bound_"), "lower bound of the mutual information (nats)"
    )
    pictures["layers"] = layer_weights(chosen_layers(run, logs))
    return [(name, figure) for name, figure in pictures.items() if figure is not None]


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


def read_log(run: Run) -> list[Epoch]:
    """Its epochs."""
    path = run.verified(checkpoint.LOG)
    again = checkpoint.AGAIN
    lines = files.read_text(path, again).splitlines()
    return [files.read_json(path, Epoch, again, text=line) for line in lines]


def chosen_layers(run: Run, logs: Sequence[list[Epoch]]) -> dict[str, dict[str, list[float]]]:
    """The weights of the mixed layers in the epochs that dev chose: by feature set and by layer,
    one of each child.
    """
    found: dict[str, dict[str, list[float]]] = {}
    for child, entries in zip(run.children, logs, strict=True):
        best = child.result.best_epoch
        entry = next((entry for entry in entries if entry.epoch == best), None)
        for name, weights in ((entry.layers if entry else None) or {}).items():
            for layer, weight in weights.items():
                value = np.nan if weight is None else weight
                found.setdefault(name, {}).setdefault(layer, []).append(value)
    return found


def layer_weights(found: Mapping[str, Mapping[str, Sequence[float]]]) -> Figure | None:
    """Where the emotion is: the weight of every layer, a dot for each run, the mean as a line, and
    dotted what equal weights would be. None: no layers are mixed.
    """
    if not found:
        return None
    figure, axes = new(5.6, 1.2 + 2.0 * len(found), nrows=len(found), squeeze=False)
    for axis, (name, weights) in zip(axes[:, 0], found.items(), strict=True):
        colour = COLOURS.get(data.modality_of(name.split()[0]), "#7f7f7f")
        layers, means = list(range(len(weights))), [np.mean(v) for v in weights.values()]
        for layer, values in zip(layers, weights.values(), strict=True):
            axis.plot([layer] * len(values), values, ".", color=colour, alpha=0.5)
        axis.plot(layers, means, color=colour)
        axis.axhline(1 / len(weights), color="#7f7f7f", linestyle=":", linewidth=1)
        axis.set_xticks(layers[:: -(-len(layers) // MOST_TICKS)])
        axis.set_xticklabels(list(weights)[:: -(-len(layers) // MOST_TICKS)])
        axis.set_ylim(bottom=0)
        axis.set_ylabel("weight")
        axis.set_title(name, loc="left", fontsize=9)
    axes[-1, 0].set_xlabel("layer")
    figure.suptitle("where the emotion is: weights of the layers")
    return figure


# ---- Over epochs


def under(prefix: str) -> Pick:
    """The diagnostics of an epoch whose name begins with `prefix`, without it."""

    def pick(entry: Epoch) -> Figures:
        there = [name for name in entry.diagnostics if name.startswith(prefix)]
        return {name.removeprefix(prefix): entry.diagnostics[name] for name in there}

    return pick


def terms(entry: Epoch) -> Figures:
    """The loss terms of an epoch, without their sum."""
    return {name: value for name, value in entry.train.items() if name != "total"}


def overlap(entry: Epoch) -> Figures:
    """How much the dictionaries of two modalities share, by space."""
    names = [name for name in entry.diagnostics if name.startswith("dictionary/")]
    names = [name for name in names if name.endswith("/overlap")]
    return {name.split("/")[1]: entry.diagnostics[name] for name in names}


def curves(
    logs: list[list[Epoch]], pick: Pick, title: str, *, log: bool = False, share: bool = False
) -> Figure | None:
    """One line per name: mean over the logs, the range between them shaded.

    None when no epoch has such a value.
    """
    picked = [list(map(pick, entries)) for entries in logs]
    names = list(dict.fromkeys(_names(picked)))
    if not names:
        return None
    figure, axes = new(5.6, max(3.2, 0.6 + 0.17 * len(names)))
    looks = _looks(len(names))
    for name in names:
        values = _over_epochs(picked, name)
        epochs = np.flatnonzero(~np.isnan(values).all(0))
        if len(epochs):
            colour, dash = (COLOURS[name], "-") if name in COLOURS else next(looks)
            _draw_line(axes, epochs + 1, values[:, epochs], name, colour, dash)
    axes.set(title=title, xlabel="epoch")
    axes.xaxis.get_major_locator().set_params(integer=True)
    if log:
        _logarithmic(axes)
    if share:  # from 0, with room for a line that lies there
        top = axes.get_ylim()[1]
        axes.set_ylim(-0.03 * top, top)
    if len(names) > 1:
        axes.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def _names(picked: list[list[Mapping[str, float | None]]]) -> Iterator[str]:
    for entries in picked:
        for values in entries:
            yield from values


def _looks(lines: int) -> Iterator[tuple[str, str]]:
    """A colour and a dash for each of so many lines; they come again when all are used."""
    dashes_and_colours = list(product(DASHES, OTHERS))
    times = 1 + lines // len(dashes_and_colours)
    return ((colour, dash) for dash, colour in dashes_and_colours * times)


def _over_epochs(picked: list[list[Mapping[str, float | None]]], name: str) -> np.ndarray:
    """(logs, epochs), NaN where there is no value."""
    values = np.full((len(picked), max(map(len, picked))), np.nan)
    for row, entries in zip(values, picked, strict=True):
        there = [entry.get(name) for entry in entries]
        row[: len(entries)] = [np.nan if value is None else value for value in there]
    return values


def _draw_line(
    axes: Any, epochs: np.ndarray, values: np.ndarray, name: str, colour: str, dash: str
) -> None:
    """The mean over the logs, and the range between them."""
    axes.plot(
        epochs,
        np.nanmean(values, 0),
        label=name.replace("->", " \N{RIGHTWARDS ARROW} "),
        color=colour,
        linestyle=dash,
        marker="." if len(epochs) == 1 else "",
    )
    if len(values) > 1:
        low, high = np.nanmin(values, 0), np.nanmax(values, 0)
        axes.fill_between(epochs, low, high, color=colour, alpha=0.15, linewidth=0)


def _logarithmic(axes: Any) -> None:
    """A logarithmic axis that also shows 0 and what is below."""
    from matplotlib.ticker import SymmetricalLogLocator

    axes.set_yscale("symlog", linthresh=1e-3)
    axes.yaxis.set(
        major_locator=SymmetricalLogLocator(base=10, linthresh=1e-3, subs=(1, 3)),
        major_formatter="{x:g}",
    )


# ---- Of the test figures


def confusion(found: SingleMetrics | GroupMetrics) -> Figure | None:
    """Rows are the reference; colour is the share of the row, numbers are counts."""
    matrix = evaluate.reference_by_answer(found)
    if not matrix:
        return None
    counts, labels = np.array(matrix, dtype=float), found.labels
    size = 1.8 + 0.5 * len(labels)
    figure, axes = new(size + 0.6, size)
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(counts):
        colour = "white" if share[row, column] > 0.5 else "black"
        text = f"{count:.0f}"
        axes.text(column, row, text, ha="center", va="center", fontsize=7, color=colour)
    axes.set_xticks(range(len(labels)), labels, rotation=45, ha="right")
    axes.set_yticks(range(len(labels)), labels)
    axes.set(
        xlabel="predicted",
        ylabel="reference",
        title=f"{found.model} on {found.dataset} {found.split}",
    )
    figure.colorbar(image, ax=axes, label="share of the row")
    return figure


def unimodal(found: Metrics) -> Figure | None:
    """The headline figure of each modality's own head beside the whole model's."""
    if found.unimodal is None:
        return None
    metric = metrics.HEADLINE[found.task]
    values = {m: figures.get(metric) for m, figures in found.unimodal.items()}
    values["all"] = found.metrics.figures.get(metric)
    return bars(values, "each modality alone, and all", metrics.TITLES[metric])


def bars(values: Figures | None, title: str, label: str) -> Figure | None:
    """One bar per name."""
    if not values:
        return None
    figure, axes = new(1.2 + 0.8 * len(values), 3)
    heights = [np.nan if value is None else value for value in values.values()]
    drawn = axes.bar(list(values), heights, color=[COLOURS.get(m, "#7f7f7f") for m in values])
    axes.bar_label(drawn, fmt="%.3f", fontsize=7)
    axes.set(title=title, ylabel=label)
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
    with FeatureStore(run.info.features if features is None else features) as store:
        checkpoint.check_store(run, store)
        table = store.table()
        every = splits.targets(table, spec.task, spec.labels)
        rows = splits.assign(table, every, run.config.data, run.fold).dev
        part = data.batch_source(store, spec, run.config.data, rows, every[rows], device=device)
        with torch.inference_mode():
            for batch in part.batches(part.in_order(infer.BATCH)):
                seen = model.mixed(batch)
                spaces.append(core.spaces(seen))
                targets.append(batch.target)
                if hasattr(core, "activations"):
                    activations.append(core.activations(seen))
    target = torch.cat(targets).cpu().numpy()
    classes = groups(target, spec.task, spec.labels)
    pictures = [("spaces", scatter(spaces))]
    for space in activations[0] if activations else ():
        whole = torch.cat([one[space] for one in activations], 1).float().cpu().numpy()
        pictures.append((f"atoms-{space}", atoms(whole, classes, core.modalities, space)))
    return pictures


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
            color=COLOURS.get(m, "#7f7f7f"),
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
