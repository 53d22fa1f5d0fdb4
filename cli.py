"""The command line: parse, call one function, print.

Results on stdout, progress and notes on stderr.

Heavy imports stay inside the commands, so that `mer --help` does not load torch.
"""

from __future__ import annotations

import errno
import io
import json
import os
import re
import shlex
import signal
import sys
from collections.abc import Iterable, Sequence
from functools import partial
from importlib import metadata
from pathlib import Path

import click

from mer import commands
from mer.pipeline.errors import (
    DataError,
    DependencyError,
    FailuresError,
    MerError,
    SeveralErrors,
    StoreError,
    Together,
)
from mer.pipeline.interchange.formats import EXPORTS, IMPORTS, reader
from mer.pipeline.runtime.signals import Terminated
from mer.pipeline.runtime.terminal import (
    amount,
    did_you_mean,
    escape,
    escape_json,
    listed,
    one_line,
    plural,
    shown,
    terminal_columns,
    wrapped,
)

# the two must be of one release: torchaudio's wheel is linked against torch
PAIRED = ("torch", "torchaudio")
TYPED = "mer.typed"  # where the context has the words of the command line
# what several commands take
NO_LOCK = click.option(
    "--no-lock",
    is_flag=True,
    help="For a file system without locks: take none. One run at a time there is up to you.",
)
DEVICE = click.option("--device", default="auto", show_default=True, metavar="auto|cpu|cuda|cuda:N")
BY_GROUP = click.Choice(["session", "speaker", "dialogue"])
BY_FOLD = click.Choice([*BY_GROUP.choices, "published"])


def check_pair() -> None:
    """Raise DependencyError when the installed torchaudio does not belong to the installed torch.

    Reads metadata only: importing a mismatched torchaudio (which transformers does) ends in an
    OSError from the dynamic linker.
    """
    found = {}
    for name in PAIRED:
        try:
            found[name] = metadata.version(name).split("+")[0]
        except metadata.PackageNotFoundError:
            raise DependencyError(
                f"{name} is not installed; run `pip install -r requirements.txt`"
            ) from None
    if found["torch"].split(".")[:2] != found["torchaudio"].split(".")[:2]:
        raise DependencyError(
            f"torch {found['torch']} and torchaudio {found['torchaudio']} do not fit together; "
            "run `pip install torch==2.11.0 torchaudio==2.11.0`"
        )


def on_sigterm(signum, frame):
    raise Terminated


class Mer(commands.Group):
    """Turns every failure into one line and the right exit status (docs/cli.md)."""

    def make_context(self, info_name, args, parent=None, **extra):
        typed = [str(word) for word in args]  # click empties args as it reads them

        def made() -> click.Context:
            context = super(Mer, self).make_context(info_name, args, parent, **extra)
            context.meta[TYPED] = typed
            return context

        return fail_on(made)

    def invoke(self, ctx: click.Context):
        # click empties args before the group's callback
        ctx.obj = bool({"--help", "-h"} & set(ctx.args))
        # a file name that the locale cannot express is no reason to end
        if isinstance(sys.stdout, io.TextIOWrapper):
            utf8 = sys.stdout.encoding.lower().replace("-", "") == "utf8"
            sys.stdout.reconfigure(errors="surrogateescape" if utf8 else "backslashreplace")
        before = signal.signal(signal.SIGTERM, on_sigterm)
        try:
            return fail_on(lambda: super(Mer, self).invoke(ctx))
        finally:
            # a caller in this process, and what it forks, keeps its own
            signal.signal(signal.SIGTERM, before)


def fail_on(call):
    """Run `call`; a MerError, an interruption or a full disk ends the process with one line and its
    status.
    """
    try:
        return call()
    except SeveralErrors as error:
        for one in error.errors[:-1]:
            note("mer: " + one_line(said_by(one)))
        stop(said_by(error.errors[-1]), error.exit_code)
    except MerError as error:
        stop(str(error), error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        stop("interrupted; the same command goes on from here", 130)
    except Terminated:
        stop("terminated; the same command goes on from here", 143)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        where = f"{shown(error.filename, 255)}: " if error.filename else ""
        remedy = {
            errno.ENOSPC: "; free some space and run the same command again",
            errno.EACCES: "; check its permissions",
            errno.EROFS: "; name a place that can be written with --out, or work on a copy",
            errno.EISDIR: "; name a file",
            **dict.fromkeys(
                (errno.EEXIST, errno.ENOTDIR),
                "; a file is where a folder is needed: name another place",
            ),
            errno.EFBIG: "; raise the limit on the size of files (ulimit -f), or write elsewhere",
        }
        stop(
            f"{where}{unbroken(str(error.strerror or error))}{remedy.get(error.errno or 0, '')}", 1
        )
    except click.exceptions.NoArgsIsHelpError:
        raise
    except click.ClickException as error:
        asked = getattr(error, "ctx", None)
        *others, last = map(unbroken, commands.messages(error))
        for message in others:
            note("mer: " + one_line(message))
        stop(last + (f" (see `{asked.command_path} --help`)" if asked else ""), error.exit_code)
    except (click.exceptions.Exit, SystemExit):
        raise
    # the last net: a traceback is a bug of ours, and the user still gets one line
    except Exception as error:
        if os.environ.get("MER_DEBUG"):
            raise
        stop(
            f"internal error: {type(error).__name__}: {unbroken(str(error))}; set MER_DEBUG=1 for "
            "the traceback, and please report it",
            1,
        )


def said_by(error: Exception) -> str:
    """The line of a failure."""
    if isinstance(error, click.ClickException):
        return unbroken(" ".join(commands.messages(error)))
    return str(error)


def stop(message: str, code: int):
    say("mer: " + one_line(message), err=True)
    sys.exit(code)


def unbroken(message: str) -> str:
    """A library's message without its line breaks."""
    return re.sub(r"\s*[\r\n]\s*", " ", message.strip())


def say(line: object, *, err: bool = False) -> None:
    """The one way to a terminal: a line whose ids, labels and paths can neither move the cursor nor
    begin another line.
    """
    width = terminal_columns(sys.stderr) if err else None
    click.echo(wrapped(escape(str(line)), width), err=err)


def say_laid_out(text: str) -> None:
    """Text that mer has laid out in lines, whose values are escaped already."""
    click.echo(escape(text, breaks=True))


def say_json(value: object, indent: int | None = None) -> None:
    """Control characters are in JSON's own escapes, so that what is read from it is exact."""
    utf8 = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    click.echo(escape_json(json.dumps(value, ensure_ascii=not utf8, indent=indent)))


def note(message: object) -> None:
    say(message, err=True)


def somebody_is_there() -> bool:
    """Whether a question can be answered."""
    return sys.stdin.isatty()


def agreed(question: str) -> bool:
    """Whether somebody answers a question, put on stderr, with yes."""
    asked = wrapped(f"{question}; go on? [y/N]:", terminal_columns(sys.stderr))
    return click.confirm(asked, err=True, show_default=False, prompt_suffix=" ")


def command_line(context: click.Context) -> str:
    """What was typed, with the environment variables that stood for options of the command."""
    prefix = f"MER_{(context.info_name or '').upper()}_"
    variables = [
        f"{name}={shlex.quote(os.environ[name])}"
        for name in sorted(os.environ)
        if name.startswith(prefix)
    ]
    return " ".join([*variables, shlex.join(["mer", *context.meta.get(TYPED, [])])])


@click.group(
    cls=Mer, context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "MER"}
)
@click.version_option(package_name="mer", prog_name="mer")
@click.pass_context
def main(ctx: click.Context):
    """Multimodal emotion recognition on cached features: extract once, train fusion models many
    times.
    """
    if ctx.invoked_subcommand not in ("doctor", "help", "version") and not ctx.obj:
        check_pair()


