"""Training: train, tune, evaluate, compare, layers, report."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import click

from mer.commands.completion import complete_models, complete_presets
from mer.commands.group import command
from mer.commands.options import BY_FOLD, DEVICE, NO_LOCK, check_run_folders, command_line
from mer.commands.output import note, say, say_json, say_laid_out
from mer.pipeline.errors import Together
from mer.pipeline.runtime.terminal import plural, shown

TEXT_FILES = (".csv", ".tsv", ".txt", ".json", ".jsonl", ".ndjson", ".xlsx")  # no Parquet


def the_store(argument: Path | None, option: Path | None) -> Path:
    """The store of `mer train`, named as an argument or by --features; the argument wins over the
    environment.
    """
    source = click.get_current_context().get_parameter_source("features")
    if argument is None and option is None:
        raise click.UsageError("name the store: mer train FEATS.H5, or --features FEATS.H5")
    if argument is not None and option is not None and argument != option:
        if source is not click.core.ParameterSource.ENVIRONMENT:
            raise click.UsageError(f"two stores, {argument} and --features {option}; name one")
    return argument if argument is not None else option  # type: ignore[return-value]


def beside_valence(valence: Path | None, others: object) -> None:
    """Refuse `mer evaluate --valence` beside options of other rows than the test part's."""
    if valence is not None and others:
        raise click.UsageError(
            "--valence is of the test parts that both runs were trained beside; leave out "
            "--ensemble, --robustness, --features, --map and --split"
        )


@command()
@click.argument("store", metavar="[FEATS.H5]", required=False, type=click.Path(path_type=Path))
@click.option(
    "--features",
    metavar="FEATS.H5",
    type=click.Path(path_type=Path),
    help="The store, if it is not named as an argument.",
)
@click.option(
    "--model",
    metavar="NAME",
    shell_complete=complete_models,
    help="drkf (default), dmd, dhmd, fusion, concat, audio, text, vision.",
)
@click.option(
    "--preset",
    metavar="NAME|FILE",
    shell_complete=complete_presets,
    help="A TOML preset; by default the one named like the model.",
)
@click.option(
    "--set",
    "sets",
    multiple=True,
    metavar="TABLE.KEY=VALUE",
    help="Change one value, for example optim.lr=3e-5.",
)
@click.option(
    "--seeds",
    default=1,
    show_default=True,
    metavar="N",
    help="Train with N seeds; report mean and deviation. Those that --out lacks are added to it.",
)
@click.option(
    "--folds",
    type=BY_FOLD,
    help="Leave one group out in turn; published: the folds that came with the corpus.",
)
@click.option(
    "--jobs",
    type=int,
    metavar="N",
    help="Train N runs of --seeds or --folds at a time; by default one per core, where it pays.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Run folder; by default runs/<dataset>-<model>-<n>.",
)
@DEVICE
@click.option("--no-test", is_flag=True, help="Do not open the test part.")
@click.option(
    "--log",
    multiple=True,
    metavar="tensorboard",
    help="Also write every epoch there, into the run folder; needs mer[tensorboard].",
)
@NO_LOCK
@click.option("--json", "as_json", is_flag=True, help="The figures as one JSON object.")
def train(
    store,
    features,
    model,
    preset,
    sets,
    seeds,
    folds,
    jobs,
    out,
    device,
    no_test,
    log,
    no_lock,
    as_json,
):
    """Train a fusion model on a store; dev chooses the epoch, the test part is scored once at the
    end.

    The same command goes on with an interrupted run, and does nothing for a finished one.
    """
    from mer.fusion import config
    from mer.fusion.training import sinks
    from mer.pipeline.store import FeatureStore

    features = the_store(store, features)
    # what is wrong with this or the settings is said before torch is loaded
    checks = Together()
    store = checks.of(lambda: FeatureStore(features))
    checks.of(lambda: config.check(model=model, preset=preset, sets=sets))
    checks.of(lambda: sinks.check(log))
    checks.settle()
    settings = config.load(model=model, preset=preset, sets=sets)
    from mer.fusion import report
    from mer.fusion.evaluation.evaluate import evaluate, has_test
    from mer.fusion.runs.result_files import stored_metrics
    from mer.fusion.runtime.devices import pick_device
    from mer.fusion.runtime.parallel import processes
    from mer.fusion.runtime.typed import tree
    from mer.fusion.training import experiment
    from mer.pipeline.runtime.progress import Silent, choose

    with processes() as together, store:
        device, say = pick_device(device), note if together.first else (lambda message: None)
        run = experiment.train(
            store,
            settings,
            out,
            seeds=seeds,
            folds=folds,
            device=device,
            note=say,
            processes=together,
            lock=not no_lock,
            command=command_line(click.get_current_context()),
            progress=choose() if together.first else Silent(),
            warn=as_json,  # else what is printed at the end says it
            log=log,
            jobs=jobs,
        )
        if not together.first:
            return
        testable = has_test(run, store)
    note(f"run: {run.path}")
    if no_test or not testable:
        note(
            "the test part was not opened (--no-test)"
            if no_test
            else "the store has no test rows; train with --folds to have some"
        )
        say_json(tree(run.info)) if as_json else say_laid_out(report.dev_text(run))
        return
    found = stored_metrics(run) or evaluate(
        run, features, device=device, note=note, progress=choose()
    )
    say_json(tree(found)) if as_json else report.show(found, terminal=sys.stdout.isatty())


