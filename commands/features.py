"""Features: extract, fingerprint, join."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import click

from mer.commands.extraction_options import (
    budgets,
    extract_options,
    extraction_options,
    find_manifest,
    setting,
    where_to_run,
)
from mer.commands.group import command
from mer.commands.options import NO_LOCK
from mer.commands.output import agreed, note, say, say_json
from mer.pipeline.errors import MerError, Together
from mer.pipeline.runtime.terminal import amount, plural


@command()
@extraction_options
@click.option(
    "--out",
    default="feats.h5",
    show_default=True,
    type=click.Path(path_type=Path),
    help="The store.",
)
@setting("--device", default="auto", metavar="auto|cpu|cuda|cuda:N")
@click.option(
    "--budget-seconds",
    metavar="auto|N",
    help="Padded seconds of audio per batch; auto: found by trying, and remembered. [default: 8 on "
    "a CPU, 320 on a GPU]",
)
@click.option(
    "--budget-tokens",
    metavar="auto|N",
    help="Padded tokens per batch, likewise. [default: 512 on a CPU, 16384 on a GPU]",
)
@click.option(
    "--budget-pictures",
    metavar="auto|N",
    help="Pictures per batch, likewise. [default: 16 on a CPU, 256 on a GPU]",
)
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    metavar="N",
    help="Local processes, one per GPU or share of the cores.",
)
@click.option(
    "--scheduler",
    metavar="ADDRESS",
    help="Use the workers of a Dask cluster, e.g. tcp://host:8786.",
)
@click.option(
    "--shard",
    metavar="i/n",
    help="Do the i-th of n shares (from 1); other runs do the others, at the same --out.",
)
@setting(
    "--max-failures",
    type=int,
    default=0,
    metavar="N",
    help="Tolerated, beyond the known-bad clips.",
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Print counts, hours, bytes, batches and padding; compute and write no features.",
)
@click.option("--yes", is_flag=True, help="Do not ask before writing more than 20 GB.")
@click.option("--force", is_flag=True, help="Replace a store made by another recipe.")
@NO_LOCK
@click.option("--json", "as_json", is_flag=True, help="The report as one JSON object.")
def extract(
    dataset,
    manifest_file,
    root,
    labels,
    size,
    seed,
    out,
    budget_seconds,
    budget_tokens,
    budget_pictures,
    workers,
    scheduler,
    shard,
    dry_run,
    yes,
    no_lock,
    as_json,
    **given,
):
    """Compute features once: media and transcripts through frozen encoders into a store.

    Run it again to finish or update it.
    """
    from mer.pipeline import extraction
    from mer.pipeline.runtime.outputs import STORE, check_replaceable
    from mer.pipeline.runtime.progress import choose

    checks = Together(MerError, click.UsageError)
    if given["force"]:
        checks.of(lambda: check_replaceable(out, STORE))
    where = checks.of(lambda: where_to_run(workers, scheduler, shard, lock=not no_lock))
    given |= checks.of(lambda: budgets(budget_seconds, budget_tokens, budget_pictures)) or {}
    found = checks.of(
        lambda: find_manifest(dataset, manifest_file, root, labels, size=size, seed=seed)
    )
    options = checks.of(lambda: extract_options(found[0], **given)) if found else None
    checks.settle()
    manifest, file = found

    def confirm(size: int):
        if size > 20e9 and not yes:
            question = (
                f"this will write {size / 1e9:.1f} GB of features (and needs twice that for a "
                "while)"
            )
            if not sys.stdin.isatty():
                raise click.UsageError(f"{question}; say --yes")
            if not agreed(question):
                raise click.Abort

    failed = None
    try:
        report = extraction.extract(
            manifest,
            out,
            options,
            source=file,
            progress=choose(),
            dry_run=dry_run,
            confirm=confirm,
            where=where,
            gentle=True,
        )
    except extraction.TooManyFailures as error:
        failed, report = error, error.report
    for line in report.lines():
        note(line)
    if as_json:
        say_json(report.to_dict())
    elif not dry_run and report.action != "part":
        say(report.out)
    if failed is not None:
        raise failed


@command()
@extraction_options
def fingerprint(dataset, manifest_file, root, labels, size, seed, as_json, **given):
    """The cache key that `extract` with these options would give its store, without running it.

    It takes every option of `extract`, so that the same line goes for both; those that do not
    decide features change nothing.
    """
    from mer.pipeline.extraction.fingerprint import fingerprint as key
    from mer.pipeline.extraction.memory import FileMemory, memory_path
    from mer.pipeline.runtime.progress import choose

    manifest, file = find_manifest(dataset, manifest_file, root, labels, size=size, seed=seed)
    decide = {p.name for p in fingerprint.params} - {p.name for p in ALSO}
    options = extract_options(manifest, **{k: v for k, v in given.items() if k in decide})

    def cold(files: int, size: int):
        note(f"hashing {plural(files, 'file')}, {amount(size)} (remembered for the next time)")
        return choose().task("hashing", files, "files", brief=True)

    found = key(manifest, options, memory=FileMemory(memory_path(file)), cold=cold)
    say_json({"fingerprint": found}) if as_json else say(found)


# what `extract` takes besides
OF_FINGERPRINT = {param.name for param in fingerprint.params}
ALSO = [param for param in extract.params if param.name not in OF_FINGERPRINT]
fingerprint.params += ALSO


@command()
@click.argument(
    "stores", metavar="FEATS.H5...", nargs=-1, required=True, type=click.Path(path_type=Path)
)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The store to write.")
@click.option(
    "--as",
    "renamed",
    metavar="STORE:MODALITY=NAME",
    multiple=True,
    help="Another name for a modality of a store, e.g. b.h5:audio=audio.egemaps; no NAME leaves it "
    "out.",
)
@click.option(
    "--require-all",
    is_flag=True,
    help="Refuse utterances that are not in every store; by default they are absent there.",
)
@click.option(
    "--keep-first",
    metavar="COLUMN",
    multiple=True,
    help="Where stores contradict each other in text, duration, speaker …, believe the first that "
    "says anything.",
)
@click.option(
    "--copy", is_flag=True, help="Copy the features, instead of reading them from the stores."
)
@click.option("--force", is_flag=True, help="Replace the store at --out.")
@NO_LOCK
def join(stores: tuple[Path, ...], out: Path, renamed: tuple[str, ...], no_lock: bool, **choices):
    """Put the modalities of several stores of the same utterances under one head, by id, without
    copying them.
    """
    from mer.pipeline.interchange.joining import join as put_together
    from mer.pipeline.runtime.outputs import STORE, check_replaceable
    from mer.pipeline.store import FeatureStore

    checks = Together(MerError, click.UsageError)
    if choices["force"]:
        checks.of(lambda: check_replaceable(out, STORE))
    names = {}
    for spelled in renamed:
        place, equals, name = spelled.rpartition("=")
        if not equals:
            checks.add(
                click.BadParameter(f"'{spelled}' is not STORE:MODALITY=NAME", param_hint="--as")
            )
        if place in names:
            checks.add(click.BadParameter(f"'{place}' is named twice", param_hint="--as"))
        names[place] = name
    opened = [checks.of(partial(FeatureStore, path)) for path in stores]
    checks.settle()
    store, notes, written = put_together(opened, out, renamed=names, lock=not no_lock, **choices)
    for line in notes:
        note(line)
    modalities = ", ".join(
        f"{name} {int((store.lengths(name) > 0).sum()):,}" for name in store.header.modalities
    )
    note(f"{plural(len(store), 'utterance')}, with {modalities}")
    if not written:
        note("joined before, from these very stores; nothing to do")
    say(out)
