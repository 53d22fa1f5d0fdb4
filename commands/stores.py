"""Stores: inspect, verify, export, import."""

from __future__ import annotations

from pathlib import Path

import click

from mer.commands.group import command
from mer.commands.options import NO_LOCK, pairs
from mer.commands.output import note, say, say_json, say_laid_out
from mer.pipeline.errors import DataError, MerError, StoreError, Together
from mer.pipeline.interchange.formats import EXPORTS, IMPORTS, reader
from mer.pipeline.runtime.terminal import did_you_mean, escape, plural


@command()
@click.argument("store", metavar="FEATS.H5", type=click.Path(path_type=Path))
@click.option(
    "--flag",
    metavar="NAME",
    help="Only ids, one per line: of what extraction counted as short, chunked, silent …",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of text.")
def inspect(store: Path, flag: str | None, as_json: bool):
    """What is in a store: header, counts, encoders, key, sizes, lengths, odd rows."""
    from mer.pipeline.extraction.outcome import NAMED, count_lines, flagged
    from mer.pipeline.media.stages import Flag
    from mer.pipeline.store import FeatureStore
    from mer.pipeline.store.describe import describe, render

    if flag is not None and flag not in Flag.names():
        guess = did_you_mean(flag, Flag.names())
        raise click.UsageError(
            f"--flag {flag}: not known{guess}; known are {', '.join(Flag.names())}"
        )
    opened = FeatureStore(store)
    known = opened.flags_known
    counted = flagged(opened.table()["id"].to_pylist(), opened.flags) if known else {}
    if flag is not None and not known:
        raise DataError(
            f"{store}: was not extracted, so that its flags are another writer's; ask the store "
            f"that `mer extract` made with --flag {flag}"
        )
    if flag is not None:
        ids = counted.get(flag, [])
        if as_json:
            say_json(ids)
        else:
            for utterance in ids:
                say(utterance)
        return
    found = describe(opened) | {"flags": {name: len(ids) for name, ids in counted.items()}}
    examples = {name: ids[:NAMED] for name, ids in counted.items()}
    lines = [f"  {line}" for line in count_lines(found["flags"], examples)]
    say_json(found, indent=1) if as_json else say_laid_out(
        "\n".join([render(found), *map(escape, lines)])
    )


@command()
@click.argument("store", metavar="FEATS.H5", type=click.Path(path_type=Path))
@click.option("--repair", is_flag=True, help="Extract the damaged shards again.")
@click.option(
    "--root",
    type=click.Path(path_type=Path),
    help="Folder of the media, when it is not where it was.",
)
@NO_LOCK
def verify(store: Path, repair: bool, root: Path | None, no_lock: bool):
    """Check every checksum of a store; with --repair, extract only the bad shards again."""
    from mer.pipeline.runtime.progress import choose
    from mer.pipeline.store import FeatureStore, verify_shards
    from mer.pipeline.store.mending import made_again, mends, repairable

    opened = FeatureStore(store, check=False)
    damaged = verify_shards(opened, choose())
    for found in damaged:
        note(f"{found.path}: {found.reason}")
    if damaged and opened.members:
        heads = dict.fromkeys(found.store for found in damaged if found.store != str(store))
        remedies = [mends(Path(head)) for head in heads]
        if any(found.store == str(store) for found in damaged):
            remedies.append(
                "put back what is missing or changed (if it moved, join again with --force, "
                "naming where it is now)"
            )
        raise StoreError(
            f"{store}: joined, and {plural(len(damaged), 'file')} of its members cannot be used; "
            f"{'; '.join(remedies)}"
        )
    shards = len(opened.shards)
    said = f"{store}: {len(damaged):,} of {plural(shards, 'shard is', 'shards are')} damaged"
    if damaged and not repairable(opened):
        raise StoreError(f"{said}, and it was {made_again(opened)}")
    if damaged and repair:
        from mer.pipeline.extraction import Here
        from mer.pipeline.extraction import repair as extract_again

        where = Here(lock=not no_lock)
        extract_again(store, root=root, where=where, progress=choose(), gentle=True)
        opened = FeatureStore(store)
        opened.verify()
        again = f"{len(damaged):,} of {plural(shards, 'shard')} extracted again"
        say(f"{store}: {again}; every byte is as written")
    elif damaged:
        raise StoreError(f"{said}; run it with --repair")
    else:
        held = [opened.member(number) for number in range(len(opened.members))] or [opened]
        shards = sum(len(one.shards) for one in held)
        members = f" of {plural(len(held), 'store')}" if opened.members else ""
        say(
            f"{store}: {plural(len(opened), 'utterance')} in {plural(shards, 'shard')}{members}, "
            "every byte is as written"
        )


@command()
@click.argument("store", metavar="FEATS.H5", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--to",
    required=True,
    type=click.Choice(list(EXPORTS)),
    help="Form to write.",
)
@click.option(
    "--subset", metavar="SPLIT|FILE", help="Only this split, or the ids in this file, one per line."
)
@click.option(
    "--plain-cells", is_flag=True, help="npy, kaldi: index.csv without the guard against formulas."
)
@click.option("--with-provenance", is_flag=True, help="Keep host and absolute paths in the header.")
def export(store: Path, out: Path, to: str, **choices):
    """Write a store in another form: one file, a folder of arrays, Parquet, an MMSA pickle, Kaldi
    archives.
    """
    from mer.pipeline.interchange.export import export as write
    from mer.pipeline.interchange.export import left_out
    from mer.pipeline.runtime.progress import choose
    from mer.pipeline.store import FeatureStore

    opened = FeatureStore(store)
    count, written = write(opened, to, out, progress=choose(), **choices)
    for line in left_out(opened, to):
        note(line)
    note(
        plural(count, "utterance")
        + ("" if written else "; exported before, byte for byte; nothing to do")
    )
    say(out)


@command("import")
@click.argument("kind", type=click.Choice(list(IMPORTS)))
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--out",
    default="feats.h5",
    show_default=True,
    type=click.Path(path_type=Path),
    help="The store to write.",
)
@click.option(
    "--dataset",
    metavar="NAME",
    help="Name of the corpus, which decides how it is evaluated; by default by the file.",
)
@click.option(
    "--task",
    type=click.Choice(["single", "multi", "regression"]),
    help="What to learn; by default what the file offers.",
)
@click.option(
    "--labels",
    metavar="A,B,…",
    default="",
    help="Names of the classes, in the order of their numbers.",
)
@click.option("--language", metavar="CODE", help="Language spoken; en by default.")
@click.option(
    "--column",
    "columns",
    metavar="FIELD=NAME",
    multiple=True,
    callback=pairs,
    help="Where id, label, split, text … are.",
)
@click.option(
    "--feature",
    "features",
    metavar="MODALITY=NAME",
    multiple=True,
    callback=pairs,
    help="Where features are.",
)
@click.option(
    "--frame-rate",
    "rates",
    metavar="MODALITY=HZ",
    multiple=True,
    callback=pairs,
    help="Steps per second of a modality.",
)
@click.option(
    "--dtype",
    type=click.Choice(["float16", "float32"]),
    help="How to store; by default as exported, else float32.",
)
@click.option(
    "--unlabelled",
    metavar="VALUE",
    help="The label or target that means there is none, e.g. -1; none: every label is a class.",
)
@click.option("--force", is_flag=True, help="Replace the store at --out.")
@NO_LOCK
def import_(kind, file: Path, out: Path, labels: str, rates, force: bool, no_lock: bool, **given):
    """Turn features made elsewhere into a store: MMSA pickles, npz, Parquet, a folder of npy files
    with a csv.
    """
    from mer.pipeline.interchange.foreign import ImportOptions
    from mer.pipeline.interchange.importing import write_store
    from mer.pipeline.runtime.cells import strip
    from mer.pipeline.runtime.outputs import STORE, check_replaceable
    from mer.pipeline.runtime.progress import choose

    checks = Together(MerError, click.UsageError)
    if force:
        checks.of(lambda: check_replaceable(out, STORE))
    rates = checks.of(lambda: steps_per_second(rates))
    checks.settle()
    names = tuple(map(strip, labels.split(","))) if labels else ()
    options = ImportOptions(labels=names, frame_rates=rates, **given)
    foreign = reader(kind)(file, options)
    store, report = write_store(
        foreign, out, options, force=force, lock=not no_lock, progress=choose()
    )
    for line in report.notes:
        note(line)
    replaced = ("value was NaN or infinite and is", "values were NaN or infinite and are")
    for modality, count in report.replaced.items():
        if count:
            note(f"{modality}: {plural(count, *replaced)} 0 now")
    for modality, count in report.absent.items():
        if count:
            note(f"{modality}: absent in {plural(count, 'utterance')}")
    splits = ", ".join(f"{name or 'no split'} {n:,}" for name, n in report.splits.items())
    note(
        f"{plural(report.utterances, 'utterance')} ({splits}); {store.header.task} task: "
        f"{', '.join(store.header.labels)}"
    )
    if not report.written:
        note("imported before, from this very content; nothing to do")
    say(out)


def steps_per_second(rates: dict[str, str]) -> dict[str, float]:
    """The values of --frame-rate as numbers."""
    try:
        return {name: float(value) for name, value in rates.items()}
    except ValueError:
        raise click.BadParameter(
            "a rate is a number of steps per second", param_hint="--frame-rate"
        ) from None