@command()
@click.argument("store", metavar="[FEATS.H5]", required=False, type=click.Path(path_type=Path))
@click.option(
    "--features",
    metavar="FEATS.H5",
    type=click.Path(path_type=Path),
    help="The store, if it is not named as an argument.",
)
@click.option(
    "--model",
    "models",
    metavar="NAME",
    multiple=True,
    default=("drkf",),
    shell_complete=complete_models,
    help="Repeatable: every model gets the same number of trials.  [default: drkf]",
)
@click.option(
    "--trials", default=20, show_default=True, metavar="N", help="Configurations per model."
)
@click.option(
    "--seeds",
    default=1,
    show_default=True,
    metavar="K",
    help="Train each with K seeds; their mean is what counts.",
)
@click.option(
    "--space",
    "spaces",
    metavar="FILE",
    multiple=True,
    type=click.Path(path_type=Path),
    help="A TOML space of your own, in place of the model's; repeatable, one per model.",
)
@click.option(
    "--set",
    "sets",
    multiple=True,
    metavar="TABLE.KEY=VALUE",
    help="The same in every trial, for example data.modalities=audio.",
)
@click.option(
    "--search",
    "method",
    default="random",
    show_default=True,
    type=click.Choice(["random", "tpe"]),
    help="At random, or by TPE, which learns from earlier trials; needs mer[tune].",
)
@click.option("--seed", default=0, show_default=True, metavar="N", help="Of the search.")
@click.option(
    "--jobs",
    "processes",
    default=1,
    show_default=True,
    metavar="N",
    help="Trials that are trained at the same time, each in a process of its own.",
)
@click.option(
    "--folds",
    type=BY_FOLD,
    help="Leave one group out in turn, or published; the mean over dev parts.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Where trials and presets go; by default runs/tune-<dataset>.",
)
@DEVICE
@NO_LOCK
@click.option("--json", "as_json", is_flag=True, help="All trials as one JSON array.")
def tune(store, features, models, sets, spaces, out, device, no_lock, as_json, **given):
    """Search for a model's best configuration on dev; the test part is never opened.

    Every model gets the same number of trials. The same command goes on with a search that was
    interrupted, and with more --trials it adds some. The best configuration of each model is
    written as a preset for `mer train --preset`.
    """
    from mer.fusion import config
    from mer.fusion.training import space
    from mer.pipeline.store import FeatureStore

    features = the_store(store, features)
    # what is wrong with this or the settings is said before torch is loaded
    checks = Together()
    store = checks.of(lambda: FeatureStore(features))
    for name in models:
        checks.of(partial(config.check, model=name, sets=sets))
    checks.settle()
    bases = [config.load(model=name, sets=sets) for name in models]
    fixed = [text.partition("=")[0].strip() for text in sets]
    searched = [one.without(fixed) for one in space.spaces_of(models, spaces)]
    from mer.fusion.measures import tables
    from mer.fusion.runtime.devices import pick_device
    from mer.fusion.training import experiment, tuning
    from mer.pipeline.runtime.progress import choose

    with store:
        found = tuning.tune(
            store,
            bases,
            searched,
            out or Path("runs") / f"tune-{experiment.plain_name(store.header.dataset)}",
            **given,
            device=pick_device(device),
            note=note,
            progress=choose(),
            lock=not no_lock,
            command=command_line(click.get_current_context()),
        )
    if as_json:
        say_json(tuning.as_json(found))
        return
    say_laid_out(tables.plain(tuning.table(found, given["seeds"])))
    for line in tuning.lines(found, features, given["folds"]):
        say(line)


