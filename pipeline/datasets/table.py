"""Anyone's CSV, TSV, JSON Lines or Parquet as a corpus.

A field is found under its own name or under the column that the user names for it; blanks at the
ends of names are cut and counted. Without a split column the table is split by group (dialogue,
else speaker), never through the middle of one.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mer.pipeline.datasets.corpora import CorpusInfo
from mer.pipeline.datasets.files import look, warn_of_places
from mer.pipeline.datasets.findings import Findings
from mer.pipeline.datasets.folds import check_speakers, counted, from_columns, from_json
from mer.pipeline.datasets.groupsplit import (
    GROUPS,
    SHARES,
    group_field,
    groups_of,
    split_groups,
)
from mer.pipeline.datasets.tablefile import FIELDS, Table, other_case, read
from mer.pipeline.datasets.tablelabels import (
    TARGET,
    UNIMODAL,
    labelled_by_labels,
    labelled_by_targets,
    labelled_by_votes,
    target_names,
    unimodal_labels,
    voted_names,
)
from mer.pipeline.datasets.tablemedia import MediaRoot, media_paths
from mer.pipeline.datasets.tablevalues import positions, times, video_times, warn_of_gap
from mer.pipeline.datasets.unimodal import columns_of as unimodal_columns
from mer.pipeline.errors import DataError
from mer.pipeline.manifest import Manifest, Utterance
from mer.pipeline.runtime.cells import GAP_WORDS, strip, text_cell, warn_gap_words
from mer.pipeline.runtime.delimited import SEPARATORS
from mer.pipeline.runtime.files import near
from mer.pipeline.runtime.terminal import did_you_mean, listed, plural, shown
from mer.pipeline.runtime.terms import SPLIT_ALIASES, TASKS

SHOWN_FIELDS = 7  # in a message that a table has none of them
# Fields that one column may hold: a film is heard and seen, a dialogue may be of one speaker.
MAY_SHARE = (
    {"audio", "video"},
    {"start", "video_start"},
    {"end", "video_end"},
    {"speaker", "dialogue", "session"},
)


def prepare(
    source: Path,
    *,
    audio_dir: str | os.PathLike | None = None,
    columns: Mapping[str, str] | None = None,
    labels: str | None = None,
    targets: str | None = None,
    soft_labels: str | None = None,
    unimodal: Sequence[str] = (),
    task: str | None = None,
    split: str = "auto",
    seed: int = 0,
    name: str | None = None,
    language: str = "en",
    folds: Sequence[str] = (),
    fold_lists: str | os.PathLike | None = None,
    speaker_independent: bool = False,
    folder_option: str = "--audio-dir",
    fields: Sequence[str] = FIELDS,
) -> tuple[Manifest, Findings]:
    """The manifest of a table.

    Args:
        source: The table.
        audio_dir: What audio paths are relative to, by default the table's folder; a name without
            its extension is looked up there.
        columns: Field -> column, where that is not called like the field.
        labels: Comma-separated classes in order, by default those that are there, sorted.
        targets: Comma-separated columns of numbers, which are the targets of a regression.
        soft_labels: Comma-separated columns, one for each class, of the votes of raters or their
            shares; the label is the class with most of them, the targets are the shares.
        unimodal: `MODALITY=COLUMN,…`, one or several: what each modality says by itself, a class
            or number as the common label.
        task: single (None, without targets), multi or regression.
        split: auto (the table's, else one by group) or none (left open, for folds).
        seed: Of the split by group.
        name: Of the corpus, by default the table's.
        language: Code, for the default encoders.
        folds: The columns that name folds; none: `fold`, if there is one.
        fold_lists: A JSON file of folds instead, as `folds.from_json` reads it.
        speaker_independent: Refuse folds in which a speaker is trained on and tested.
        folder_option: What messages call `audio_dir`.
        fields: Those that messages name.

    Returns:
        The manifest, and what was found.

    Raises:
        DataError: The table cannot be read, or a cell is not what its field needs; the line is
            named.
    """
    source = Path(source)
    columns = columns or {}
    targeted = target_names(targets, task, labels, columns)
    voted = voted_names(soft_labels, targets, task, labels, columns)
    task = task or ("regression" if targeted else "single")
    _check_options(task, split, columns, fields)
    name = strip(name if name is not None else source.stem) or "table"
    for option, value in (
        ("--name", name),
        ("--language", language),
        ("--labels", labels),
        ("--targets", targets),
        ("--soft-labels", soft_labels),
        *(("--unimodal", pairs) for pairs in unimodal),
    ):
        _check_text(option, value)
    if folds and fold_lists is not None:
        raise DataError("table: folds by --column fold=… and by --fold-lists; give one of them")
    findings = Findings(name)
    of_modality = unimodal_columns(unimodal)
    read_from = {**columns, **{f"{TARGET}{column}": column for column in (*targeted, *voted)}}
    read_from |= {f"{UNIMODAL}{modality}": column for modality, column in of_modality.items()}
    kind = {"several": task == "multi", "number": task == "regression"}
    table = read(source, read_from, findings, folds=folds, **kind)
    root = MediaRoot(Path(audio_dir) if audio_dir is not None else source.parent, folder_option)
    _check_content(table, root, fields)
    ids = _ids(table, findings)
    _warn_of_gaps(table, findings)
    _warn_of_shared_columns(table, findings)
    if targeted:
        labelling = labelled_by_targets(table, targeted, findings)
    elif voted:
        labelling = labelled_by_votes(table, voted, findings)
    else:
        labelling = labelled_by_labels(table, labels, task, findings)
    said_alone = unimodal_labels(table, of_modality, labelling, task, findings)
    spans = times(table, findings)
    _check_ids(table, ids)
    in_folds = _folds(table, ids, fold_lists)
    splits = _splits(table, "none" if in_folds and not _has_split(table) else split, seed, findings)
    audio = media_paths(table, "audio", ids, root, findings)
    video = media_paths(table, "video", ids, root, findings)
    video_spans = video_times(table)
    by_field: dict[str, Sequence[Any]] = {
        "id": ids,
        "audio": audio,
        "text": table.column("text"),
        "split": splits,
        "label": labelling.label,
        "targets": labelling.targets,
        "speaker": table.column("speaker"),
        "dialogue": table.column("dialogue"),
        "session": table.column("session"),
        "position": positions(table),
        "start": [start for start, _ in spans],
        "end": [end for _, end in spans],
        "video": video,
        "video_start": [start for start, _ in video_spans],
        "video_end": [end for _, end in video_spans],
        "folds": [in_folds.get(row_id or "", ()) for row_id in ids],
        "unimodal": said_alone,
    }
    rows = []
    for cells in zip(*by_field.values(), strict=True):
        rows.append(Utterance(**dict(zip(by_field, cells, strict=True))))
    if speaker_independent:
        check_speakers(str(source), counted(rows))
    rows = look(rows, root.folder, CorpusInfo.unknown(name, language), findings)
    _warn_of_no_file(table, rows, root, findings)
    warn_of_places(rows, findings)
    made = {"table": source.name, "columns": dict(columns), "split": split, "seed": seed}
    manifest = Manifest(name, task, labelling.names, tuple(rows), root.folder, language, made)
    return manifest, findings


# --- options


def _check_options(
    task: str, split: str, columns: Mapping[str, str], fields: Sequence[str]
) -> None:
    if task not in TASKS or split not in ("auto", "none"):
        raise DataError(
            f"table: task '{task}', split '{split}'; a task is one of {', '.join(TASKS)}, a split "
            "auto or none"
        )
    for field, column in columns.items():
        if field not in FIELDS:
            raise DataError(
                f"table: --column {shown(field, 40)}={shown(column, 40)}: no such field"
                f"{did_you_mean(field, fields)}; fields: {', '.join(fields)}"
            )


def _check_text(option: str, value: str | None) -> None:
    try:
        text_cell(value)
    except DataError as error:
        raise DataError(f"table: {option} {error}") from None


# --- what the table has and lacks


def _check_content(table: Table, root: MediaRoot, fields: Sequence[str]) -> None:
    """Raises DataError for a table without a field, a row, or anything to encode."""
    source = table.source
    if not table.data and table.names:
        alone = len(table.names) == 1
        known = f"; columns are separated by {', '.join(SEPARATORS.values())}" if alone else ""
        raise DataError(
            f"{source}: no column is called {', '.join(fields[:SHOWN_FIELDS])}, …; name yours with "
            f"--column FIELD=NAME (found {listed(table.names)}{_near(table)}){known}"
        )
    if not len(table):
        raise DataError(f"{source}: no rows")
    _check_rows(table)
    if not {"audio", "text", "video"} & set(table.data):
        remedy = "map one with --column audio=NAME or --column text=NAME"
        raise DataError(
            f"{source}: neither audio nor text; {remedy} (found "
            f"{listed(table.names)}{_near(table)})"
        )
    if {"audio", "video"} & set(table.data) and not root.folder.is_dir():
        raise DataError(
            f"{root.folder}: no such folder ({root.option}){near(root.folder, 'folder')}"
        )


def _check_rows(table: Table) -> None:
    """Raises DataError for a row that is the header again, as where tables were joined, or that is
    empty but for its separators.
    """
    names = {field: table.mapped.get(field, field) for field in FIELDS if field in table.data}
    for i in range(len(table)):
        cells = {field: table.data[field][i] for field in names}
        if len(names) > 1 and cells == names:
            raise DataError(f"{table.at(i)} is the header again; leave it out")
        if not any(cells.values()):
            raise DataError(f"{table.at(i)} has nothing in any column that is read; leave it out")


def _near(table: Table) -> str:
    """The options that would take columns which differ from a field by case only."""
    options = []
    for field in FIELDS:
        name = other_case(field, table.names)
        if name and field not in table.mapped:
            options.append(f"--column {field}={shown(name, 40)}")
    return f"; case counts: {' '.join(options)}" if options else ""


def _ids(table: Table, findings: Findings) -> list[str | None]:
    if "id" in table.data:
        return table.data["id"]
    near = other_case("id", table.names) or "NAME"
    findings.warnings.append(f"no id column (--column id={shown(near, 40)}): ids are row1, row2, …")
    return [f"row{i + 1}" for i in range(len(table))]


def _check_ids(table: Table, ids: list[str | None]) -> None:
    for i, row_id in enumerate(ids):
        if not row_id:
            raise DataError(f"{table.at(i)} has an empty id")
    double, count = Counter(ids).most_common(1)[0]
    if count > 1:
        first, second, *_ = (i for i, row_id in enumerate(ids) if row_id == double)
        raise DataError(
            f"{table.source}: id '{shown(double)}' is there {count:,} times, first on "
            f"{table.place(first)} and {table.place(second)}; ids must be unique"
        )


def _warn_of_gaps(table: Table, findings: Findings) -> None:
    for field in ("audio", "text"):
        if field not in table.data:
            remedy = f"--column {field}={other_case(field, table.names) or 'NAME'}"
            findings.warnings.append(
                f"no {field} column ({remedy}): the utterances have no {field}"
            )
    for field in ("audio", "text", "speaker", "dialogue", "session"):
        warn_of_gap(table, field, findings)
    for field in ("text", "speaker", "dialogue", "session"):
        what = "transcripts" if field == "text" else f"{field}s"
        findings.warnings += warn_gap_words(table.data.get(field, ()), what)


def _warn_of_no_file(
    table: Table, rows: Sequence[Utterance], root: MediaRoot, findings: Findings
) -> None:
    """Say so where not one of the media files is there: a wrong column or folder, most likely."""
    with_media = [u for u in rows if u.audio or u.video]
    if len(with_media) < 2 or len(findings.missing) < len(with_media):
        return
    field = "audio" if any(u.audio for u in with_media) else "video"
    column = table.mapped.get(field, field)
    findings.warnings.append(
        f"none of the {plural(len(with_media), 'file')} is there; is '{shown(column, 40)}' the "
        f"column of the {field}, and {root.option} their folder?"
    )


def _warn_of_shared_columns(table: Table, findings: Findings) -> None:
    """Say which columns are read as two fields, such as the label as the transcript, which a model
    would then read off. What may well be one column (`MAY_SHARE`, the id and any other) is not.
    """
    fields_of: dict[str, list[str]] = {}
    for field in table.data:
        name = TARGET if field.startswith(TARGET) else field
        column = field.removeprefix(TARGET) if name == TARGET else table.mapped.get(field, field)
        if name == TARGET or name in FIELDS[1:]:
            fields_of.setdefault(column, []).append(name.strip(" :"))
    for column, fields in fields_of.items():
        if len(fields) > 1 and not any(may >= set(fields) for may in MAY_SHARE):
            findings.warnings.append(
                f"column {shown(column, 40)} is read as {' and as '.join(fields)}: is another "
                "meant for one of them?"
            )


# --- splits and folds


def _has_split(table: Table) -> bool:
    return any(table.column("split"))


def _folds(
    table: Table, ids: Sequence[str | None], lists: str | os.PathLike | None
) -> dict[str, tuple[str, ...]]:
    """What each row is in the published folds; nothing where there are none."""
    names = [id or "" for id in ids]
    if lists is not None:
        return from_json(Path(lists), names)
    return from_columns(str(table.source), names, table.folds) if table.folds else {}


def _splits(table: Table, split: str, seed: int, findings: Findings) -> list[str]:
    """A split per row: none, the table's, or one by group."""
    if split == "none":
        return [""] * len(table)
    given = table.column("split")
    if any(given):
        return _given_splits(table, given, findings)
    field = group_field({field: table.column(field) for field in GROUPS})
    if field is None:
        why = "no split, and no dialogue or speaker (--column speaker=NAME)"
        findings.warnings.append(f"{why}: each utterance is its own group (seed {seed})")
        return split_groups(map(str, range(len(table))), seed)
    named = table.data[field]
    count = len(set(named) - {None})
    groups = groups_of(named)
    if len(set(groups)) < len(SHARES):
        raise DataError(
            f"{table.source}: no split column and only {count} {field}s, too few for train, dev "
            "and test; add a split column, or --split none and train with --folds"
        )
    findings.warnings.append(
        f"no split column: split by {field} with seed {seed} ({count:,} {field}s)"
    )
    if without := [i for i, name in enumerate(named) if not name]:
        one = f"row without a {field} is a group of its own"
        several = f"rows without a {field} are groups of their own"
        findings.warnings.append(
            f"{plural(len(without), one, several)} in the split, the first on "
            f"{table.place(without[0])}"
        )
    return split_groups(groups, seed)


def _given_splits(table: Table, given: list[str | None], findings: Findings) -> list[str]:
    splits = []
    for i, value in enumerate(given):
        name = (value or "").strip().lower()
        if name not in SPLIT_ALIASES:
            hint = ", or an empty cell for none" if value in GAP_WORDS or name == "none" else ""
            raise DataError(
                f"{table.at(i)} has split '{shown(value)}', expected train, dev (or valid) or test"
                f"{hint}"
            )
        splits.append(SPLIT_ALIASES[name])
    if "train" in splits and "dev" not in splits:
        findings.warnings.append("no dev split: training takes one from train, by group")
    return splits
