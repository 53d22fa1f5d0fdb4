"""What is known about each corpus, one TOML each: labels and their order, expected counts,
known-bad clips, licence, encoders.

The TOMLs lie in `manifests/`: adding a corpus is one of them, one file in `pipeline/datasets/` and
one line in its registry (docs/adding.md).
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from mer import manifests
from mer.pipeline.datasets.pattern import Pattern
from mer.pipeline.errors import DataError
from mer.pipeline.runtime.terminal import did_you_mean, shown

HERE = Path(manifests.__file__).parent
# for a corpus in English that names none (docs/extraction.md says why these)
ENGLISH_ENCODERS = {"audio": "facebook/wav2vec2-large-robust", "text": "roberta-large"}
ENGLISH_LAYERS = {"audio": "12"}  # of those encoders; of the others the last
# for one in another language that names none: checkpoints that were trained on many
OTHER_ENCODERS = {"audio": "facebook/wav2vec2-xls-r-300m", "text": "xlm-roberta-base"}
NEEDED = ("audio", "text")  # what every corpus names an encoder for
PARQUET = ".parquet"
LAYER_OF = "_layer"  # ends the keys of [encoders] that say which layer


@dataclass(frozen=True)
class LabelSet:
    """`labels` in the order of their indices.

    `source` maps the corpus's own label to one of `labels`; labels of the corpus that are absent
    from it are dropped rows. `expected[split][label]` are the published or measured counts; empty:
    unknown.
    """

    name: str
    labels: tuple[str, ...]
    task: str = "single"
    source: dict[str, str] = field(default_factory=dict)
    expected: dict[str, dict[str, int]] = field(default_factory=dict)
    groups: dict[str, int] = field(default_factory=dict)  # expected utterances of each session
    note: str = ""
    # of a corpus by file names: the files that it takes, field -> what the field may hold
    where: dict[str, tuple[str, ...]] = field(default_factory=dict)
    # of a corpus with a table: the column that holds these labels, or one for each target
    columns: tuple[str, ...] = ()
    language: str = ""  # where it is not the corpus's


@dataclass(frozen=True)
class FileRules:
    """What the names of a corpus's files say (mer.pipeline.datasets.filenames).

    `id` and `speaker` are templates over the fields of the patterns; without `id` an utterance is
    called as the part of its path that the pattern is held against. `words` spells out what a
    field's codes mean, `texts` is what a sentence's code stands for; a `text` template writes the
    transcript from the fields; `transcripts` is a folder with a `.txt` for each utterance.
    """

    patterns: tuple[Pattern, ...]  # the first that fits a path is taken
    id: str = ""
    speaker: str = "{speaker}"
    label: str = "emotion"  # the field with the label
    where: dict[str, tuple[str, ...]] = field(default_factory=dict)  # as of LabelSet
    words: dict[str, dict[str, str]] = field(default_factory=dict)
    tags: tuple[str, ...] = ()  # fields that become tags, `level=strong`
    text: str = ""
    texts: dict[str, str] = field(default_factory=dict)
    transcripts: str = ""


@dataclass(frozen=True)
class TableRules:
    """The tables that come with a corpus (mer.pipeline.datasets.corpustable): what they are called,
    the template over their columns that gives an utterance's id, and which column holds what.
    """

    names: tuple[str, ...]
    id: str
    header: tuple[str, ...] = ()  # all columns, of a table that may lack the line that names them
    text: str = ""
    speaker: str = ""  # a template, "{show}/{speaker}"
    nobody: tuple[str, ...] = ()  # what it says where the speaker is not known
    dialogue: str = ""
    session: str = ""
    label: str = ""  # where a label set names no column of its own
    split: str = ""
    splits: dict[str, str] = field(default_factory=dict)  # what it says, or a table's name -> split
    missing: str = ""  # template of the path that a missing file is named by
    optional: bool = False  # files without it still have labels, by their names
    unimodal: dict[str, str] = field(default_factory=dict)  # modality -> column of its own label
    scale: tuple[float, ...] = ()  # from where to where its labels go, if they are numbers
    zeros: bool = True  # False: 0001 and 1 are one name, which some programs make of the other


@dataclass(frozen=True)
class CorpusInfo:
    """`encoders` maps a modality to an encoder id, `ID@REVISION` where a revision is known.
    `layers` maps it to the layer of that encoder that is kept, where it is not the last.

    `folds` names the columns of the manifest that leave-one-group-out folds may use, best first.
    `restricted`: do not pass features on without reading `licence`. `fixed_sentences`: the same
    sentences are said in every emotion, so that text carries none.
    """

    name: str
    title: str
    language: str
    licence: str
    obtain: str  # one line: how to get it
    size: str  # what is on disk once it is there
    label_sets: dict[str, LabelSet]  # the first is the default
    encoders: dict[str, str] = field(default_factory=dict)
    layers: dict[str, str] = field(default_factory=dict)
    restricted: bool = True
    built_in: bool = False
    folds: tuple[str, ...] = ()
    known_bad: dict[str, str] = field(default_factory=dict)  # utterance id -> why
    # split or session -> rows of the corpus, labelled or not
    expected_files: dict[str, int] = field(default_factory=dict)
    # split -> ids, where a corpus is split by video and may say so
    videos: dict[str, tuple[str, ...]] = field(default_factory=dict)
    cite: str = ""
    modalities: tuple[str, ...] = ("audio", "text")  # that its release has
    fixed_sentences: bool = False
    files: FileRules | None = None
    table: TableRules | None = None

    @classmethod
    def unknown(cls, name: str, language: str) -> CorpusInfo:
        """A corpus of which nothing is known but its name: somebody's own files."""
        return cls(name, name, language, licence="", obtain="", size="", label_sets={})

    def label_set(self, name: str | None = None) -> LabelSet:
        """The set of that name, by default the first; raises DataError with the known names."""
        if name is None:
            return next(iter(self.label_sets.values()))
        if name not in self.label_sets:
            guess = did_you_mean(name, self.label_sets)
            raise DataError(f"--labels {name}: {self.name} has {', '.join(self.label_sets)}{guess}")
        return self.label_sets[name]


