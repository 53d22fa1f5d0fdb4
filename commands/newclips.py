"""New clips: predict."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mer.commands.group import command
from mer.commands.options import DEVICE, check_run_folders, mapped
from mer.commands.output import note, put, say, say_json, say_laid_out
from mer.pipeline.errors import DataError, FailuresError, MerError, Together
from mer.pipeline.runtime.files import near
from mer.pipeline.runtime.terminal import escape_json, listed, plural, shown, terminal_columns

if TYPE_CHECKING:  # it imports torch
    from mer.commands import predicting


@command()
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
    "--audio-dir",
    "root",
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
    checks = Together(MerError, click.UsageError)
    one = check_clips_asked_for(checks, clips, audio, video, text, manifest_file, given)
    out = checks.of(lambda: checked_out(out, as_csv, as_json))
    checks.of(lambda: check_run_folders([run, *others]))
    checks.of(lambda: check_clips_are_there(clips, audio, manifest_file))
    if out is not None:
        from mer.pipeline.runtime.outputs import PREDICTIONS, check_replaceable

        read = [*clips, *(path for path in (audio, video, manifest_file) if path is not None)]
        place = out[0]
        checks.of(lambda: check_replaceable(place, PREDICTIONS, sources=map(Path, read)))
    checks.settle()
    if given["offline"]:
        os.environ["HF_HUB_OFFLINE"] = "1"
    from mer.commands import predicting
    from mer.fusion.runs.checkpoint import Run

    group = Run.open(run).trained()
    over = {child.fold for child in group.children}
    if len(over) > 1:
        raise click.UsageError(
            f"{run} holds {plural(len(group.children), 'run')} over folds; name one of them, e.g. "
            f"{group.best().path}, the best on dev"
        )
    trained = predicting.together(group, list(map(Run.open, others)), note)
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
        raise FailuresError(f"{unexpected:,} of {has} no prediction; {remedy_of(found)}")


def remedy_of(found: predicting.Predicted) -> str:
    """What to do about clips without a prediction. Where the files of a table are not there, their
    folder may be another one.
    """
    mend = "mend what failed, or leave it out"
    gone = [one for one in found.failures if one.path and is_gone(Path(one.path))]
    if found.base is None or not gone:
        return mend
    are = plural(len(gone), "file is", "files are")
    where = shown(found.base, 80)
    return f"{are} not there: name the folder with --root if it is not {where}, {mend}"


def check_clips_asked_for(
    checks: Together, clips, audio, video, text, manifest_file, given
) -> bool:
    """Whether one clip is put together from options; what does not go together is added to
    `checks`.
    """

    def refuse(why: str) -> None:
        checks.add(click.UsageError(why))

    of_one = {"--text": text, "--video": video}
    told = [name for name, value in of_one.items() if value is not None]
    if clips and audio is not None:
        refuse("give the clip once: behind RUN, or with --audio")
    for option, path in (("--audio", audio), ("--video", video), ("--manifest", manifest_file)):
        if path is not None and path.is_dir():
            refuse(f"{option} {shown(path, 120)}: a folder; name it behind RUN, without {option}")
    if manifest_file is not None and (clips or audio is not None or told):
        refuse("give either clips (and --text for one of them), or --manifest FILE")
    if manifest_file is None and not clips and audio is None and not told:
        refuse(
            "no clip: name files, a folder, a table or a manifest behind RUN, or give --audio FILE "
            "and --text TEXT"
        )
    if told and clips and (len(clips) > 1 or any(map(is_of_many, clips))):
        refuse(
            f"{told[0]} is of one clip, and {shown(clips[0], 80)} "
            f"{'is not all' if len(clips) > 1 else 'may hold many'}; put the words of many in .txt "
            "files beside them or in a table"
        )
    if given["language"] is not None and given["transcribe"] is None:
        refuse("--language goes with --transcribe")
    if given["transcribe"] is not None and told:
        refuse(f"--transcribe goes with clips alone; leave {told[0]} out")
    one = bool(told) or (audio is not None and given["transcribe"] is None)
    if one and given["columns"]:
        refuse("--column goes with a table")
    if one and given["dialogue"]:
        refuse("--dialogue goes with a folder of clips")
    return one


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
        raise DataError(f"{shown(asked[0], 200)}: no such file{near(asked[0], 'any')}")
    if len(asked) > 1:
        raise FailuresError(f"none of {plural(len(asked), 'clip')} is there: {listed(asked, 4)}")
    raise FailuresError(f"{shown(asked[0], 200)}: no such file{near(asked[0], 'any')}")


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
        what = "a folder is there"
        if not out.is_dir():
            what = f"no such folder{near(out.absolute().parent, 'folder')}"
        raise click.UsageError(f"--out {shown(out, 160)}: {what}; name a file in one that is there")
    return out, as_json or (not as_csv and kinds[out.suffix.lower()])


def show_predictions(rows: list[dict], spec, out: tuple[Path, bool] | None, as_csv, as_json):
    """Print predictions, or write them where --out says."""
    from mer.fusion.evaluation import answer_text
    from mer.fusion.runtime.files import write_text

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
        put(answer_text.as_csv(rows, spec), newline=False)
    elif len(rows) == 1:
        for line in answer_text.prediction_lines(rows[0], spec):
            say(line)
    elif rows:
        say_laid_out(answer_text.table(rows, spec, terminal_columns(sys.stdout)))
