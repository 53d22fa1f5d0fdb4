"""Anyone's folder of media whose names say what they are: `{speaker}_{sentence}_{emotion}.wav`.

The labels of the names are mapped to classes with --map. What a pattern does not fit is an error
with a count, since half a corpus is easily taken for the whole.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from mer.pipeline.datasets.corpora import CorpusInfo, FileRules
from mer.pipeline.datasets.filenames import (
    FIXED,
    Named,
    check_names,
    files_below,
    is_media,
    join_files,
    read_names,
    row_of,
)
from mer.pipeline.datasets.files import cut_blanks, look, warn_of_places
from mer.pipeline.datasets.findings import Findings
from mer.pipeline.datasets.groupsplit import (
    GROUPS,
    SHARES,
    group_field,
    groups_of,
    split_groups,
)
from mer.pipeline.datasets.newclips import WORDS, is_own_manifest, no_media, words_beside, words_of
from mer.pipeline.datasets.pattern import Pattern
from mer.pipeline.datasets.tablelabels import given_names
from mer.pipeline.datasets.tablevalues import POSITION
from mer.pipeline.errors import DataError
from mer.pipeline.manifest import Manifest, Utterance
from mer.pipeline.runtime.cells import strip
from mer.pipeline.runtime.files import near
from mer.pipeline.runtime.terminal import did_you_mean, listed, plural, shown

LABEL_FIELDS = ("label", "emotion")  # the first of them that the pattern has
# fields that are columns of the manifest; the others become tags
COLUMNS = (
    *("id", "text", "speaker", "sentence", "session", "dialogue", "position", "split"),
    *LABEL_FIELDS,
)
FIXED_UNKNOWN = (
    "the same sentences are said in every emotion: text carries no emotion here; so far the "
    "utterances have none"
)
LEFT_OUT = ""  # --map CODE=: utterances of that code are left out


def prepare(
    root: str | os.PathLike | None = None,
    *,
    pattern: str = "",
    mapping: Mapping[str, str] | None = None,
    partial: bool = False,
    labels: str | None = None,
    split: str = "auto",
    seed: int = 0,
    name: str | None = None,
    language: str = "en",
) -> tuple[Manifest, Findings]:
    """The manifest of a folder.

    Args:
        root: The folder; media files at any place below it are taken.
        pattern: What their names say, in the form that `mer.pipeline.datasets.pattern` explains.
            Fields that are columns of a manifest fill those; others become tags, `level=high`.
        mapping: What a name says -> class; to "": such files are left out. Empty: names say the
            classes themselves.
        partial: Leave out files that the pattern does not fit, instead of an error.
        labels: Comma-separated classes in order, by default those that are there, sorted.
        split: auto (the pattern's `{split}`, else one by dialogue or speaker) or none (left open).
        seed: Of the split.
        name: Of the corpus, by default the folder's.
        language: Code, for the default encoders.

    Returns:
        The manifest, and what was found.

    Raises:
        DataError: The pattern cannot be read or fits not all files, a label is not in the map, or
            two files have one id.
    """
    if root is None or not pattern:
        raise DataError("folder: name it and say how its files are called: --root DIR --pattern P")
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"{shown(root, 200)}: no such folder (--root){near(root, 'folder')}")
    mapping = {strip(code): strip(named) for code, named in (mapping or {}).items()}
    name = strip(name if name is not None else root.absolute().name) or "folder"
    findings = Findings(name)
    rules = _rules(Pattern(pattern))
    named = _fitting(root, rules, findings, partial=partial)
    named = _mapped(named, rules, mapping, findings)
    utterances = join_files(named, root, findings)
    rows = [_in_turn(row_of(files, rules), files[0]) for files in utterances.values()]
    rows = _with_words(rows, root, findings)
    rows = cut_blanks(rows, findings)
    if not rows:
        raise DataError(f"--map leaves none of {shown(root, 100)}'s files; map a label to a class")
    classes = _classes(rows, labels, mapping)
    rows = _split(rows, split, seed, findings)
    has_text = any(row.text for row in rows)
    _warn_of_sentences(utterances.values(), rules, findings, has_text=has_text)
    info = CorpusInfo.unknown(name, language)
    rows = look(rows, root, info, findings)
    warn_of_places(rows, findings)
    made = {"pattern": pattern, "map": dict(mapping), "split": split, "seed": seed}
    return Manifest(name, "single", classes, tuple(rows), root, language, made), findings


def _rules(pattern: Pattern) -> FileRules:
    """What the fields of a pattern are."""
    label = next((field for field in LABEL_FIELDS if field in pattern.names), "")
    others = [field for field in pattern.names if field not in COLUMNS]
    others += [field for field in LABEL_FIELDS if field in pattern.names and field != label]
    tags = ["sentence", *others] if "sentence" in pattern.names else others
    id = "{id}" if "id" in pattern.names else ""
    return FileRules((pattern,), id=id, label=label, tags=tuple(tags))


def _fitting(root: Path, rules: FileRules, findings: Findings, *, partial: bool) -> list[Named]:
    """The files that the pattern fits; raises DataError where it does not fit all of them."""
    paths: list[str] = []
    endings: Counter[str] = Counter()  # of files that are neither media nor words
    passed_over: list[str] = []
    for path in files_below(root, passed_over):
        ending = os.path.splitext(path)[1].lower()
        if is_media(path):
            paths.append(path)
        elif ending != WORDS and not is_own_manifest(root / path):
            endings[ending] += 1
    check_names(root, paths)
    (pattern,) = rules.patterns
    named, others = read_names(paths, rules)
    what = f"{len(named):,} of {plural(len(paths), 'media file')} below {shown(root, 80)}"
    text = shown(pattern.text, 80)
    if not named:
        first = f"; the first is {shown(others[0], 60)}" if others else ""
        if endings and not paths:
            first = f"; {no_media(endings)}: `mer prepare table` takes files of any ending"
        raise DataError(f"pattern '{text}' fits none of {plural(len(paths), 'media file')}{first}")
    if others and not partial:
        raise DataError(
            f"pattern '{text}' fits {what}, not {listed(others, 2)}; mend it, or leave the others "
            "out with --partial"
        )
    findings.dropped["files that the pattern does not fit"] += map(shown, others)
    if not others:
        del findings.dropped["files that the pattern does not fit"]
    if passed_over:
        some = plural(len(passed_over), "hidden media file")
        findings.warnings.append(f"{some} left out: {listed(passed_over, 3)}")
    if endings:
        findings.warnings.append(
            f"{no_media(endings)}; to take those that are media, name them in a table (`mer "
            "prepare table`)"
        )
    return named


def _meant(mapping: Mapping[str, str], given: Iterable[str]) -> str:
    """A guess at the label that the map's first name without a file may stand for."""
    idle = next((name for name in mapping if name not in given), None)
    guess = "" if idle is None else did_you_mean(idle, given)
    return f"; no file is {shown(idle, 30)}{guess}" if guess else ""


def _mapped(
    named: Sequence[Named], rules: FileRules, mapping: Mapping[str, str], findings: Findings
) -> list[Named]:
    """The files with the classes of a map; raises DataError for labels that it does not have."""
    fields = " or ".join(f"{{{field}}}" for field in LABEL_FIELDS)
    if not rules.label and mapping:
        raise DataError(f"--map: the pattern has no {fields} to map")
    if not rules.label:
        findings.warnings.append(
            f"no {fields} in the pattern: the utterances are unlabelled, good for `mer predict` "
            "only"
        )
    if not mapping:
        return list(named)
    given = Counter(strip(file.fields[rules.label]) for file in named)
    if unknown := [label for label in given if label not in mapping]:
        examples = [f"{shown(label, 30)} ({plural(given[label], 'file')})" for label in unknown]
        raise DataError(
            f"--map has no class for {listed(examples, 4)}{_meant(mapping, given)}; add --map "
            f"{shown(unknown[0], 30)}=CLASS, or with nothing behind the = to leave them out"
        )
    kept = []
    for file in named:
        code = strip(file.fields[rules.label])
        if mapping[code] == LEFT_OUT:
            findings.dropped[f"label {shown(code, 40)}"].append(shown(file.path))
        else:
            kept.append(replace(file, fields={**file.fields, rules.label: mapping[code]}))
    unused = [code for code in mapping if code not in given]
    if unused:
        findings.warnings.append(f"--map names labels that no file has: {listed(unused, 5)}")
    return kept


def _in_turn(row: Utterance, file: Named) -> Utterance:
    """The row with the place of its turn in the dialogue, where the name says it."""
    position = file.fields.get("position")
    if position is None:
        return row
    if not POSITION.fullmatch(position):
        raise DataError(
            f"{shown(file.path, 120)}: position '{shown(position, 40)}' is not the number of a "
            "turn in its dialogue: 0, 1, 2, …"
        )
    return replace(row, position=int(position.partition(".")[0]))


def _with_words(rows: Sequence[Utterance], root: Path, findings: Findings) -> list[Utterance]:
    """The rows with the words of the text file beside each, where the pattern gives none."""
    made, empty = [], []
    for row in rows:
        if row.text is None and row.audio is not None:
            for file in words_beside(str(root / row.audio)).values():
                row = replace(row, text=words_of(Path(file)))
                if row.text is None:
                    empty.append(shown(row.id))
        made.append(row)
    with_words = sum(row.text is not None for row in made)
    if 0 < with_words < len(made):
        lacking = plural(len(made) - with_words, "utterance")
        findings.warnings.append(f"{lacking} of {len(made):,} without a {WORDS} file of words")
    if empty:
        what = plural(len(empty), f"{WORDS} file")
        findings.warnings.append(f"{what} without a word in it: {listed(empty, 3)}")
    return made


def _classes(
    rows: Sequence[Utterance], labels: str | None, mapping: Mapping[str, str]
) -> tuple[str, ...]:
    """The classes in order; raises DataError for rows of another one."""
    present = Counter(u.label for u in rows if u.label is not None)
    names = given_names("folder", labels)
    if not names:
        return tuple(sorted({*present, *mapping.values()} - {LEFT_OUT}))
    if other := [label for label in present if label not in names]:
        examples = [f"{shown(label, 30)} ({plural(present[label], 'file')})" for label in other]
        raise DataError(f"--labels has not {listed(examples, 4)}; add them, or map them with --map")
    return names


def _split(rows: Sequence[Utterance], split: str, seed: int, findings: Findings) -> list[Utterance]:
    """The rows with their splits: as named, left open, or made by group."""
    if split == "none":
        return [replace(u, split="") for u in rows]
    if any(u.split for u in rows):
        return list(rows)
    by = group_field({field: [getattr(u, field) for u in rows] for field in GROUPS})
    if by is None:
        findings.warnings.append(
            f"no speaker in the names: each file is its own group in the split (seed {seed})"
        )
        groups = [u.id for u in rows]
    else:
        groups = groups_of([getattr(u, by) for u in rows])
        count = len({getattr(u, by) for u in rows} - {None})
        if len(set(groups)) < len(SHARES):
            raise DataError(
                f"folder: only {count} {by}s, too few for train, dev and test; --split none leaves "
                "it open, for `mer train --folds`"
            )
        findings.warnings.append(f"split by {by} with seed {seed} ({count:,} {by}s)")
        _warn_of_ungrouped(rows, by, findings)
    splits = split_groups(groups, seed)
    return [replace(u, split=part) for u, part in zip(rows, splits, strict=True)]


def _warn_of_ungrouped(rows: Sequence[Utterance], by: str, findings: Findings) -> None:
    """Say how many files have no speaker, or dialogue, in their names."""
    without = [shown(u.audio or u.id, 60) for u in rows if not getattr(u, by)]
    if without:
        one = f"file without a {by} in its name is a group of its own"
        several = f"files without a {by} in their names are groups of their own"
        what = plural(len(without), one, several)
        findings.warnings.append(f"{what} in the split: {listed(without, 3)}")


def _warn_of_sentences(
    utterances: Iterable[tuple[Named, Named | None]],
    rules: FileRules,
    findings: Findings,
    *,
    has_text: bool,
) -> None:
    """Say so where most sentences are said with several labels; without a text what it would be
    worth.
    """
    labels: dict[str, set[str]] = {}
    for heard, _ in utterances:
        if "sentence" in heard.fields and rules.label:
            labels.setdefault(heard.fields["sentence"], set()).add(heard.fields[rules.label])
    several = sum(len(found) > 1 for found in labels.values())
    if labels and 2 * several > len(labels):
        findings.warnings.append(FIXED if has_text else FIXED_UNKNOWN)