def names() -> tuple[str, ...]:
    return tuple(sorted(path.stem for path in HERE.glob("*.toml")))


def of_own_files(name: str) -> str:
    """How the file or folder that was named in place of a corpus is prepared; empty for a word."""
    path, said = Path(name), shown(name, 80)
    known = f"dataset '{said}' is not known"
    if name and path.is_dir():
        return (
            f"{known}; a folder of yours: `mer prepare folder --root {said} --pattern …` for files "
            "whose names say the label, or `mer prepare table --from FILE` for a list of them"
        )
    if path.is_file() or path.suffix:
        manifest = "; a manifest goes to `mer extract --manifest`" if path.suffix == PARQUET else ""
        return f"{known}; a file of yours: `mer prepare table --from {said}`{manifest}"
    return ""


@cache
def corpus(name: str) -> CorpusInfo:
    """Raises DataError with the known names."""
    path = HERE / f"{name}.toml"
    if name not in names():
        if remedy := of_own_files(name):
            raise DataError(remedy)
        raise DataError(
            f"dataset '{name}' is not known{did_you_mean(name, names())}; known: "
            f"{', '.join(names())}"
        )
    return parse(name, tomllib.loads(path.read_text(encoding="utf-8")))


def parse(name: str, data: dict) -> CorpusInfo:
    """A corpus from its TOML's contents.

    An unknown key is an error: a misspelt one would silently do nothing.
    """
    data = dict(data)
    sets = {key: _label_set(key, value) for key, value in data.pop("labels", {}).items()}
    encoders, layers = _encoders(name, data.pop("encoders", None), data.get("language", ""))
    if "modalities" in data:
        data["modalities"] = tuple(data["modalities"])
    data["folds"] = tuple(data.get("folds", ()))
    data["videos"] = {split: tuple(ids) for split, ids in data.get("videos", {}).items()}
    try:
        for key, read in (("files", _file_rules), ("table", _table_rules)):
            if key in data:
                data[key] = read(data[key])
        return CorpusInfo(
            name=name,
            label_sets=sets,
            encoders=encoders,
            layers=layers,
            **data,
        )
    except TypeError as error:
        raise DataError(f"manifests/{name}.toml: {error}") from None


def _file_rules(data: dict) -> FileRules:
    data = dict(data)
    data["patterns"] = tuple(Pattern(text) for text in data["patterns"])
    data["tags"] = tuple(data.get("tags", ()))
    data["where"] = _allowed(data.get("where", {}))
    return FileRules(**data)


def _table_rules(data: dict) -> TableRules:
    lists = {key: tuple(data.get(key, ())) for key in ("names", "header", "nobody")}
    lists["scale"] = tuple(data.get("scale", ()))
    return TableRules(**{**data, **lists})


def _allowed(where: dict[str, list[str]]) -> dict[str, tuple[str, ...]]:
    return {name: tuple(values) for name, values in where.items()}


def _encoders(
    name: str, data: dict[str, str] | None, language: str
) -> tuple[dict[str, str], dict[str, str]]:
    """Modality → encoder, and → layer, from the table `[encoders]`; without one by language."""
    if data is None:
        if language == "en":
            return dict(ENGLISH_ENCODERS), dict(ENGLISH_LAYERS)
        return dict(OTHER_ENCODERS), {}
    for modality in NEEDED:
        if modality not in data:
            raise DataError(f"manifests/{name}.toml: [encoders] has no {modality}")
    encoders = {key: value for key, value in data.items() if not key.endswith(LAYER_OF)}
    layers = {}
    for key in data.keys() - encoders.keys():
        modality = key.removesuffix(LAYER_OF)
        if modality not in encoders:
            raise DataError(f"manifests/{name}.toml: {key} without an encoder {modality}")
        layers[modality] = data[key]
    if not all(isinstance(value, str) for value in data.values()):
        raise DataError(f"manifests/{name}.toml: an encoder or layer that is no text")
    return encoders, layers


def _label_set(name: str, data: dict) -> LabelSet:
    data = dict(data)
    labels = tuple(data.pop("order"))
    data["columns"] = tuple(data.get("columns", ()))
    data["where"] = _allowed(data.get("where", {}))
    return LabelSet(
        name=name,
        labels=labels,
        source=data.pop("source", {label: label for label in labels}),
        **data,
    )
