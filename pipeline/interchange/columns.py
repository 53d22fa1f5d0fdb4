"""Which column of a foreign file is which field of the store, and which of its arrays are whose
features.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path

from mer.pipeline.errors import DataError
from mer.pipeline.interchange.foreign import ImportOptions, layers_of
from mer.pipeline.runtime.terminal import did_you_mean, listed, shown
from mer.pipeline.store import Header
from mer.pipeline.store.schema import is_modality

# Field of the store -> names it goes by elsewhere, in order of preference.
FIELDS = {
    "id": ("id", "ids", "key", "name", "file", "filename"),
    "split": ("split", "partition", "subset"),
    "label": ("label", "labels", "emotion", "annotation", "sentiment"),
    "targets": ("targets", "target", "label_reg", "regression_labels", "valence"),
    "text": ("transcript", "raw_text", "sentence", "text"),
    "speaker": ("speaker", "speaker_id", "spk"),
    "dialogue": ("dialogue", "dialogue_id", "video_id", "conversation"),
    "session": ("session",),
    "position": ("position", "segment"),
    "duration": ("duration",),
    "tags": ("tags",),
    "folds": ("folds",),
    "unimodal": ("unimodal",),
}
SUFFIX = "_features"  # behind a modality in the columns of `mer export --to parquet`
# Modality -> names its features go by elsewhere, bare or with SUFFIX behind.
MODALITIES = {
    "audio": ("audio", "speech", "acoustic"),
    "text": ("text", "language"),
    "vision": ("vision", "video", "visual"),
}
NEARLY = 0.75  # from this ratio of common letters (difflib) a modality is taken for misspelt
MANY_NAMES = 40  # of what was left aside, in one line


def find_columns(path: Path, names: Sequence[str], options: ImportOptions) -> dict[str, str]:
    """Which column holds which field: the one that the user named, else one of a usual name.

    Args:
        path: The file, for messages.
        names: Its columns.
        options: What the user says of the file.

    Returns:
        Field of the store -> column; `id` is always among them.

    Raises:
        DataError: The user named a field or column that does not exist, or nothing names the
            utterances.
    """
    for field, name in options.columns.items():
        if field not in FIELDS:
            raise DataError(
                f"--column {shown(field, 40)}={shown(name, 40)}: no such field"
                f"{did_you_mean(field, FIELDS)}; fields are {', '.join(FIELDS)}"
            )
        if name not in names:
            raise DataError(
                f"{path}: no column '{shown(name, 40)}' for {field}{did_you_mean(name, names)}; it "
                f"has {listed(names)}"
            )
    found = _usual(FIELDS, names) | dict(options.columns)
    if "id" not in found:
        raise DataError(
            f"{path}: no column that names the utterances; say which with --column id=NAME (it has "
            f"{listed(names)})"
        )
    return found


def find_features(
    path: Path, names: Sequence[str], options: ImportOptions, header: Header | None = None
) -> dict[str, str]:
    """Which arrays are the features of which modality: those that the user named, else those that
    the exported header names, else those with usual names.

    Args:
        path: The file, for messages.
        names: Its arrays (or columns, or folders) of a shape that features have.
        options: What the user says of the file.
        header: That of the store which was exported to this file, if one was.

    Returns:
        Modality -> array; audio, text and vision first.

    Raises:
        DataError: The user named an array that does not exist, or there are no features.
    """
    for modality, name in options.features.items():
        _check_spelling(modality, name)
        if name not in names:
            raise DataError(
                f"{path}: no features '{shown(name, 40)}' for {modality}"
                f"{did_you_mean(name, names)}; it has {listed(names) or 'none'}"
            )
    wanted: dict[str, Sequence[str]] = dict(MODALITIES)
    for name in names:
        feature_set = name.removesuffix(SUFFIX)
        modality, dot, _ = feature_set.partition(".")
        if dot and modality in MODALITIES and is_modality(feature_set):
            wanted[feature_set] = (feature_set,)
    if header is not None:
        wanted = {modality: (modality,) for modality in header.modalities}
    spellings = {modality: _with_suffix(words) for modality, words in wanted.items()}
    found = dict(options.features) or _usual(spellings, names)
    if not found:
        raise DataError(
            f"{path}: no features found; name them with --feature audio=NAME (it has "
            f"{listed(names) or 'none'})"
        )
    return {modality: found[modality] for modality in (*MODALITIES, *found) if modality in found}


def _check_spelling(modality: str, name: str) -> None:
    """Raise DataError for a modality that is nearly one of the known ones. Others may be called as
    one likes, `eeg` or `text2`.
    """
    word = modality.partition(".")[0]
    near = get_close_matches(word.casefold(), list(MODALITIES), n=1, cutoff=NEARLY)
    if near and word.isalpha() and word not in MODALITIES:
        raise DataError(
            f"--feature {shown(modality, 40)}={shown(name, 40)}: no such modality (did you mean "
            f"'{near[0]}'?)"
        )


def find_layers(names: Iterable[str], modalities: Iterable[str]) -> dict[str, str]:
    """Modality -> the array of its layer means, for those among `modalities` that have one."""
    wanted = {modality: layers_of(modality) for modality in modalities}
    there = set(names)
    return {modality: name for modality, name in wanted.items() if name in there}


def _usual(wanted: Mapping[str, Iterable[str]], names: Sequence[str]) -> dict[str, str]:
    """Wanted name -> the first of its usual names that the file has; without one it is left out."""
    found = {}
    for what, usual in wanted.items():
        name = next((word for word in usual if word in names), None)
        if name is not None:
            found[what] = name
    return found


def _with_suffix(words: Sequence[str]) -> list[str]:
    """Each word, and behind it the same with SUFFIX, as `mer export --to parquet` writes."""
    out = []
    for word in words:
        out += [word, f"{word}{SUFFIX}"]
    return out


def account(
    names: Mapping[str, str],
    features: Mapping[str, str],
    task: str,
    there: Mapping[str, str],
    folders: Iterable[str] = (),
) -> str:
    """One line for the user on what became of a file.

    Args:
        names: Field of the store -> column it was read from.
        features: Modality -> array it was read from.
        task: Of which only the label or only the targets are used.
        there: Every column and array of the file -> what it is.
        folders: Those that features lie in, where the columns are of a table beside them: a folder
            may be called like a column.

    Returns:
        What was used as what, then what was left aside.
    """
    aside: set[str] = set()
    if task == "single":
        aside = {"targets"}
    elif "targets" in names:
        aside = {"label"}
    used = {f"{field} = {name}": name for field, name in names.items() if field not in aside}
    used |= {f"{modality} features = {name}": name for modality, name in features.items()}
    rest = {name: what for name, what in there.items() if name not in used.values()}
    for folder in folders:
        if folder not in features.values():
            rest[folder] = "(column and folder)" if folder in rest else "(folder)"
    line = ", ".join(used)
    return f"{line}; not used: {aside_line(rest)}" if rest else line


def aside_line(left_aside: Mapping[str, str]) -> str:
    """What was left aside: every name with what it is, up to a number that can be read."""
    parts = [f"{shown(name, 40)} {what}".strip() for name, what in left_aside.items()]
    more = f" and {len(parts) - MANY_NAMES:,} more" if len(parts) > MANY_NAMES else ""
    return ", ".join(parts[:MANY_NAMES]) + more
