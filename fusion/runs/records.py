"""What the JSON files of a run folder hold: run.json, split.json, log.jsonl, metrics.json, and the
progress in last.safetensors.

Each is a frozen dataclass, built from its file by `files.read_json` and written by `typed.tree`;
the names of its fields are the keys of the file. A field with a default is one that
files of an earlier mer may lack. A figure that is undefined is None.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from mer.fusion.batch import DataSpec
from mer.fusion.data.splits import FOLDS, PUBLISHED, Fold
from mer.fusion.measures.calibration import Scaling
from mer.fusion.measures.metrics import Measures, jsonable
from mer.fusion.runs.ledger import Seen
from mer.fusion.runtime.typed import added, convert, optional, rest, tree

T = TypeVar("T")
RUN_FORMAT, RUN_VERSION = "mer-run", 1
Task = Literal["single", "multi", "regression"]  # those of pipeline.runtime.terms.TASKS
Figures = dict[str, float | None]
Confusion = tuple[tuple[float, ...], ...]  # one row per reference class


def defined(record: T) -> T:
    """`record` with None for every figure that is NaN or infinite, and without NumPy's types."""
    return convert(type(record), jsonable(tree(record)))


# ---- run.json


@dataclass(frozen=True)
class StoredModality:
    """What a run remembers of one modality of its store."""

    dim: int
    frame_rate: float | None = None  # steps per second
    encoder: str | None = None
    revision: str | None = None
    layer: str | None = None
    trained: bool | None = None
    layers: int = added(0)  # how many layer means each utterance has
    stack: tuple[int, ...] = added(())  # which layers lie side by side in a step


@dataclass(frozen=True)
class Origin:
    """Which store a modality of a joined store came from.

    `store` is its head file, `modality` the name there; `recipe` is what its recipe says of this
    modality and of all, {} where the features were imported.
    """

    store: str
    modality: str
    recipe: dict[str, Any]


@dataclass(frozen=True)
class StoreInfo:
    """What a run remembers of its store. A joined one has no recipe, but `origins` of every
    modality (None: another kind of store, or a run of an earlier mer).
    """

    dataset: str
    task: Task
    labels: tuple[str, ...]
    language: str
    modalities: dict[str, StoredModality]
    recipe: dict[str, Any]
    fingerprint: str | None = None
    origins: dict[str, Origin] | None = optional()


@dataclass(frozen=True, kw_only=True)
class RunInfo:
    """What run.json says of any run. `identity` names the command that asked for it, `store_key`
    the store's features, labels and splits (checkpoint.py), `turns_key` the order of its turns
    (context.py; None: the run sees each utterance alone); `date` is when it began, `command` what
    was typed then (None: the Python API, or an earlier mer).
    """

    format: str = RUN_FORMAT
    version: int = RUN_VERSION
    kind: str
    identity: str
    store_key: str
    model: str
    features: str
    store: StoreInfo
    finished: bool
    turns_key: str | None = optional()
    date: str | None = optional()
    command: str | None = optional()
    versions: dict[str, str] | None = optional()


@dataclass(frozen=True, kw_only=True)
class GroupInfo(RunInfo):
    """A run over seeds or folds: `children` are the folders of its runs."""

    kind: Literal["group"] = "group"
    seeds: int
    folds: str | None
    children: tuple[str, ...]

    def fault(self) -> str | None:
        """What cannot be, although each value is of its type; None: nothing."""
        names = self.children
        odd = [c for c in names if c in ("", ".", "..") or "/" in c or "\0" in c]
        odd += [c for c, count in Counter(names).items() if count > 1]
        return f"children are {odd or 'none'}" if odd or not names else None


@dataclass(frozen=True, kw_only=True)
class SingleInfo(RunInfo):
    """One training, begun."""

    kind: Literal["single"] = "single"
    seed: int
    select_metric: str
    fold: Fold | None
    spec: DataSpec
    config_sha256: str | None = None
    split_sha256: str | None = optional()
    counts: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    measures: Measures | None = optional()
    label_counts: dict[str, int] | None = optional()
    parameters: int | None = None
    device: str = ""

    def fault(self) -> str | None:
        """What cannot be, although each value is of its type; None: nothing."""
        spec, store = self.spec, self.store
        named = spec.modalities.keys() == spec.frame_rates.keys() >= spec.sets.keys()
        if not (named and spec.modalities and all(map(self._is_read, spec.modalities))):
            return "spec and store differ in their modalities"
        if (spec.task, spec.labels) != (store.task, store.labels):
            return "spec and store differ in their task or labels"
        if store.origins is not None and not store.origins.keys() >= spec.sources.keys():
            return "store.origins lacks a modality that the model reads"
        if self.fold is not None and self.fold.by not in (*FOLDS, PUBLISHED):
            return f"fold.by is {self.fold.by}, expected one of {', '.join((*FOLDS, PUBLISHED))}"
        return None

    def _is_read(self, modality: str) -> bool:
        """Whether the store has what the model reads of a modality, of these widths and layers."""
        sets = self.spec.read_from(modality)
        for one in sets:
            stored = self.store.modalities.get(one.name)
            if stored is None or one.width < 1:
                return False
            if one.stack not in ((), stored.stack) or one.means not in (0, stored.layers):
                return False
            if stored.dim != one.width * max(len(one.stack), 1):
                return False
        return self.spec.modalities[modality] == sum(one.width for one in sets)


