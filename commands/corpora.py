"""Corpora: datasets, prepare."""

from __future__ import annotations

from pathlib import Path

import click

from mer.commands.completion import complete_corpora
from mer.commands.group import command
from mer.commands.options import mapped, parted
from mer.commands.output import say, say_json
from mer.pipeline.errors import DataError, MerError, Together
from mer.pipeline.runtime.files import FULL
from mer.pipeline.runtime.terminal import shown


@command()
@click.argument("name", metavar="[NAME]", required=False, shell_complete=complete_corpora)
@click.option("--json", "as_json", is_flag=True, help="One JSON object per corpus.")
def datasets(name, as_json):
    """Known corpora: size, language, modalities, task, licence, and what is found on this disk.
    With NAME all that is known of one.
    """
    from mer.pipeline.datasets import OWN, overview, pages

    if name in OWN:
        raise DataError(f"{name} is no corpus, but for what is yours: see `mer prepare --help`")
    found = overview(name)
    if as_json:
        say_json(found, indent=1)
        return
    for corpus in found:
        for line in pages.in_list(corpus) if name is None else pages.page(corpus):
            say(line)
    for line in pages.OWN if name is None else ():
        say(line)


@command()
@click.argument("dataset", metavar="DATASET", shell_complete=complete_corpora)
@click.option(
    "--root",
    type=click.Path(path_type=Path),
    help="Where the corpus is. [default: $MER_DATA/NAME, else data/NAME]",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="[default: manifest.parquet or manifest-LABELS.parquet in the root; table: in data/NAME]",
)
@click.option(
    "--labels",
    metavar="NAME",
    help="Label set of the corpus, e.g. sentiment; for a table or folder its classes in order, "
    "A,B,C.",
)
@click.option("--size", type=click.IntRange(min=1), help="synthetic: utterances. [default: 600]")
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    help="synthetic, table and folder: random seed. [default: 0]",
)
@click.option(
    "--vision",
    is_flag=True,
    default=None,
    help="synthetic: draw faces, too; iemocap, mosi, mosei: name the films beside the sound.",
)
@click.option(
    "--left",
    type=click.Choice(["marked", "unmarked"]),
    help="iemocap --vision: who is in the left half, the one who wears the markers or the other. "
    "[default: marked]",
)
@click.option(
    "--from",
    "source",
    type=click.Path(path_type=Path),
    help="table: the CSV, TSV, JSONL or Parquet file.",
)
@click.option(
    "--audio-dir",
    type=click.Path(path_type=Path),
    help="table: folder of the audio, as --root. [default: the table's]",
)
@click.option(
    "--column",
    "columns",
    multiple=True,
    metavar="FIELD=NAME",
    help="table: the column that holds a field; repeatable.",
)
@click.option(
    "--task",
    type=click.Choice(["single", "multi", "regression"]),
    help="table: what the labels are. [default: single, or regression with --targets]",
)
@click.option(
    "--targets",
    multiple=True,
    metavar="A,B,C",
    help="table: columns of numbers to learn, such as valence,arousal,dominance.",
)
@click.option(
    "--soft-labels",
    multiple=True,
    metavar="A,B,C",
    help="table: columns that hold how many raters chose each class, or their share; the label is "
    "that of most.",
)
@click.option(
    "--raters",
    is_flag=True,
    default=None,
    help="iemocap, msp_podcast: keep how the raters divided over the classes, as soft labels.",
)
@click.option(
    "--unimodal",
    multiple=True,
    metavar="MODALITY=COLUMN,…",
    help="table: columns that hold what one modality says by itself, such as "
    "text=label_T,audio=label_A; classes or numbers as those of the label; repeatable.",
)
@click.option(
    "--split",
    type=click.Choice(["auto", "none"]),
    help="table or folder without a split: make one by group, or leave it open for folds.",
)
@click.option(
    "--fold-lists",
    type=click.Path(path_type=Path),
    help="table: JSON with published folds, lists of ids; or name columns of the table with "
    "--column fold=NAME.",
)
@click.option(
    "--speaker-independent",
    is_flag=True,
    default=None,
    help="table, emobox: refuse folds in which a speaker is in train and in test.",
)
@click.option(
    "--meta",
    type=click.Path(path_type=Path),
    help="emobox: the folder of a corpus's lists, data/NAME of that repository; --root is where "
    "the media are.",
)
@click.option("--fold", help="emobox: this fold alone, as the split. [default: all, as folds]")
@click.option(
    "--pattern",
    help="folder: what the files' names say, as '{speaker}_{sentence}_{emotion}.wav'; fields may "
    "have a form: {speaker:2} characters, {emotion:letters}, {number:digits}, {level:hi|lo}, "
    "{rest:any}. Folders count: '{emotion}/{speaker}_{number}'.",
)
@click.option(
    "--map",
    "mapping",
    multiple=True,
    metavar="CODE=CLASS",
    help="folder: the class that a label in the names stands for; without a class such files are "
    "left out; repeatable. [default: the names are the classes]",
)
@click.option(
    "--partial",
    is_flag=True,
    default=None,
    help="folder: leave out, and count, files that the pattern does not fit.",
)
@click.option("--name", help="table, folder: name of the corpus. [default: the file's]")
@click.option(
    "--language",
    help="table, folder, emobox: language code, for the default encoders. [default: en; of "
    "emobox the corpus's]",
)
@click.option("--json", "as_json", is_flag=True, help="The report as one JSON object.")
def prepare(
    dataset, root, out, labels, as_json, source, audio_dir, columns, pattern, mapping, **options
):
    """Build and check the manifest of DATASET (`mer datasets`), or of your own table or folder;
    print what was found against what is expected.
    """
    from mer.pipeline.datasets import OWN, check_known, default_root
    from mer.pipeline.datasets import prepare as build
    from mer.pipeline.datasets.prepared import manifest_path
    from mer.pipeline.runtime.outputs import MANIFEST, check_replaceable

    check_known(dataset)
    checks = Together(MerError, click.UsageError)
    if out is not None:
        sources = () if source is None else (source,)
        checks.of(lambda: check_replaceable(out, MANIFEST, sources=sources))
    check_options_of_prepare(
        checks,
        dataset,
        root=root,
        source=source,
        audio_dir=audio_dir,
        columns=columns,
        meta=options["meta"],
        pattern=pattern,
        mapping=mapping,
    )
    folds, others = fold_columns(columns)
    fields = checks.of(lambda: mapped(others))
    classes = checks.of(lambda: parted("--map", "CODE=CLASS", mapping))
    checks.settle()
    given = {name: value for name, value in options.items() if value not in (None, ())}
    # given several times they say the same as once, with commas
    given |= {name: ",".join(given[name]) for name in ("targets", "soft_labels") if name in given}
    if dataset == "table":
        manifest, report = build(
            "table",
            audio_dir or root,
            labels=labels,
            source=source,
            columns=fields,
            folds=folds,
            **given,
        )
        folder = default_root(manifest.dataset)
    elif dataset == "emobox":
        manifest, report = build("emobox", root, labels=labels, **given)
        folder = default_root(f"emobox-{manifest.dataset}")
    elif dataset == "folder":
        folder = root
        manifest, report = build(
            "folder", root, labels=labels, pattern=pattern, mapping=classes, **given
        )
    else:
        folder = root if root is not None else default_root(dataset)
        manifest, report = build(dataset, folder, labels=labels, **given)
    named = labels if dataset not in OWN else None
    if out is None:
        out = manifest_path(folder, named)
        check_replaceable(out, MANIFEST)
    try:
        manifest.write(out)
    except OSError as error:
        if error.errno in FULL:
            raise
        raise DataError(
            f"{shown(out, 200)}: {error.strerror or error}; name a file that can be written with "
            "--out"
        ) from None
    if as_json:
        say_json(report.to_dict() | {"manifest": str(out), "hash": manifest.hash}, indent=1)
    else:
        for line in report.lines():
            say(line)
        say(f"wrote {out}")