@command()
@click.argument("runs", metavar="RUN...", nargs=-1, required=True, type=click.Path(path_type=Path))
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
    if against is not None and not robust:
        raise click.UsageError("--against goes with --robustness")
    if mapping and features is None:
        raise click.UsageError("--map is for another corpus: name its store with --features")
    if (mapping or split == "all") and (together or robust or figures):
        raise click.UsageError(
            "--ensemble, --robustness and --figures go with the run's own labels and splits; leave "
            "them out, or --map and --split all"
        )
    if predictions is not None and predictions.suffix.lower() in TEXT_FILES:
        raise click.UsageError(
            f"--predictions {shown(predictions, 120)}: they are written as Parquet; end its name "
            "in .parquet"
        )
    beside_valence(valence, together or robust or features or mapping or split)
    check_run_folders([*runs, *filter(None, [against, valence])])
    from mer.fusion import report
    from mer.fusion.evaluation import combined, ensemble
    from mer.fusion.evaluation.evaluate import evaluate
    from mer.fusion.runs.checkpoint import Run
    from mer.fusion.runs.records import GroupMetrics, SingleMetrics
    from mer.fusion.runtime.devices import pick_device
    from mer.fusion.runtime.typed import tree
    from mer.pipeline.runtime.progress import choose

    if len(runs) > 1 and not together:
        raise click.UsageError("several runs: score them one by one, or together with --ensemble")
    if together and (figures or robust):
        raise click.UsageError("--figures and --robustness are of a run; leave out --ensemble")
    opened = Run.open(runs[0])
    if against is not None:
        Run.open(against).trained()  # said before anything is scored
    other = None if valence is None else combined.other_of(opened, valence)
    asked = {
        "device": pick_device(device),
        "predictions": predictions,
        "note": note,
        "progress": choose(),
    }
    found: SingleMetrics | GroupMetrics
    if together:
        found = ensemble.score(list(map(Run.open, runs)), features, split or "test", **asked)
    else:
        found = evaluate(opened, features, split, mapping=mapping or None, **asked)
    if figures:
        from mer.fusion.report import figures as pictures

        written = pictures.write(
            opened, found, figures, features=features, device=pick_device(device)
        )
        note(f"wrote {plural(len(written), 'file')} to {figures}")
    said, tables = {}, []  # beside the figures
    if robust:
        from mer.fusion.evaluation import robustness

        measured = robustness.measure(
            opened,
            features,
            split or "test",
            against=against,
            device=asked["device"],
            note=note,
            progress=asked["progress"],
        )
        said["robustness"] = tree(measured)
        tables += robustness.tables(measured)
    if other is not None:
        both = combined.of_runs(opened, other)
        said["mer2023"] = tree(both)
        tables.append(combined.table(both))
    if as_json:
        say_json({**tree(found), **said})
        return
    report.show(found, terminal=sys.stdout.isatty())
    for table in tables:
        say_laid_out("\n" + report.plain(table))


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
    found = report.compare(first, second, metric=metric)
    if as_json:
        say_json(tree(found))
    else:
        say_laid_out(report.plain(report.comparison_table(found)))
        said = report.glossary(found.metrics)
        if said:
            say(said)
        say(
            f"{run_b} is {found.verdict.replace('undecided', 'neither better nor worse')} by "
            f"{found.metric}"
        )
        for line in report.caveats(found):
            say(line)
    for line in found.seen.troubles:
        note(line)
    if fail_if == found.verdict:
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
    from mer.pipeline.runtime.progress import choose
    from mer.pipeline.store import FeatureStore

    if out is not None:
        layer_curves.check_name(out)
    with FeatureStore(store) as opened:
        curves, notes = probes.probe(opened, modalities, folds=folds, progress=choose())
    for line in notes:
        note(line)
    if as_json:
        say_json({curve.name: _layers_told(tree(curve), curve) for curve in curves})
    for curve in () if as_json else curves:
        for line in probes.lines(curve, probes.option_of(curve.name)):
            say(line)
    said = "" if as_json else probes.meaning(curves)
    if said:
        say(said)
    if out is not None:
        layer_curves.write(curves, out)
        note(f"wrote {out}")


def _layers_told(told: dict, curve) -> dict:
    """A curve of `mer layers` as JSON, with what follows from it."""
    return told | {"extract": curve.settings, "doubt": curve.doubt}


@command()
@click.argument("runs", metavar="RUN...", nargs=-1, required=True, type=click.Path(path_type=Path))
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

    Runs that are unfinished, not evaluated or damaged are listed with the reason.
    """
    from mer.fusion import report
    from mer.fusion.runtime.files import write_text
    from mer.pipeline.runtime.progress import choose

    progress = choose()
    told, left_out, lines = report.gather(runs, progress=progress)
    for line in lines:
        note(line)
    made = report.prepared(
        told,
        left_out=left_out,
        against=against,
        metric=metric,
        made=report.made_now(),
        progress=progress,
    )
    write_text(out, report.rendered(made))
    if tables:
        written = report.write_tables(made.all_tables(), tables)
        note(f"wrote {plural(len(written), 'file')} to {tables}")
    if figures:
        written = report.write_figures(made.all_pictures(), figures, progress=progress)
        note(f"wrote {plural(len(written), 'file')} to {figures}")
    say(out)
