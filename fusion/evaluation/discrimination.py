"""Whether a model that answers how much modalities disagree tells utterances whose modalities were
re-paired.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
import torch

from mer.fusion import infer
from mer.fusion.batch import Batch
from mer.fusion.evaluation.answering import part_of
from mer.fusion.losses.supervised import same_emotion
from mer.fusion.measures import metrics
from mer.fusion.models.base import FusionModel
from mer.fusion.runs.checkpoint import Run
from mer.fusion.runs.prediction_table import Predicted
from mer.fusion.runs.records import TwoWay
from mer.pipeline.store import FeatureStore

PAIR_SEED = 0


def discrimination(
    run: Run, p: Predicted, store: FeatureStore, device: torch.device | str
) -> dict[str, TwoWay]:
    """ED on re-paired utterances: for every pair of modalities (m, n), m of utterance i with n of
    another utterance j, one j of the same emotion and one of another, drawn with a fixed seed. The
    reference is whether the labels differ.

    The two classes are unequal, so it is reported as AUC and as balanced accuracy at 0.5, never as
    accuracy.
    """
    spec = run.spec
    place = {name: row for row, name in enumerate(store.table()["id"].to_pylist())}
    rows = np.array([place[name] for name in p.table["id"].to_pylist()], dtype=np.int64)
    # pairs of two utterances stand in no dialogue
    part = part_of(run, store, rows, device, pool=np.zeros(0, dtype=np.int64))
    same, _ = same_emotion(torch.from_numpy(spec.scaled(p.true)), task=spec.task)
    first, second, differs = re_paired(same.numpy(), np.random.default_rng(PAIR_SEED))
    model = run.model(device)
    found = {}
    for m, n in combinations(spec.modalities, 2):
        keep = (part.n[m][first] > 0) & (part.n[n][second] > 0)
        i, j, truth = first[keep], second[keep], differs[keep]
        said = []
        with torch.inference_mode():
            for at in range(0, len(i), infer.BATCH):
                a, b = (part.batch(index[at : at + infer.BATCH]) for index in (i, j))
                said.append(_disagreement(model, _mixed(a, b, m, n)))
        score = np.concatenate(said) if said else np.zeros(0)
        found[f"{m}-{n}"] = TwoWay(
            pairs=len(i),
            auc=metrics.auc(truth, score),
            balanced_accuracy=metrics.balanced_accuracy(truth, score > 0.5),
        )
    return found


def _disagreement(model: FusionModel, batch: Batch) -> np.ndarray:
    """(B,) of a model that answers it."""
    answer = model(batch).disagreement
    assert answer is not None
    return answer.float().cpu().numpy()


def re_paired(
    same: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(i, j, differs): for every i one other row of the same emotion and one of another, where
    there are such rows.
    """
    first, second, differs = [], [], []
    for i, row in enumerate(same):
        for kind, wanted in ((row, False), (~row, True)):
            others = np.flatnonzero(kind)
            others = others[others != i]
            if len(others):
                first.append(i)
                second.append(int(rng.choice(others)))
                differs.append(wanted)
    return (
        np.array(first, dtype=np.int64),
        np.array(second, dtype=np.int64),
        np.array(differs, dtype=bool),
    )


def _mixed(a: Batch, b: Batch, m: str, n: str) -> Batch:
    """Modality m of batch a with modality n of batch b; other modalities and context absent."""
    x = {k: v[:, :1] * 0 for k, v in a.x.items()} | {m: a.x[m], n: b.x[n]}
    lengths = {k: v * 0 for k, v in a.lengths.items()} | {m: a.lengths[m], n: b.lengths[n]}
    return Batch(x, lengths, a.target, a.row)