def check_options_of_prepare(
    checks: Together, dataset, *, root, source, audio_dir, columns, meta, pattern, mapping
) -> None:
    """Add to `checks` which options of `mer prepare` do not go with a dataset, or are missing."""

    def refuse(why: str) -> None:
        checks.add(click.UsageError(why))

    if dataset != "folder" and (pattern is not None or mapping):
        refuse("--pattern and --map go with `mer prepare folder`")
    if dataset != "table" and (source is not None or audio_dir is not None or columns):
        refuse("--from, --audio-dir and --column go with `mer prepare table`")
    if dataset == "table" and source is None:
        refuse("table takes --from FILE")
    if dataset == "table" and None not in (audio_dir, root) and audio_dir != root:
        refuse(
            f"--audio-dir {shown(audio_dir, 100)} and --root {shown(root, 100)} both say where the "
            "audio of a table is; give one of them"
        )
    if dataset == "emobox" and (root is None or meta is None):
        refuse("emobox takes --meta DIR, of the lists, and --root DIR, of media")
    if dataset == "folder" and (root is None or pattern is None):
        refuse("folder takes --root DIR and --pattern '{speaker}_{emotion}'")


def fold_columns(columns: tuple[str, ...]) -> tuple[list[str], tuple[str, ...]]:
    """(the columns that --column fold=NAME names, the other pairs)."""
    of_folds = [column for column in columns if column.partition("=")[0] == "fold"]
    others = tuple(column for column in columns if column not in of_folds)
    return [column.partition("=")[2] for column in of_folds if "=" in column], others
