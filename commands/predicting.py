"""What `mer predict` does between its command line and its output: features are made by
`mer.pipeline`, answers by `mer.fusion`, and neither sees the other.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mer.fusion.batch import ContextSpec
from mer.fusion.evaluation.answer_text import missing_lines
from mer.fusion.evaluation.answering import modalities_of, predict_rows
from mer.fusion.evaluation.ensemble import check_alike, mean_table, members, title
from mer.fusion.runs import moved
from mer.fusion.runs.checkpoint import Run
from mer.fusion.runtime.devices import pick_device
from mer.fusion.runtime.typed import tree
from mer.pipeline.datasets.newclips import GIVEN, NewClips, gather
from mer.pipeline.errors import DataError
from mer.pipeline.extraction.clips import Places, encoders_now, extract_clips
from mer.pipeline.extraction.given import Hearing, make_ready
from mer.pipeline.extraction.outcome import Failure
from mer.pipeline.extraction.presence import kinds_of
from mer.pipeline.manifest import Utterance
from mer.pipeline.media.stages import Flag, Stage
from mer.pipeline.runtime.cells import strip
from mer.pipeline.runtime.files import near
from mer.pipeline.runtime.progress import SILENT, Silent, choose
from mer.pipeline.runtime.terminal import plural, shown
from mer.pipeline.store import FeatureStore

WORDS = "text"  # the modality that clips come without most often
ENCODED = ("audio", "vision", "text")
BESIDE = ("vision_boxes", "vision_faces")
# What may leave a model with little of a clip, although it has the modality.
DOUBTFUL = (
    Flag.short,
    Flag.silent,
    Flag.clipped,
    Flag.end_beyond,
    Flag.gap,
    Flag.damaged,
    Flag.text_cut,
    Flag.wordless,
    Flag.no_picture,
    Flag.picture_short,
    Flag.no_face,
)


@dataclass(frozen=True)
class Asked:
    """The options of `mer predict` that decide what is predicted. `places` has those that say where
    encoders and faces are, by name. `dialogue`: the clips of each folder are one conversation, in
    the order of their names.
    """

    root: Path | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    transcribe: str | None = None
    language: str | None = None
    device: str = "auto"
    offline: bool = False
    dialogue: bool = False
    places: Mapping[str, str | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Predicted:
    """A row for each clip that has a prediction, a failure for each that has none, and how many
    were asked for. `base` is the folder that the paths of a table or manifest are relative to.
    """

    rows: list[dict[str, Any]]
    failures: list[Failure]
    asked: int
    base: Path | None = None


def together(run: Run, others: Sequence[Run], note: Callable[[str], None]) -> Sequence[Run]:
    """The trainings that answer.

    Args:
        run: A finished run; of a group all its runs answer.
        others: Runs whose answers are averaged with those of `run`.
        note: Told whether answers are averaged, and whether they are calibrated.

    Returns:
        Single trainings.

    Raises:
        DataError: They do not go together.
    """
    trained: Sequence[Run] = run.children
    if others or len(trained) > 1:
        trained = members([run, *others])
        check_alike(trained)
        alone = f" (the best on dev alone: {run.best().path})" if len(run.children) > 1 else ""
        answers = "values" if trained[0].spec.task == "regression" else "probabilities"
        note(f"{title(trained)}: {answers} are averaged{alone}")
    scaled = sum(one.result.scaling is not None for one in trained)
    if scaled:
        some = f" of {scaled} of the {plural(len(trained), 'run')}" if scaled < len(trained) else ""
        note(f"probabilities{some} are calibrated by the temperature fitted on dev")
    return trained


def one(
    runs: Sequence[Run], audio: Path | None, video: Path | None, text: str | None, asked: Asked
) -> Predicted:
    """Predict the clip that is put together from sound, picture and words.

    Args:
        runs: Finished trainings that read the same features; of several the mean is predicted.
        audio: The file with its sound.
        video: The file with its picture, if that is another one.
        text: What is said.
        asked: Where it is done, and by which encoders.

    Returns:
        Its prediction.

    Raises:
        DataError: It lacks what the run reads, or cannot be read.
        KeyMismatchError: An encoder is not the run's own.
    """
    run = runs[0]
    if video is not None and not video.exists():
        raise DataError(f"--video {shown(video, 200)}: no such file{near(video)}")
    text = text if text and strip(text) else None
    sound, picture = (str(path.resolve()) if path is not None else None for path in (audio, video))
    clip = Utterance(id=str(audio or video or WORDS), audio=sound, text=text, video=picture)
    places = _places(run, asked)
    with tempfile.TemporaryDirectory(prefix="mer-predict-") as folder:
        store, failures = extract_clips(
            [clip],
            tree(run.info.store),
            Path(folder) / "feats.h5",
            encoders=places.encoders,
            device=places.device,
            offline=places.offline,
            wanted=run.spec.sources,
            beside=places.beside,
        )
        with store:  # one clip has no neighbours
            clips = [] if failures else [clip]
            rows = _rows(runs, store, clips, {clip.id: GIVEN} if text else {}, asked.device, SILENT)
    return Predicted(rows, [*failures, *_unanswered(clips, rows)], 1)


def many(
    runs: Sequence[Run], paths: Sequence[Path], asked: Asked, note: Callable[[str], None]
) -> Predicted:
    """Predict files, folders, or the rows of a table or manifest.

    Args:
        runs: As for `one`.
        paths: As `mer.pipeline.datasets.newclips.gather` takes them.
        asked: The options.
        note: Told what the user should know, line by line.

    Returns:
        The predictions, in the order of the clips.

    Raises:
        DataError: There is no clip, or an option does not fit the run.
        EncoderError: A checkpoint cannot be used.
        KeyMismatchError: An encoder is not the run's own.
    """
    run = runs[0]
    like, progress = tree(run.info.store), choose()
    features = [one.name for m in run.reads for one in run.spec.read_from(m)]
    words = WORDS in kinds_of(like, features).values()
    if asked.transcribe is not None and not words:
        raise DataError("--transcribe: the run reads no words; leave it out")
    if asked.dialogue and run.spec.context is None:
        raise DataError("--dialogue: the run sees each clip without context; leave it out")
    new = gather(
        paths,
        words=words,
        task=run.spec.task,
        root=asked.root,
        columns=asked.columns,
        dialogue=asked.dialogue,
    )
    for line in new.notes:
        note(line)
    turns = _turns(run, new)
    if run.spec.context is not None:
        note(_context_line(run.spec.context, new, turns))
    hearing = Hearing(asked.transcribe, asked.language) if asked.transcribe is not None else None
    with tempfile.TemporaryDirectory(prefix="mer-predict-") as folder:
        out = Path(folder) / "feats.h5"
        places = _places(run, asked)
        ready = make_ready(new, like, features, out, places, hearing=hearing, progress=progress)
        for line in ready.notes:
            note(line)
        rows = []
        if ready.store is not None:
            with ready.store as store:
                rows = _rows(
                    runs, store, ready.clips, ready.words_from, asked.device, progress, turns
                )
    for row in rows:  # what a table says of a clip, which the model was not shown
        told = new.told.get(row["id"], {})
        row |= {key: value for key, value in told.items() if key in row}
    for line in missing_lines(rows) if len(rows) > 1 else ():
        note(line)
    failures = [*ready.failures, *_unanswered(ready.clips, rows)]
    return Predicted(rows, failures, new.asked, new.base)


def _places(run: Run, asked: Asked) -> Places:
    """Where clips are encoded, and by what."""
    there = {m: asked.places.get(f"{m}_encoder") for m in ENCODED}
    given = {m: where for m, where in there.items() if where}
    store = tree(run.info.store)
    features = moved.find(run).path or Path(run.info.features)
    encoders = encoders_now(store, features, given, run.spec.sources)
    beside = {name: asked.places.get(name) or "" for name in BESIDE}
    return Places(encoders, asked.device, asked.offline, beside)


def _rows(
    runs: Sequence[Run],
    store: FeatureStore,
    clips: Sequence[Utterance],
    words_from: Mapping[str, str],
    device: str,
    progress: Silent,
    turns: bool = False,
) -> list[dict[str, Any]]:
    """A row for each clip that the model can read any modality of, and which modalities these were.
    With `turns` the clips of a dialogue are seen with each other.
    """
    place = {name: row for row, name in enumerate(store.table()["id"].to_pylist())}
    run = runs[0]
    had = modalities_of(run, store, [place[u.id] for u in clips])
    answerable = [(u, there) for u, there in zip(clips, had, strict=True) if there]
    if not answerable:
        return []
    rows = [place[u.id] for u, _ in answerable]
    pool = np.array(rows if turns else [], dtype=np.int64)
    where = pick_device(device)
    tables = []
    for one in runs:
        made = predict_rows(one, store, rows, device=where, progress=progress, pool=pool)
        tables.append(made)
    table = mean_table(tables, runs) if len(runs) > 1 else tables[0]
    found = []
    for row, (clip, there) in zip(table.to_pylist(), answerable, strict=True):
        read = WORDS in there
        had_by_clip: dict[str, Any] = {
            "file": clip.audio or clip.video,
            "modalities": list(there),
            "missing": [m for m in run.reads if m not in there],
            "noted": _noted(store, place[clip.id]),
            "text_from": words_from.get(clip.id) if read else None,
            "text": clip.text if read else None,
            "model": run.info.model if len(runs) == 1 else title(runs),
            "seed": run.single.seed if len(runs) == 1 else None,
        }
        if any(one.result.scaling is not None for one in runs):
            had_by_clip["temperature"] = _temperature(runs)
        found.append({**row, **had_by_clip})
    return found


def _noted(store: FeatureStore, row: int) -> list[str]:
    """What extraction noted of a clip that makes its answer doubtful."""
    return [flag.name for flag in DOUBTFUL if flag.name and store.flags[row] & flag]


def _temperature(runs: Sequence[Run]) -> float | str:
    """By which the probabilities are calibrated; of several runs each by its own."""
    there = [one.result.scaling for one in runs]
    known = [scaling.temperature for scaling in there if scaling is not None]
    if len(runs) == 1:
        return known[0]
    if len(known) == len(runs):
        return "each run's own"
    return f"{len(known)} of {plural(len(runs), 'run')}"


def _turns(run: Run, new: NewClips) -> bool:
    """Whether clips are seen with their neighbours: the run was trained so, and they are turns of
    dialogues, in an order.

    Raises DataError for dialogues without one, and where two clips have one place.
    """
    asked = run.spec.context
    in_dialogues = [u for u in new.clips if u.dialogue]
    if asked is None or not in_dialogues:
        return False
    without = [u for u in in_dialogues if u.position is None]
    if without:
        raise DataError(
            f"the run sees clips with their neighbours (context {asked.title}), and of "
            f"{plural(len(without), 'clip')} of a dialogue the position is not known (first: "
            f"{shown(without[0].id, 40)}); name its column with --column position=NAME, or leave "
            "the dialogues out"
        )
    seen: dict[tuple[str | None, int | None], str] = {}
    for u in in_dialogues:
        first = seen.setdefault((u.dialogue, u.position), u.id)
        if first != u.id:
            raise DataError(
                f"the run sees clips with their neighbours (context {asked.title}), and "
                f"{shown(first, 40)} and {shown(u.id, 40)} both have position {u.position} of "
                f"dialogue {shown(u.dialogue, 40)}; give every dialogue a name of its own, and its "
                "turns different numbers"
            )
    return True


def _context_line(asked: ContextSpec, new: NewClips, turns: bool) -> str:
    """Whether the clips are seen with their neighbours, and which way out there is."""
    if turns:
        names = {u.dialogue for u in new.clips if u.dialogue}
        alone = sum(not u.dialogue for u in new.clips)
        rest = f"; {plural(alone, 'clip')} of none, without context" if alone else ""
        return f"context {asked.title}: clips of {plural(len(names), 'dialogue')}{rest}"
    return (
        f"without context, although the run was trained with context {asked.title}: the clips name "
        "no dialogue (a manifest or a table with --column dialogue=… --column position=…, or "
        "--dialogue where each folder is one)"
    )


def _unanswered(clips: Sequence[Utterance], rows: Sequence[Mapping[str, Any]]) -> list[Failure]:
    """The failures of clips that have nothing the model can read, such as words that give no
    token.
    """
    answered = {row["id"] for row in rows}
    why = "its encoders make nothing of it, so that the model has nothing to read"
    found = []
    for u in clips:
        if u.id not in answered:
            path, known = u.audio or u.video, u.known_bad is not None
            found.append(Failure(u.id, path, Stage.EMPTY, why, known))
    return found