@dataclass(frozen=True, kw_only=True)
class FinishedInfo(SingleInfo):
    """One training, finished: the epoch that dev chose, its dev figures, and what the files of the
    run hash to.
    """

    best_epoch: int
    epochs: int | None = None
    dev: Figures
    thresholds: tuple[float, ...] | None
    utterances_per_second: float | None = None
    model_sha256: str | None = optional()
    log_sha256: str | None = optional()
    scaling: Scaling | None = optional()  # by which the probabilities of the run are calibrated

    def fault(self) -> str | None:
        """What cannot be, although each value is of its type; None: nothing."""
        labels, task = self.spec.labels, self.spec.task
        if task == "multi" and len(self.thresholds or ()) != len(labels):
            return "thresholds are not one for each label"
        if self.scaling is not None and not 0 < self.scaling.temperature < math.inf:
            return "scaling.temperature is not above 0"
        return super().fault()


def run_info(value: dict[str, Any]) -> RunInfo:
    """The record of a run.json.

    Raises:
        ValueError: It is not one; says where and what.
    """
    info: GroupInfo | SingleInfo
    if value.get("kind") == "group":
        info = convert(GroupInfo, value)
    else:
        info = convert(FinishedInfo if value.get("finished") is True else SingleInfo, value)
    if found := info.fault():
        raise ValueError(found)
    return info


# ---- split.json, log.jsonl, last.safetensors