# --- corpora: datasets, prepare


@main.command()
@click.argument("name", metavar="[NAME]", required=False, shell_complete=commands.complete_corpora)
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


@main.command()
@click.argument("dataset", metavar="DATASET", shell_complete=commands.complete_corpora)
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
    help="table: folder of the audio. [default: the table's]",
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
    metavar="A,B,C",
    help="table: columns of numbers to learn, such as valence,arousal,dominance.",
)
@click.option(
    "--soft-labels",
    metavar="A,B,C",
    help="table: columns that hold how many raters chose each class, or their share; the label is "
    "that of most.",
)
@click.option(
    "--unimodal",
    metavar="MODALITY=COLUMN,…",
    help="table: columns that hold what one modality says by itself, such as "
    "text=label_T,audio=label_A; classes or numbers as those of the label.",
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
    from mer.pipeline.datasets import OWN, default_root
    from mer.pipeline.datasets import prepare as build

    given = {name: value for name, value in options.items() if value is not None}
    if dataset == "table":
        if source is None or root is not None:
            beside = " and --audio-dir, not --root" if root is not None else ""
            raise click.UsageError(f"table takes --from FILE{beside}")
        folds, others = fold_columns(columns)
        manifest, report = build(
            "table",
            audio_dir,
            labels=labels,
            source=source,
            columns=mapped(others),
            folds=folds,
            **given,
        )
        folder = default_root(manifest.dataset)
    elif dataset == "emobox":
        if root is None or options["meta"] is None:
            raise click.UsageError(
                "emobox takes --meta DIR, of the lists, and --root DIR, of media"
            )
        manifest, report = build("emobox", root, labels=labels, **given)
        folder = default_root(f"emobox-{manifest.dataset}")
    elif dataset == "folder":
        if root is None or pattern is None or source is not None or audio_dir is not None:
            raise click.UsageError("folder takes --root DIR and --pattern '{speaker}_{emotion}'")
        folder, classes = root, parted("--map", "CODE=CLASS", mapping)
        manifest, report = build(
            "folder", root, labels=labels, pattern=pattern, mapping=classes, **given
        )
    else:
        if pattern is not None or mapping:
            raise click.UsageError("--pattern and --map go with `mer prepare folder`")
        if source is not None or audio_dir is not None or columns:
            raise click.UsageError("--from, --audio-dir and --column go with `mer prepare table`")
        folder = root if root is not None else default_root(dataset)
        manifest, report = build(dataset, folder, labels=labels, **given)
    named = labels if dataset not in OWN else None
    out = out if out is not None else manifest_path(folder, named)
    try:
        manifest.write(out)
    except OSError as error:
        raise DataError(
            f"{out}: {error.strerror or error}; name a file that can be written with --out"
        ) from None
    if as_json:
        say_json(report.to_dict() | {"manifest": str(out), "hash": manifest.hash}, indent=1)
    else:
        for line in report.lines():
            say(line)
        say(f"wrote {out}")


def fold_columns(columns: tuple[str, ...]) -> tuple[list[str], tuple[str, ...]]:
    """(the columns that --column fold=NAME names, the other pairs)."""
    of_folds = [column for column in columns if column.partition("=")[0] == "fold"]
    others = tuple(column for column in columns if column not in of_folds)
    return [column.partition("=")[2] for column in of_folds if "=" in column], others


def mapped(columns: tuple[str, ...]) -> dict[str, str]:
    """--column FIELD=NAME as a dict."""
    return parted("--column", "FIELD=NAME", columns)


def parted(option: str, form: str, given: tuple[str, ...]) -> dict[str, str]:
    """What an option was given, again and again, as NAME=VALUE; a value may be empty."""
    bad = [pair for pair in given if "=" not in pair]
    if bad:
        raise click.UsageError(f"{option} {bad[0]}: expected {form}")
    return dict(pair.split("=", 1) for pair in given)


# --- extraction: extract, fingerprint


# Options that go with an encoder, by the modality it is for.
OF_ENCODER = {
    "audio": (
        "audio_layer",
        "audio_window",
        "audio_track",
        "channel",
        "pool",
        "max_seconds",
        "budget_seconds",
    ),
    "text": ("text_layer", "text_windows", "budget_tokens"),
    "vision": (
        "vision_layer",
        "vision_fps",
        "vision_pool",
        "vision_crop",
        "vision_boxes",
        "vision_faces",
        "vision_no_face",
        "budget_pictures",
    ),
}


def setting(name: str, *, default: object, help: str = "", **given):
    """An option of ExtractOptions, which alone holds its default.

    What is not given is not passed on; `default` is what the help shows, and a test holds it to the
    dataclass.
    """
    return click.option(name, help=f"{help}  [default: {default}]".strip(), **given)


def extraction_options(command):
    """The options that decide features, shared by `extract` and `fingerprint`."""
    for option in reversed(
        [
            click.option(
                "--dataset",
                metavar="NAME",
                shell_complete=commands.complete_corpora,
                help="A known corpus (`mer datasets`); prepared first if it has no manifest yet.",
            ),
            click.option(
                "--manifest",
                "manifest_file",
                type=click.Path(path_type=Path),
                help="A manifest made by `mer prepare`.",
            ),
            click.option(
                "--root",
                type=click.Path(path_type=Path),
                help="Where the media are. [default: $MER_DATA/NAME, else data/NAME]",
            ),
            click.option(
                "--labels", metavar="NAME", help="Label set of the corpus, e.g. sentiment."
            ),
            click.option(
                "--size",
                type=click.IntRange(min=1),
                metavar="N",
                help="synthetic: utterances.  [default: those of its manifest, else 600]",
            ),
            click.option(
                "--seed",
                type=click.IntRange(min=0),
                metavar="N",
                help="synthetic: random seed.  [default: that of its manifest, else 0]",
            ),
            click.option(
                "--audio-encoder",
                metavar="ID|DIR",
                help="Hub id[@revision], directory, builtin:tiny-wav2vec2, or none.",
            ),
            click.option(
                "--text-encoder",
                metavar="ID|DIR",
                help="Hub id[@revision], directory, builtin:tiny-roberta, or none.",
            ),
            click.option(
                "--audio-layer",
                metavar="last|N|mean:A-B|stack:A-B[:S]",
                help="Which hidden states are kept.  [default: the corpus's with the corpus's "
                "encoder, else last]",
            ),
            click.option(
                "--text-layer",
                metavar="last|N|mean:A-B|stack:A-B[:S]",
                help="Likewise, of the text encoder.",
            ),
            click.option(
                "--vision-encoder",
                metavar="ID|DIR",
                help="Hub id[@revision], directory, builtin:tiny-vit, or none, as it is unasked.",
            ),
            setting(
                "--vision-layer",
                default="last",
                metavar="last|N|mean:A-B|stack:A-B[:S]",
                help="Likewise, of the vision encoder.",
            ),
            setting(
                "--vision-fps",
                type=float,
                default=4.0,
                metavar="N",
                help="Pictures a second, at the middle of each interval.",
            ),
            setting(
                "--vision-pool",
                default="auto",
                type=click.Choice(["auto", "cls", "mean", "pooler"]),
                help="What becomes of a picture; auto: what its encoder was trained for.",
            ),
            setting(
                "--vision-crop",
                default="none",
                type=click.Choice(["none", "centre", "left", "right", "side", "faces"]),
                help="What is seen of a picture; side: the half that the row's tags name.",
            ),
            click.option(
                "--vision-boxes",
                metavar="FILE|DIR",
                help="Where the faces are: a table (id, time, x, y, w, h), or OpenFace's files.",
            ),
            click.option(
                "--vision-faces",
                metavar="FILE",
                help="Find faces with OpenCV's YuNet, whose .onnx file this is; needs mer[faces].",
            ),
            setting(
                "--vision-no-face",
                default="centre",
                type=click.Choice(["centre", "whole", "fail"]),
                help="What is seen of a picture without a face.",
            ),
            click.option(
                "--layer-means/--no-layer-means",
                default=None,
                help="Keep the mean of every layer over each utterance, too.  [default: keep them]",
            ),
            setting(
                "--pool",
                type=int,
                default=1,
                metavar="K",
                help="Keep means over K audio frames.",
            ),
            setting(
                "--channel",
                default="auto",
                metavar="auto|centre|mix|N",
                help="Channel of multi-channel audio.",
            ),
            setting(
                "--audio-track",
                default="auto",
                metavar="auto|N",
                help="Audio track; auto: the default one, else the first.",
            ),
            click.option(
                "--audio-window",
                metavar="full|clip",
                help="Whisper: compute the whole 30 s window, or the clip alone.  "
                "[default: the full window]",
            ),
            setting(
                "--max-seconds",
                type=float,
                default=60.0,
                metavar="S",
                help="Longer clips are cut; 0: never.",
            ),
            setting(
                "--text-windows",
                default="cut",
                type=click.Choice(["cut", "windows"]),
                help="Transcripts longer than the encoder takes: cut at their end, or encoded in "
                "overlapping windows.",
            ),
            setting(
                "--dtype",
                default="float16",
                type=click.Choice(["float16", "float32"]),
                help="As stored.",
            ),
            setting(
                "--precision",
                default="auto",
                type=click.Choice(["auto", "fp32", "bf16", "fp16"]),
                help="How they are computed; auto: fp32 on the CPU, fp16 on a GPU.",
            ),
            click.option("--offline", is_flag=True, help="Never touch a network."),
        ]
    ):
        command = option(command)
    return command


def manifest_path(root: Path, labels: str | None) -> Path:
    """Where a corpus's manifest lies; each label set has one of its own."""
    return root / ("manifest.parquet" if labels is None else f"manifest-{labels}.parquet")


def find_manifest(
    dataset: str | None,
    manifest_file: Path | None,
    root: Path | None,
    labels: str | None,
    **generated: int | None,
):
    """(manifest, its file): the named file, or the corpus's own, which is prepared when it is not
    there yet, or is of another size or seed than the generated corpus that is asked for.
    """
    from mer.pipeline.datasets import default_root, prepare
    from mer.pipeline.manifest import Manifest

    asked: dict[str, int] = {name: n for name, n in generated.items() if n is not None}
    given = "give either --dataset NAME or --manifest FILE"
    if manifest_file is not None:
        if dataset is not None:
            raise click.UsageError(given)
        if labels is not None:
            raise click.UsageError(
                "--labels goes with --dataset; a manifest has its labels already"
            )
        if asked:
            raise click.UsageError("--size and --seed go with --dataset synthetic")
        manifest = Manifest.read(manifest_file)
        return (manifest.with_root(root) if root is not None else manifest), manifest_file
    if dataset is None:
        raise click.UsageError(given)
    root = root if root is not None else default_root(dataset)
    file = manifest_path(root, labels)
    if asked and dataset != "synthetic":
        raise click.UsageError("--size and --seed go with --dataset synthetic")
    if file.exists():
        manifest = Manifest.read(file)
        if all(manifest.source.get(name) == value for name, value in asked.items()):
            note(f"manifest: {file}")
            return manifest, file
        has_faces = "faces" in manifest.source
        again = ", with drawn faces as it was" if has_faces else ""
        note(f"{file}: of another size or seed; made anew{again}")
        kept = {name: manifest.source[name] for name in generated if name in manifest.source}
        asked = kept | asked | ({"vision": True} if has_faces else {})
    manifest, report = prepare(dataset, root, labels=labels, **asked)
    for line in report.lines():
        note(line)
    try:
        manifest.write(file)
    except OSError as error:
        raise DataError(
            f"{file}: {error.strerror or error}; run `mer prepare {dataset} --out FILE`, then use "
            "--manifest FILE"
        ) from None
    return manifest, file


def budgets(
    seconds: str | None, tokens: str | None, pictures: str | None
) -> dict[str, float | str | None]:
    """--budget-seconds, --budget-tokens and --budget-pictures as numbers, or `auto`."""
    found: dict[str, float | str | None] = {}
    for name, value, kind in (
        ("seconds", seconds, float),
        ("tokens", tokens, int),
        ("pictures", pictures, int),
    ):
        try:
            found[f"budget_{name}"] = value if value in (None, "auto") else kind(value)
        except ValueError:
            raise click.UsageError(
                f"--budget-{name} '{value}' is neither auto nor a number"
            ) from None
    return found


def where_to_run(workers: int | None, scheduler: str | None, shard: str | None, *, lock: bool):
    """--workers, --scheduler or --shard as one value."""
    from mer.pipeline.extraction import Here, Scheduler, Share, Workers

    if sum(way is not None for way in (workers, scheduler, shard)) > 1:
        raise click.UsageError(
            "--workers, --scheduler and --shard are three ways to do the same; give one of them"
        )
    if workers is not None:
        return Workers(workers, lock)
    if scheduler is not None:
        return Scheduler(scheduler, lock)
    if shard is None:
        return Here(lock)
    if not re.fullmatch(r"[1-9]\d{0,5}/[1-9]\d{0,5}", shard):
        raise click.UsageError(f"--shard '{shard}' is not i/n, e.g. 3/8")
    index, count = (int(number) for number in shard.split("/"))
    return Share(index, count, lock)


def extract_options(manifest, offline: bool, **given):
    """ExtractOptions from the command line, with the corpus's encoders where none were named, and
    their layers.
    """
    from mer.pipeline.extraction.options import ExtractOptions, with_defaults

    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"
    asked = {name: value for name, value in given.items() if value is not None}
    options = ExtractOptions(offline=offline, **with_defaults(manifest, asked))
    check_needed(options)
    return options


def check_needed(options) -> None:
    """Raise a UsageError for options of this command line that would change nothing, because there
    is no encoder that they speak of.
    """
    from mer.pipeline.encoders import configured

    context = click.get_current_context()
    errors = []
    for modality in configured(options):
        if modality.wanted:
            continue
        found = []
        for param in context.command.params:
            if param.name in OF_ENCODER[modality.name]:
                if (
                    context.get_parameter_source(param.name)
                    is click.core.ParameterSource.COMMANDLINE
                ):
                    found.append(param.opts[0])
        if found:
            needs = "needs" if len(found) == 1 else "need"
            errors.append(
                f"{' and '.join(found)} {needs} --{modality.name}-encoder, and there is none"
            )
    if errors:
        raise click.UsageError("; ".join(errors))


@main.command()
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
    help="Print counts, hours, bytes, batches and padding; compute and write nothing.",
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
    from mer.pipeline.runtime.progress import choose

    checks = Together(MerError, click.UsageError)
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


@main.command()
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
ALSO = [p for p in extract.params if p.name not in {own.name for own in fingerprint.params}]
fingerprint.params += ALSO


# --- stores: inspect, verify, export, import


@main.command()
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
    lines = [
        f"  {line}"
        for line in count_lines(
            found["flags"], {name: ids[:NAMED] for name, ids in counted.items()}
        )
    ]
    say_json(found, indent=1) if as_json else say_laid_out(
        "\n".join([render(found), *map(escape, lines)])
    )


@main.command()
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

    opened = FeatureStore(store, check=False)
    damaged = verify_shards(opened, choose())
    for found in damaged:
        note(f"{found.path}: {found.reason}")
    if damaged and opened.members:
        heads = dict.fromkeys(found.store for found in damaged if found.store != str(store))
        remedies = [_mends(Path(head)) for head in heads]
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
    if damaged and not _repairable(opened):
        raise StoreError(f"{said}, and it was {_made_again(opened)}")
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


def _mends(head: Path) -> str:
    """What mends a damaged member of a joined store."""
    from mer.pipeline.store import FeatureStore

    store = FeatureStore(head, check=False)
    if _repairable(store):
        return f"run `mer verify --repair {head}`"
    return f"{head} was {_made_again(store)}"


def _repairable(store) -> bool:
    """Whether a store is one that `mer extract` wrote, from a manifest that it names."""
    made = store.header.provenance.get("extract")
    named = isinstance(made, dict) and made.get("manifest")
    return bool(store.header.recipe and named) and not _exported(store)


def _exported(store) -> bool:
    """Whether a store is the one file that `mer export --to single` writes."""
    return any(not record.sha256 for record in store.shards)


def _made_again(store) -> str:
    """How a store that cannot be repaired was made, and is made again."""
    provenance = store.header.provenance
    if _exported(store):
        return "exported: remove it and export it again from the store that it came from"
    if provenance.get("imported") == "join":
        return "joined with --copy: join again with --force"
    if "imported" in provenance:
        return "imported: import it again"
    if "extract" in provenance:
        return "extracted without a manifest file: remove what is damaged, and extract again"
    return "written by another program than `mer extract`: write it again with that"


@main.command()
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
def join(stores: tuple[Path, ...], out: Path, renamed: tuple[str, ...], **choices):
    """Put the modalities of several stores of the same utterances under one head, by id, without
    copying them.
    """
    from mer.pipeline.interchange.joining import join as put_together

    names = {}
    for spelled in renamed:
        place, equals, name = spelled.rpartition("=")
        if not equals:
            raise click.BadParameter(f"'{spelled}' is not STORE:MODALITY=NAME", param_hint="--as")
        names[place] = name
    store, notes, written = put_together(stores, out, renamed=names, **choices)
    for line in notes:
        note(line)
    modalities = ", ".join(
        f"{name} {int((store.lengths(name) > 0).sum()):,}" for name in store.header.modalities
    )
    note(f"{plural(len(store), 'utterance')}, with {modalities}")
    if not written:
        note("joined before, from these very stores; nothing to do")
    say(out)


@main.command()
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


def pairs(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """NAME=VALUE options as a dict."""
    out = {}
    for value in values:
        name, equals, rest = value.partition("=")
        if not equals or not name or not rest:
            raise click.BadParameter(f"'{value}' is not NAME=VALUE")
        out[name] = rest
    return out


@main.command("import")
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
    help="The label that means there is none, e.g. -1; none: every label is a class.",
)
@click.option("--force", is_flag=True, help="Replace the store at --out.")
def import_(kind, file: Path, out: Path, labels: str, rates, force: bool, **given):
    """Turn features made elsewhere into a store: MMSA pickles, npz, Parquet, a folder of npy files
    with a csv.
    """
    from mer.pipeline.interchange.foreign import ImportOptions
    from mer.pipeline.interchange.importing import write_store
    from mer.pipeline.runtime.progress import choose

    try:
        rates = {name: float(value) for name, value in rates.items()}
    except ValueError:
        raise click.BadParameter(
            "a rate is a number of steps per second", param_hint="--frame-rate"
        ) from None
    names = tuple(name.strip() for name in labels.split(",") if name.strip())
    options = ImportOptions(labels=names, frame_rates=rates, **given)
    foreign = reader(kind)(file, options)
    store, report = write_store(foreign, out, options, force=force, progress=choose())
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


# --- training: layers, train, evaluate, predict, report, compare


@main.command()
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
    from mer.fusion import layers as probes
    from mer.fusion.typed import tree
    from mer.pipeline.runtime.progress import choose
    from mer.pipeline.store import FeatureStore

    if out is not None:
        probes.check_name(out)
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
        probes.write(curves, out)
        note(f"wrote {out}")


def _layers_told(told: dict, curve) -> dict:
    """A curve of `mer layers` as JSON, with what follows from it."""
    return told | {"extract": curve.settings, "doubt": curve.doubt}


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


@main.command()
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
    shell_complete=commands.complete_models,
    help="drkf (default), dmd, dhmd, fusion, concat, audio, text, vision.",
)
@click.option(
    "--preset",
    metavar="NAME|FILE",
    shell_complete=commands.complete_presets,
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
    help="Train with N seeds; report mean and deviation.",
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
    from mer.fusion import config, sinks
    from mer.pipeline.store import FeatureStore

    features = the_store(store, features)
    # what is wrong with this or the settings is said before torch is loaded
    checks = Together()
    store = checks.of(lambda: FeatureStore(features))
    checks.of(lambda: config.check(model=model, preset=preset, sets=sets))
    checks.of(lambda: sinks.check(log))
    checks.settle()
    settings = config.load(model=model, preset=preset, sets=sets)
    from mer.fusion import experiment, report
    from mer.fusion.evaluate import evaluate, has_test, stored_metrics
    from mer.fusion.parallel import processes
    from mer.fusion.train import pick_device
    from mer.fusion.typed import tree
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


@main.command()
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
    shell_complete=commands.complete_models,
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
    from mer.fusion import config, space
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
    from mer.fusion import experiment, tables, tuning
    from mer.fusion.train import pick_device
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


@main.command()
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
    commands.beside_valence(valence, together or robust or features or mapping or split)
    check_run_folders([*runs, *filter(None, [against, valence])])
    from mer.fusion import combined, ensemble, report
    from mer.fusion.checkpoint import Run
    from mer.fusion.evaluate import evaluate
    from mer.fusion.records import GroupMetrics, SingleMetrics
    from mer.fusion.train import pick_device
    from mer.fusion.typed import tree
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
        from mer.fusion import figures as pictures

        written = pictures.write(
            opened, found, figures, features=features, device=pick_device(device)
        )
        note(f"wrote {plural(len(written), 'file')} to {figures}")
    said, tables = {}, []  # beside the figures
    if robust:
        from mer.fusion import robustness

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


@main.command()
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
    from mer.fusion.files import write_text
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


@main.command()
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
    from mer.fusion.checkpoint import Run
    from mer.fusion.typed import tree

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


@main.command()
@click.argument("folders", metavar="[FOLDER]...", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "--where",
    "conditions",
    multiple=True,
    metavar="COLUMN=VALUE",
    help="Only runs like that; also != < <= > >=, and ~ for a part of the text. Figures as "
    "printed: dev>80. Repeatable: all must hold.",
)
@click.option(
    "--sort",
    metavar="COLUMN",
    help="Figures: best first; date and size: largest first. [default: by the folder's name]",
)
@click.option("--reverse", is_flag=True, help="The other way round.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Only the first N.")
@click.option(
    "--metric",
    metavar="NAME",
    help="The figure under dev and test, e.g. ua; by default what chose the epoch.",
)
@click.option(
    "--columns",
    metavar="A,B,…",
    help="Only these, e.g. run,dev,optim.lr; by default also every setting that differs.",
)
@click.option("--each", is_flag=True, help="The runs of a group over seeds or folds, one by one.")
@click.option("--csv", "as_csv", is_flag=True, help="Everything that is known, as a csv.")
@click.option("--json", "as_json", is_flag=True, help="Likewise, one JSON object per run.")
def runs(folders, conditions, sort, reverse, limit, metric, columns, each, as_csv, as_json):
    """Every run as a row, with the settings in which they differ; by default of the folder runs.

    What is unfinished or damaged is named as such.
    """
    from mer.fusion import runs as listing

    if not folders and not Path("runs").exists():
        note("no folder runs here; `mer train` puts runs there, `mer runs FOLDER` looks elsewhere")
        return
    found = listing.find(folders or [Path("runs")], each=each)
    if metric is not None:
        metric = listing.known_metric(metric, found)
    rows = listing.matching(found, conditions, metric)
    if sort is not None or reverse:
        rows = listing.ordered(rows, sort or "run", metric, reverse=reverse)
    matching, rows = rows, rows[:limit]
    if as_json:
        for row in rows:
            say_json(listing.as_json(row))
        return
    if as_csv:
        say_laid_out(listing.as_csv(rows).rstrip("\n"))
        return
    # of all that match, so that the best one has its settings beside it
    names = listing.columns(matching, [name.strip() for name in (columns or "").split(",") if name])
    others = [f"{len(matching):,} match"] if len(rows) < len(matching) < len(found) else []
    others += [f"{len(found):,} in all"] if len(rows) < len(found) else []
    title = listing.counted(rows) + (f" ({', '.join(others)})" if others else "")
    width = terminal_columns(sys.stdout)
    say_laid_out(listing.table(rows, names, title, metric, width) if rows else title)
    for line in (
        listing.tied(matching, len(rows), sort, metric) if sort is not None else "",
        listing.common(rows, names),
        listing.meaning(rows, metric),
        listing.could_go(matching),
    ):
        if line:
            note(line)
    for line in listing.troubles(rows):
        note(line)


@main.command()
@click.argument("runs", metavar="RUN...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--dry-run", is_flag=True, help="Say what would go; remove nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def prune(runs, dry_run, yes):
    """Remove what finished runs no longer need: the optimizer's state, most of a run's size.

    They are evaluated, reported and predicted with as before. Runs that are not finished or not
    sound are left as they are, and named.
    """
    from mer.fusion import prune as pruning

    found, refused = pruning.sort_out(runs)
    if len(runs) == len(refused) == 1:
        raise DataError(refused[0])
    for line in refused:
        note(line)
    files, size = sum(len(one.files) for one in found), sum(one.size for one in found)
    for one in found:
        if one.files:
            say(f"{one.run}: {', '.join(path.name for path in one.files)}, {amount(one.size)}")
    if not files and not found:
        raise DataError("no run of which anything could go, for the reasons above")
    if not files:
        note("nothing to remove")
    elif dry_run:
        note(f"would free {amount(size)}; nothing was removed")
    else:
        question = f"this removes {plural(files, 'file')}, {amount(size)}, for good"
        if not yes and not somebody_is_there():
            raise click.UsageError(f"{question}; say --yes")
        if yes or agreed(question):
            pruning.remove(found)
            note(f"freed {amount(size)}")
        else:
            note("nothing was removed")
    if refused:
        left = plural(len(runs), "run left as it is", "runs left as they are")
        raise DataError(f"{len(refused):,} of {left}, for the reasons above")


@main.command()
@click.argument("run", metavar="RUN", type=click.Path(path_type=Path))
@click.argument(
    "clips", metavar="[FILE|FOLDER|TABLE|MANIFEST]...", nargs=-1, type=click.Path(path_type=Path)
)
@click.option(
    "--with",
    "others",
    multiple=True,
    metavar="RUN",
    type=click.Path(path_type=Path),
    help="Another run on the same features; probabilities are averaged. Repeatable.",
)
@click.option("--audio", type=click.Path(path_type=Path), help="One clip: any file with sound.")
@click.option(
    "--video",
    type=click.Path(path_type=Path),
    help="Its picture, where that is in another file.",
)
@click.option("--text", help="What is said in it.")
@click.option(
    "--manifest",
    "manifest_file",
    type=click.Path(path_type=Path),
    help="A manifest made by `mer prepare`, or a table, likewise.",
)
@click.option(
    "--root",
    type=click.Path(path_type=Path),
    help="Where the media of a manifest or table are, when not where it says.",
)
@click.option(
    "--column",
    "columns",
    multiple=True,
    metavar="FIELD=NAME",
    help="The column of a table that holds a field (audio, text, video, id, start, end, dialogue, "
    "position); repeatable.",
)
@click.option(
    "--dialogue",
    is_flag=True,
    help="For a run with context: the clips of each folder are one conversation, in the order of "
    "their names.",
)
@click.option(
    "--transcribe",
    metavar="ID|DIR",
    help="A Whisper checkpoint that finds the words of clips that come without.",
)
@click.option(
    "--language", metavar="CODE", help="What is spoken, for --transcribe.  [default: it finds out]"
)
@click.option(
    "--audio-encoder",
    metavar="DIR",
    help="Where the run's audio encoder is now, if it was a folder.",
)
@click.option("--vision-encoder", metavar="DIR", help="Likewise.")
@click.option(
    "--vision-boxes",
    metavar="FILE|DIR",
    help="Where the faces are, of a run that was trained on faces: as for extract.",
)
@click.option(
    "--vision-faces", metavar="FILE", help="Or the model of the detector that finds them."
)
@click.option(
    "--text-encoder", metavar="DIR", help="Where the run's text encoder is now, if it was a folder."
)
@DEVICE
@click.option("--offline", is_flag=True, help="Never touch a network.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Write them there: a csv, or JSON lines where the name ends in .jsonl.",
)
@click.option(
    "--csv", "as_csv", is_flag=True, help="Print a csv, as --out does: every score of every clip."
)
@click.option("--json", "as_json", is_flag=True, help="Likewise, a JSON object per clip.")
def predict(
    run, clips, others, audio, video, text, manifest_file, root, out, as_csv, as_json, **given
):
    """Class probabilities, or a value, for new clips: files, folders, a table or a manifest.

    A film is taken with its sound and picture. The words of a clip come from a column of the table,
    a .txt file beside it, --transcribe, or --text. What a clip lacks the model does without, where
    it has anything that the model reads; the output says what was missing. With --audio, --text and
    --video one clip is put together, which must lack nothing. A run with context sees the turns of
    a dialogue that a table or manifest names, or --dialogue; the output says whether it did.
    """
    one = check_clips_asked_for(clips, audio, video, text, manifest_file, given)
    out = checked_out(out, as_csv, as_json)
    check_run_folders([run, *others])
    check_clips_are_there(clips, audio, manifest_file)
    if given["offline"]:
        os.environ["HF_HUB_OFFLINE"] = "1"
    from mer import predicting
    from mer.fusion import ensemble
    from mer.fusion.checkpoint import Run

    group = Run.open(run).trained()
    trained = group.children
    if len({child.fold for child in trained}) > 1:
        raise click.UsageError(
            f"{run} holds {plural(len(trained), 'run')} over folds; name one of them, e.g. "
            f"{group.best().path}, the best on dev"
        )
    if others or len(trained) > 1:
        trained = ensemble.members([group, *map(Run.open, others)])
        ensemble.check_alike(trained)
        alone = f" (the best on dev alone: {group.best().path})" if len(group.children) > 1 else ""
        answers = "values" if trained[0].spec.task == "regression" else "probabilities"
        note(f"{ensemble.title(trained)}: {answers} are averaged{alone}")
    scaled = sum(one.result.scaling is not None for one in trained)
    if scaled:
        some = f" of {scaled} of the {plural(len(trained), 'run')}" if scaled < len(trained) else ""
        note(f"probabilities{some} are calibrated by the temperature fitted on dev")
    asked = predicting.Asked(
        root=root,
        columns=mapped(given.pop("columns")),
        transcribe=given.pop("transcribe"),
        language=given.pop("language"),
        device=given.pop("device"),
        offline=given.pop("offline"),
        dialogue=given.pop("dialogue"),
        places=given,
    )
    context = trained[0].spec.context
    if one and context is not None:
        note(f"without context: one clip (the run was trained with {context.title})")
    if one:
        found = predicting.one(trained, (clips or (audio,))[0], video, text, asked)
    else:
        paths = [manifest_file] if manifest_file is not None else [*clips, *filter(None, [audio])]
        found = predicting.many(trained, paths, asked, note)
    show_predictions(found.rows, trained[0].spec, out, as_csv, as_json)
    for failure in found.failures:
        kind = "known bad" if failure.known else "failed"
        note(f"{kind}: {failure.id}: {failure.stage}: {failure.reason}")
    unexpected = sum(not failure.known for failure in found.failures)
    if unexpected:
        has = plural(found.asked, "clip has", "clips have")
        raise FailuresError(
            f"{unexpected:,} of {has} no prediction; mend what failed, or leave it out"
        )


def check_clips_asked_for(clips, audio, video, text, manifest_file, given) -> bool:
    """Whether one clip is put together from options; UsageError for what does not go together."""
    of_one = {"--text": text, "--video": video}
    told = [name for name, value in of_one.items() if value is not None]
    if clips and audio is not None:
        raise click.UsageError("give the clip once: behind RUN, or with --audio")
    for option, path in (("--audio", audio), ("--video", video), ("--manifest", manifest_file)):
        if path is not None and path.is_dir():
            raise click.UsageError(
                f"{option} {shown(path, 120)}: a folder; name it behind RUN, without {option}"
            )
    if manifest_file is not None and (clips or audio is not None or told):
        raise click.UsageError("give either clips (and --text for one of them), or --manifest FILE")
    if manifest_file is None and not clips and audio is None and not told:
        raise click.UsageError(
            "no clip: name files, a folder, a table or a manifest behind RUN, or give --audio FILE "
            "and --text TEXT"
        )
    if told and (len(clips) > 1 or any(map(is_of_many, clips))):
        raise click.UsageError(
            f"{told[0]} is of one clip, and {shown(clips[0], 80)} "
            f"{'is not all' if len(clips) > 1 else 'may hold many'}; put the words of many in .txt "
            "files beside them or in a table"
        )
    if given["language"] is not None and given["transcribe"] is None:
        raise click.UsageError("--language goes with --transcribe")
    if given["transcribe"] is not None and told:
        raise click.UsageError(f"--transcribe goes with clips alone; leave {told[0]} out")
    one = bool(told) or (audio is not None and given["transcribe"] is None)
    if one and given["columns"]:
        raise click.UsageError("--column goes with a table")
    if one and given["dialogue"]:
        raise click.UsageError("--dialogue goes with a folder of clips")
    return one


def check_run_folders(runs: Iterable[Path]) -> None:
    """DataError for each that is none, said before torch is loaded."""
    from mer.fusion.files import check_run

    checks = Together()
    for run in runs:
        checks.of(partial(check_run, run))
    checks.settle()


def check_clips_are_there(
    clips: Sequence[Path], audio: Path | None, manifest_file: Path | None
) -> None:
    """FailuresError where none of the clips is there, DataError where a table or manifest is not,
    said before torch is loaded. Where some clips are there the others are failures among their
    predictions.
    """
    asked = [*clips, *filter(None, [audio, manifest_file])]
    if not asked or not all(map(is_gone, asked)):
        return
    if manifest_file is not None or any(map(is_of_many, clips)):
        raise DataError(f"{shown(asked[0], 200)}: no such file")
    if len(asked) > 1:
        raise FailuresError(f"none of {plural(len(asked), 'clip')} is there: {listed(asked, 4)}")
    raise FailuresError(f"{shown(asked[0], 200)}: no such file")


def is_gone(path: Path) -> bool:
    """Whether there is nothing of that name; what cannot be told is told later."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except (OSError, ValueError):
        pass
    return False


def is_of_many(path: Path) -> bool:
    """Whether a path is a folder, or a table or manifest by its name."""
    from mer.pipeline.datasets.newclips import is_table

    return path.is_dir() or is_table(path)


def checked_out(out: Path | None, as_csv: bool, as_json: bool) -> tuple[Path, bool] | None:
    """(where predictions are written, whether as JSON lines); said to be wrong before anything is
    computed.
    """
    if as_csv and as_json:
        raise click.UsageError("--csv and --json: say one of them")
    if out is None:
        return None
    kinds = {".csv": False, ".jsonl": True, ".ndjson": True, ".json": True}
    if not (as_csv or as_json or out.suffix.lower() in kinds):
        raise click.UsageError(f"--out {shown(out, 120)}: end its name in .csv or .jsonl")
    if out.is_dir() or not out.absolute().parent.is_dir():
        what = "a folder is there" if out.is_dir() else "no such folder"
        raise click.UsageError(f"--out {shown(out, 160)}: {what}; name a file in one that is there")
    return out, as_json or (not as_csv and kinds[out.suffix.lower()])


def show_predictions(rows: list[dict], spec, out: tuple[Path, bool] | None, as_csv, as_json):
    """Print predictions, or write them where --out says."""
    from mer.fusion import answer_text
    from mer.fusion.files import write_text

    if out is not None:
        path, lines = out
        text = answer_text.as_csv(rows, spec)
        if lines:
            text = "".join(escape_json(json.dumps(row, ensure_ascii=False)) + "\n" for row in rows)
        write_text(path, text)
        say(path)
    elif as_json:
        for row in rows:
            say_json(row)
    elif as_csv:
        click.echo(answer_text.as_csv(rows, spec), nl=False)
    elif len(rows) == 1:
        for line in answer_text.prediction_lines(rows[0], spec):
            say(line)
    elif rows:
        say_laid_out(answer_text.table(rows, spec, terminal_columns(sys.stdout)))


# --- doctor


@main.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object per finding.")
def doctor(as_json: bool):
    """What works on this machine: versions, GPU, kernels, decoders, encoders found; and what to do
    about the rest.
    """
    from mer.pipeline.doctor import examine

    def kernels() -> str:
        from mer.fusion.ops.toolchain import launcher_obstacle  # imports torch, as its room does

        return launcher_obstacle()

    bad = False
    for finding in examine(check_pair, kernels):
        bad |= finding.state == "bad"
        if as_json:
            say_json({"state": finding.state, "what": finding.what, "detail": finding.detail})
        else:
            say(f"{finding.state:5} {finding.what:12} {finding.detail}")
    sys.exit(1 if bad else 0)


@main.command("version")
def version_():
    """The version of mer, and of what it stands on."""
    for line in commands.versions():
        say(line)


@main.command("help")
@click.argument("command", required=False)
@click.pass_context
def help_(ctx: click.Context, command: str | None):
    """What mer does, or what one command does and takes."""
    top = ctx.find_root()
    if command is None:
        click.echo(main.get_help(top))
        return
    if command not in main.commands:
        raise click.exceptions.NoSuchCommand(command, possibilities=main.commands, ctx=top)
    found = main.commands[command]
    with click.Context(found, parent=top, info_name=command) as inner:
        click.echo(found.get_help(inner))


if __name__ == "__main__":
    main()
