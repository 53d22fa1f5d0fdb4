"""Small stores made in the tests, with a signal planted where a test wants one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from mer.pipeline.store import FeatureStore, ModalityInfo, ShardWriter, build_index

LABELS = ("calm", "glad", "sad")
WIDTH = {"audio": 8, "text": 6}


def make_store(
    folder: Path,
    *,
    n: int = 120,
    signal: float = 3.0,
    task: str = "single",
    seed: int = 0,
    dataset: str = "toy",
    splits: bool = True,
    groups: bool = True,
    unlabelled: int = 0,
    modalities: dict[str, int] = WIDTH,
    labels=LABELS,
    shuffled_labels: bool = False,
    rate: float | None = 50.0,
    name: str = "feats.h5",
    means: Mapping[str, int] = {},
    stacks: Mapping[str, Sequence[int]] = {},
    absent: Mapping[str, Sequence[int]] = {},
    vectors: Sequence[str] = (),
    targets: Sequence[str] = (),
    prefix: str = "u",
    ungrouped: Sequence[int] = (),
) -> FeatureStore:
    """`n` utterances in dialogues of 4 and 6 speakers; audio carries the label with strength
    `signal`, text half of it.

    Dialogues go train, train, train, dev, test in turn. The first `unlabelled` rows have no label.
    `means`: layer means of so many layers, the signal strongest in the second; `stacks`: layers
    side by side, each as wide as `modalities` says; `absent`: rows without a modality; `vectors`:
    modalities of one step each; `targets`: several, rated from 1 to 7, that rise and fall with the
    class in turn; `prefix`: of every id; `ungrouped`: rows without a dialogue, speaker and session.
    """
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 3
    rng.shuffle(y)
    folder.mkdir(parents=True, exist_ok=True)
    centre = {
        m: np.random.default_rng(k).normal(size=(3, w))
        for k, (m, w) in enumerate(modalities.items())
    }
    shard = folder / f"{Path(name).stem}.shards" / "shard-00000.h5"
    shard.parent.mkdir(exist_ok=True)
    dims = {m: w * max(len(stacks.get(m, ())), 1) for m, w in modalities.items()}
    with ShardWriter(shard, dims, layers=means) as writer:
        for i in range(n):
            features = {}
            for k, (m, width) in enumerate(modalities.items()):
                steps = int(rng.integers(1, 24))
                # joined feature sets have the steps of their modality
                stem = m.partition(".")[0]
                steps = len(features[stem]) if stem != m and stem in features else steps
                steps = 1 if m in vectors else steps
                planted = signal / (k + 1) * centre[m][y[i]]
                layers = []
                for layer in range(max(len(stacks.get(m, ())), 1)):
                    layers.append(rng.normal(size=(steps, width)) + planted * (layer < 2))
                features[m] = np.concatenate(layers, axis=1)
            features = {m: x for m, x in features.items() if i not in absent.get(m, ())}
            kept = {}
            for k, (m, count) in enumerate(means.items()):
                if m in features:
                    share = np.where(np.arange(count) == 1, 1.0, 0.1)[:, None]
                    noise = 0.5 * rng.normal(size=(count, modalities[m]))
                    kept[m] = noise + share * signal / (k + 1) * centre[m][y[i]]
            writer.add(f"{prefix}{i:03d}", features, duration=1.0, layer_means=kept)
    shown = rng.permutation(y) if shuffled_labels else y
    rows = []
    for i in range(n):
        row = {
            "id": f"{prefix}{i:03d}",
            "split": ("train", "train", "train", "dev", "test")[(i // 4) % 5] if splits else "",
        }
        if groups and i not in ungrouped:
            row |= {
                "dialogue": f"d{i // 4:02d}",
                "speaker": f"s{i // 4 % 6}",
                "session": f"S{i // 4 % 3}",
            }
        if i >= unlabelled:
            row["label"] = labels[shown[i]] if task == "single" else None
            row["targets"] = {
                "single": None,
                "multi": [float(shown[i] != 1), float(shown[i] == 2)],
                "regression": [float(shown[i]) - 1],
            }[task]
            if targets:
                rise = 2.0 * (float(shown[i]) - 1)
                row["targets"] = [4 + rise * (-1) ** k for k in range(len(targets))]
        rows.append(row)
    names = {"single": labels, "multi": labels[:2], "regression": ("valence",)}[task]
    names = tuple(targets) or names
    info = {
        m: ModalityInfo(
            w,
            rate if m == "audio" else None,
            encoder=f"{m}-encoder",
            layers=means.get(m, 0),
            stack=tuple(stacks.get(m, ())),
        )
        for m, w in dims.items()
    }
    return build_index(
        folder / name, [shard], rows, dataset=dataset, task=task, labels=names, modalities=info
    )


def with_rows(
    store: FeatureStore, rows: Sequence[Mapping], path: Path | None = None, **told
) -> FeatureStore:
    """The features of a store under a head with other rows, by default in the place of its own;
    `told` is what else the head says otherwise.
    """
    kept = ("dataset", "task", "labels", "modalities")
    said = {name: getattr(store.header, name) for name in kept} | told
    return build_index(path or store.path, [one.path for one in store.shards], rows, **said)


def quiet(_: str) -> None:
    pass