@dataclass(frozen=True)
class SplitIds:
    """Ids of the rows that trained and that chose."""

    train: tuple[str, ...]
    dev: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """One line of log.jsonl: `train` has every loss term before its weight, `dev` the figures."""

    epoch: int
    step: int | None = optional()
    lr: float | None = optional()
    gradient_norm: float | None = optional()
    train: Figures
    diagnostics: Figures = field(default_factory=dict)
    seconds: float
    data_seconds: float | None = optional()  # of `seconds`, those that went into waiting for data
    # weight of every layer that is mixed, at the end of the epoch: by feature set, then by layer
    layers: dict[str, Figures] | None = optional()
    dev: Figures


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a training has come. `best_rank` orders epochs by dev; `best` are the dev figures of
    the best one.
    """

    epoch: int
    step: int
    best_epoch: int
    best_rank: tuple[float, ...]
    best: Figures
    thresholds: tuple[float, ...] | None
    log: tuple[Epoch, ...]
    cooling: int = added(0)  # the epoch after which the learning rate falls to 0; 0: not yet
    scaling: Scaling | None = optional()  # of the best epoch
    identity: str | None = optional()
    model_sha256: str | None = optional()


# ---- metrics.json


@dataclass(frozen=True)
class Bootstrap:
    """What the intervals resample."""

    unit: str
    groups: int
    resamples: int | None = None
    level: float | None = None


@dataclass(frozen=True)
class ClassScores:
    """Precision, recall and F1 of one class, and how many references it has."""

    precision: float | None
    recall: float | None
    f1: float | None
    support: float


@dataclass(frozen=True)
class Scores:
    """The metrics of a task. `figures` are those that are one number, by name; they stand beside
    the other keys in the file.
    """

    n: float | None = optional()  # utterances
    figures: Figures = rest()
    per_class: dict[str, ClassScores] | None = optional()
    confusion: Confusion | None = optional()

    def __getitem__(self, name: str) -> float | None:
        return self.figures[name]


@dataclass(frozen=True, kw_only=True)
class Subset:
    """The model on the `n` utterances where unimodal heads agree, or disagree: `share` of the `of`
    that have two modalities or more, so that two heads answer (None: an earlier mer, where heads
    answered of what an utterance lacks, too). Of a group, `without` counts the runs that have no
    such utterances.
    """

    n: float | None = optional()
    of: float | None = optional()
    share: float | None
    figures: Figures = rest()
    without: int | None = optional()

    def __getitem__(self, name: str) -> float | None:
        return self.figures[name]


@dataclass(frozen=True)
class TwoWay:
    """How well disagreement tells two kinds of utterances apart; `pairs`, or `n` that disagree, and
    where it is told `of` how many.
    """

    pairs: float | None = optional()
    n: float | None = optional()
    of: float | None = optional()
    auc: float | None = None
    balanced_accuracy: float | None = None


@dataclass(frozen=True, kw_only=True)
class HeadScores:
    """A unimodal head on the `n` labelled rows that have its modality; `without` lack it (None: an
    earlier mer, which scored it on all rows). Of a group, `runs_without` counts the runs that have
    no such row.
    """

    n: float | None = optional()
    without: float | None = optional()
    figures: Figures = rest()
    runs_without: float | None = optional()

    def __getitem__(self, name: str) -> float | None:
        return self.figures[name]


@dataclass(frozen=True, kw_only=True)
class OwnScores:
    """A unimodal head against the labels of its own modality, on the `n` labelled rows that have
    one, and the modality; `without` lack either. Of a group, `runs_without` counts the runs that
    have no such row.
    """

    n: float
    without: float
    figures: Figures = rest()
    runs_without: float | None = optional()

    def __getitem__(self, name: str) -> float | None:
        return self.figures[name]


@dataclass(frozen=True)
class Calibration:
    """How far the probability of the chosen class is from how often it is right; `uncalibrated`
    without the temperature that was fitted on dev, where there is one.
    """

    ece: float | None
    uncalibrated: float | None = optional()


@dataclass(frozen=True)
class SoftScores:
    """How far the probabilities are from the shares of the raters: `js` is the mean Jensen-Shannon
    divergence, in bits, over `n` rows, of which `ties` have no label, as several classes have most
    votes.
    """

    n: float
    ties: float
    js: float | None


@dataclass(frozen=True)
class Mapped:
    """How the labels of another corpus were read (`mer.fusion.evaluation.crosscorpus`).

    `labels` maps those that are scored to the run's; `left_out` counts the rows of each other
    label, `unmet` the answers of each of the run's labels that no label stands for, which are wrong
    (of a group the mean over its runs).
    """

    labels: dict[str, str]
    left_out: dict[str, int]
    unmet: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """What metrics.json says of any run."""

    format: str = "mer-metrics"
    version: int = 1
    kind: str
    run: str = ""
    model: str
    dataset: str
    split: str
    task: Task
    labels: tuple[str, ...]
    select_metric: str
    modalities: tuple[str, ...] = ()
    untrained_encoders: tuple[str, ...]
    unlabelled: int
    metrics: Scores
    interval: dict[str, tuple[float | None, ...] | None]  # 95 %, by figure
    bootstrap: Bootstrap
    unseen: tuple[str, ...] | None = optional()  # labels that nobody in training had
    context: str | None = optional()  # turns that utterances were seen with; None: each alone
    measures: Measures | None = optional()
    unimodal: dict[str, HeadScores] | None = optional()
    # None: the store has no unimodal labels, or the model no unimodal heads
    own_labels: dict[str, OwnScores] | None = optional()
    heads_agree: Subset | None = optional()
    heads_disagree: Subset | None = optional()
    discrimination: dict[str, TwoWay] | None = optional()
    inconsistent: TwoWay | None = optional()
    # utterances whose unimodal labels differ, as ED tells them, and the heads by their answers
    unlike_labels: TwoWay | None = optional()
    unlike_heads: TwoWay | None = optional()
    attention: Figures | None = optional()
    calibration: Calibration | None = optional()
    soft: SoftScores | None = optional()  # None: nobody knows how raters divided
    mapped: Mapped | None = optional()  # None: the labels are the run's own
    predictions_sha256: str | None = optional()


@dataclass(frozen=True, kw_only=True)
class SingleMetrics(Metrics):
    """The figures of one training."""

    kind: Literal["single"] = "single"
    fold: Fold | None = None
    seed: int | None = None
    thresholds: tuple[float, ...] | None = None
    # runs of which the predictions are the mean, where there are several
    members: tuple[str, ...] | None = optional()


@dataclass(frozen=True, kw_only=True)
class GroupRow:
    """One run of a group."""

    run: str
    fold: str | None = None
    seed: int | None = None
    best_epoch: int
    metrics: Figures


@dataclass(frozen=True, kw_only=True)
class GroupMetrics(Metrics):
    """Figures over seeds or folds: `metrics` are means, `sd` sample deviations; `pooled`, with
    folds, is of all held-out predictions together; `confusion` is the mean over seeds; `untested`
    counts rows that no fold tests, as `mer.fusion.data.splits.untested` does (None: there are
    none).
    """

    kind: Literal["group"] = "group"
    over: str
    seeds: tuple[int, ...]
    folds: tuple[str, ...]
    n: int
    sd: Figures
    pooled: Figures | None
    runs: tuple[GroupRow, ...]
    confusion: Confusion | None = optional()
    untested: dict[str, int] | None = optional()


# ---- Comparisons


@dataclass(frozen=True)
class Difference:
    """One figure of both runs, and the second minus the first with its 95 % interval and the p
    value of no difference; `p_holm` by Holm over all figures of the comparison.
    """

    first: float | None
    second: float | None
    difference: float | None
    interval: tuple[float | None, ...]
    p: float | None = None
    p_holm: float | None = None


@dataclass(frozen=True)
class Comparison:
    """What `mer compare` finds; `verdict` is of `metric`: better, worse or undecided. `same`: what
    both are where they are one (`identity.same`); `shared`: how many trainings are in both of two.
    """

    first: str
    second: str
    n: int
    seeds: tuple[int, ...]
    metric: str
    bootstrap: Bootstrap
    metrics: dict[str, Difference]
    verdict: str
    seen: Seen
    contexts: tuple[str, ...] = ("none", "none")  # the kind of conversation context of each
    same: str | None = optional()
    shared: int | None = optional()
