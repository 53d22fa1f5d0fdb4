"""Training: train, tune."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import click

from mer.commands.completion import complete_models, complete_presets
from mer.commands.group import command
from mer.commands.options import BY_FOLD, DEVICE, NO_LOCK, command_line
from mer.commands.output import note, say, say_json, say_laid_out
from mer.pipeline.errors import Together
from mer.pipeline.runtime.files import naming
from mer.pipeline.runtime.terminal import STDOUT

STORE = click.argument(
    "store", metavar="[FEATS.H5]", required=False, type=click.Path(path_type=Path)
)
FEATURES = click.option(
    "--features",
    metavar="FEATS.H5",
    type=click.Path(path_type=Path),
    help="The store, if it is not named as an argument.",
)


def the_store(argument: Path | None, option: Path | None) -> Path:
    """The store of `mer train`, named as an argument or by --features; the argument wins over the
    environment.
    """
    if argument is None:
        if option is None:
            raise click.UsageError("name the store: mer train FEATS.H5, or --features FEATS.H5")
        return option
    if option is not None and argument != option:
        source = click.get_current_context().get_parameter_source("features")
        if source is not click.core.ParameterSource.ENVIRONMENT:
            raise click.UsageError(f"two stores, {argument} and --features {option}; name one")
    return argument


@command()
@STORE
@FEATURES
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
        device = pick_device(device)
        run = experiment.train(
            store,
            settings,
            out,
            seeds=seeds,
            folds=folds,
            device=device,
            note=note if together.first else (lambda message: None),
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
        why = "the store has no test rows; train with --folds to have some"
        note("the test part was not opened (--no-test)" if no_test else why)
        say_json(tree(run.info)) if as_json else say_laid_out(report.dev_text(run))
        return
    metrics = stored_metrics(run) or evaluate(
        run, features, device=device, note=note, progress=choose()
    )
    if as_json:
        say_json(tree(metrics))
        return
    with naming(STDOUT):
        report.show(metrics, terminal=sys.stdout.isatty())


@command()
@STORE
@FEATURES
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
    owns = checks.of(lambda: space.spaces_of(models, spaces))
    checks.settle()
    bases = [config.load(model=name, sets=sets) for name in models]
    fixed = [text.partition("=")[0].strip() for text in sets]
    searched = [own.without(fixed) for own in owns]
    from mer.fusion.measures import tables
    from mer.fusion.runtime.devices import pick_device
    from mer.fusion.training import experiment, tuning, tuning_results
    from mer.pipeline.runtime.progress import choose

    with store:
        results = tuning.tune(
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
        say_json(tuning_results.as_json(results))
    else:
        say_laid_out(tables.plain(tuning_results.table(results, given["seeds"], given["folds"])))
        for line in tuning_results.lines(results, features, given["folds"]):
            say(line)
    tuning_results.check_found(results)
