"""Training: evaluate, compare, layers, report."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import click

from mer.commands.group import command
from mer.commands.options import BY_FOLD, DEVICE, RUNS, check_run_folders
from mer.commands.output import note, say, say_json, say_laid_out
from mer.pipeline.errors import MerError, Together
from mer.pipeline.runtime.files import naming
from mer.pipeline.runtime.terminal import STDOUT, plural, shown

TEXT_FILES = (".csv", ".tsv", ".txt", ".json", ".jsonl", ".ndjson", ".xlsx")  # no Parquet


@command()
@RUNS
@click.option(
    "--features",
    metavar="FEATS.H5",
    type=click.Path(path_type=Path),
    help="The store; by default the one it was trained on.",
)
@click.option(
    "--ensemble",
    "together",
    is_flag=True,
    help="Score the mean of the probabilities of several runs, or of a run over seeds.",
)
@click.option(
    "--map",
    "mapping",
    metavar="LABEL=ANSWER,...",
    multiple=True,
    help="The store is another corpus: which of the run's labels each of its labels stands for.",
)
@click.option(
    "--split",
    type=click.Choice(["train", "dev", "test", "all"]),
    help="By default test; with --map all rows of a store that has no test part.",
)
@click.option(
    "--predictions",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Also write the predictions to this Parquet file.",
)
@click.option(
    "--figures",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Draw the run and its model as PNG and SVG.",
)
@click.option(
    "--robustness",
    "robust",
    is_flag=True,
    help="Also without each modality, with noise, where heads disagree, by speaker, calibration.",
)
@click.option(
    "--against",
    metavar="RUN",
    type=click.Path(path_type=Path),
    help="With --robustness: the difference from that run where the heads agree and disagree.",
)
@click.option(
    "--valence",
    metavar="RUN",
    type=click.Path(path_type=Path),
    help="MER2023's combined measure: the WF1 of this run minus a quarter of the squared error of "
    "that one, a regression on the same test rows.",
)
@DEVICE
@click.option("--json", "as_json", is_flag=True, help="The figures as one JSON object.")
def evaluate(
    runs,
    features,
    mapping,
    together,
    robust,
    against,
    valence,
    split,
    predictions,
    figures,
    device,
    as_json,
):
    """Score a trained run; writes metrics and predictions into its folder, and logs every opening
    of the test part.

    With --features and --map it is scored on another corpus of the same features, whose labels
    have other names: --map joy=happiness,fear= reads joy of the store as happiness of the run, and
    leaves fear out. Labels of the same name stand for each other without being named.
    """
    checks = Together(MerError, click.UsageError)
    check_options_of_evaluate(
        checks,
        runs=runs,
        features=features,
        mapping=mapping,
        ensemble=together,
        robust=robust,
        against=against,
        valence=valence,
        split=split,
        predictions=predictions,
        figures=figures,
    )
    checks.of(lambda: check_run_folders([*runs, *filter(None, [against, valence])]))
    checks.settle()
    from mer.fusion import report
    from mer.fusion.evaluation import combined, ensemble
    from mer.fusion.evaluation.evaluate import evaluate
    from mer.fusion.runs import moved
    from mer.fusion.runs.checkpoint import Run
    from mer.fusion.runs.records import GroupMetrics, SingleMetrics
    from mer.fusion.runtime.devices import pick_device
    from mer.fusion.runtime.typed import tree
    from mer.pipeline.runtime.progress import choose

    opened = Run.open(runs[0])
    if against is not None:
        from mer.fusion.evaluation.robustness import other_of

        other_of(opened, against)  # said before anything is scored
    regression = None if valence is None else combined.other_of(opened, valence)
    device, progress = pick_device(device), choose()
    asked = {"device": device, "predictions": predictions, "note": note, "progress": progress}
    metrics: SingleMetrics | GroupMetrics
    if together:
        metrics = ensemble.score(list(map(Run.open, runs)), features, split or "test", **asked)
    else:
        metrics = evaluate(opened, features, split, mapping=mapping or None, **asked)
        features = features or moved.find(opened).path
    if figures:
        from mer.fusion.report import figures as pictures

        written = pictures.write(opened, metrics, figures, features=features, device=device)
        note(f"wrote {plural(len(written), 'file')} to {figures}")
    further, tables = {}, []  # beside the metrics: as JSON, and for a terminal
    if robust:
        from mer.fusion.evaluation import robustness, robustness_tables

        measured = robustness.measure(
            opened,
            features,
            split or "test",
            against=against,
            device=device,
            note=note,
            progress=progress,
        )
        further["robustness"] = tree(measured)
        tables += robustness_tables.tables(measured)
    if regression is not None:
        measure = combined.of_runs(opened, regression)
        further["mer2023"] = tree(measure)
        tables.append(combined.table(measure))
    if as_json:
        say_json({**tree(metrics), **further})
        return
    with naming(STDOUT):
        report.show(metrics, terminal=sys.stdout.isatty())
    for table in tables:
        say_laid_out("\n" + report.plain(table))


def check_options_of_evaluate(
    checks: Together,
    *,
    runs,
    features,
    mapping,
    ensemble,
    robust,
    against,
    valence,
    split,
    predictions,
    figures,
) -> None:
    """Add to `checks` which options of `mer evaluate` do not go together."""

    def refuse(why: str) -> None:
        checks.add(click.UsageError(why))

    if len(runs) > 1 and not ensemble:
        refuse("several runs: score them one by one, or together with --ensemble")
    if ensemble and (figures or robust):
        refuse("--figures and --robustness are of a run; leave out --ensemble")
    if against is not None and not robust:
        refuse("--against goes with --robustness")
    if mapping and features is None:
        refuse("--map is for another corpus: name its store with --features")
    if (mapping or split == "all") and (ensemble or robust or figures):
        refuse(
            "--ensemble, --robustness and --figures go with the run's own labels and splits; leave "
            "them out, or --map and --split all"
        )
    if predictions is not None and predictions.suffix.lower() in TEXT_FILES:
        refuse(
            f"--predictions {shown(predictions, 120)}: they are written as Parquet; end its name "
            "in .parquet"
        )
    elif predictions is not None:
        from mer.pipeline.runtime.outputs import SCORES, check_replaceable

        checks.of(lambda: check_replaceable(predictions, SCORES, option="--predictions"))
    if valence is not None and (ensemble or robust or features or mapping or split):
        refuse(
            "--valence is of the test parts that both runs were trained beside; leave out "
            "--ensemble, --robustness, --features, --map and --split"
        )


@command()
@click.argument("run_a", type=click.Path(path_type=Path))
@click.argument("run_b", type=click.Path(path_type=Path))
@click.option(
    "--metric",
    metavar="NAME",
    help="The figure that decides; by default wf1, weighted_f1 or mae, by task.",
)
@click.option(
    "--fail-if",
    type=click.Choice(["worse"]),
    help="Exit 1 when RUN_B is worse than RUN_A beyond the interval.",
)
@click.option("--json", "as_json", is_flag=True, help="The comparison as one JSON object.")
def compare(run_a, run_b, metric, fail_if, as_json):
    """RUN_B minus RUN_A on the same test rows, with a paired bootstrap over dialogues."""
    check_run_folders([run_a, run_b])
    from mer.fusion import report
    from mer.fusion.runs.checkpoint import Run
    from mer.fusion.runtime.typed import tree

    checks = Together()
    first, second = (checks.of(partial(Run.open, run)) for run in (run_a, run_b))
    checks.settle()
    comparison = report.compare(first, second, metric=metric)
    if as_json:
        say_json(tree(comparison))
    elif comparison.same:
        both = f"{shown(run_a, 100)} and {shown(run_b, 100)}"
        say(f"{both} are {comparison.same}: neither better nor worse")
    else:
        say_laid_out(report.plain(report.comparison_table(comparison)))
        glossary = report.glossary(comparison.metrics)
        if glossary:
            say(glossary)
        say(
            f"{run_b} is {comparison.verdict.replace('undecided', 'neither better nor worse')} by "
            f"{comparison.metric}"
        )
        for line in report.caveats(comparison):
            say(line)
    for line in comparison.seen.troubles:
        note(line)
    if fail_if == comparison.verdict:
        sys.exit(1)


@command()
@click.argument("store", metavar="FEATS.H5", type=click.Path(path_type=Path))
@click.option(
    "--modality",
    "modalities",
    metavar="NAME",
    multiple=True,
    help="Only these features; by default all that have layer means.",
)
@click.option(
    "--folds",
    type=BY_FOLD,
    help="Score on the dev part of each fold that `mer train --folds` would make.",
)
@click.option(
    "--out",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Draw the curves: .png, .svg or .html.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of text.")
def layers(store, modalities, folds, out, as_json):
    """In which layer of an encoder the emotion is: a linear probe on the utterance means of each,
    fitted on train, scored on dev. The test part is not opened.
    """
    from mer.fusion.evaluation import layers as probes
    from mer.fusion.report import layer_curves
    from mer.fusion.runtime.typed import tree
    from mer.pipeline.runtime.outputs import CURVES, check_replaceable
    from mer.pipeline.runtime.progress import choose
    from mer.pipeline.store import FeatureStore

    checks = Together()
    if out is not None:
        checks.of(lambda: layer_curves.check_name(out))
        checks.of(lambda: check_replaceable(out, CURVES))
    there = checks.of(lambda: FeatureStore(store))
    checks.settle()
    with there as opened:
        curves, notes = probes.probe(opened, modalities, folds=folds, progress=choose())
    for line in notes:
        note(line)
    if as_json:
        say_json({curve.name: _with_conclusions(tree(curve), curve) for curve in curves})
    for curve in () if as_json else curves:
        for line in probes.lines(curve, probes.option_of(curve.name)):
            say(line)
    meaning = "" if as_json else probes.meaning(curves)
    if meaning:
        say(meaning)
    if out is not None:
        layer_curves.write(curves, out)
        note(f"wrote {out}")


def _with_conclusions(as_json: dict, curve) -> dict:
    """A curve of `mer layers` as JSON, with what follows from it."""
    return as_json | {"extract": curve.settings, "doubt": curve.doubt}


@command()
@RUNS
@click.option(
    "--out",
    default="report.html",
    show_default=True,
    type=click.Path(path_type=Path),
    help="One self-contained HTML file.",
)
@click.option(
    "--against",
    metavar="RUN",
    type=click.Path(path_type=Path),
    help="The run that the others are held against; by default the best on dev.",
)
@click.option(
    "--metric",
    metavar="NAME",
    help="The figure that is compared; by default wf1, weighted_f1 or mae, by task.",
)
@click.option(
    "--tables",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Every table besides as CSV and LaTeX.",
)
@click.option(
    "--figures",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Every picture besides as PNG of 300 dpi, SVG and PDF.",
)
def report(runs, out, against, metric, tables, figures):
    """Comparison, tables, curves and confusion matrices of evaluated runs, as one HTML page.

    Runs that are unfinished, not evaluated, damaged or a copy of another are listed with the
    reason.
    """
    from mer.fusion import report
    from mer.fusion.runtime.files import write_text
    from mer.pipeline.runtime.outputs import REPORT, check_replaceable
    from mer.pipeline.runtime.progress import choose

    check_replaceable(out, REPORT)
    progress = choose()
    gathered, left_out, lines = report.gather(runs, progress=progress)
    for line in lines:
        note(line)
    page = report.prepared(
        gathered,
        left_out=left_out,
        against=against,
        metric=metric,
        made=report.made_now(),
        progress=progress,
    )
    write_text(out, report.rendered(page))
    if tables:
        written = report.write_tables(page.all_tables(), tables)
        note(f"wrote {plural(len(written), 'file')} to {tables}")
    if figures:
        written = report.write_figures(page.all_pictures(), figures, progress=progress)
        note(f"wrote {plural(len(written), 'file')} to {figures}")
    say(out)
