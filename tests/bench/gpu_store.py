"""A store of random features of MELD's shape that a model can learn from, for `tests.bench.gpu`."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mer.pipeline.store import ModalityInfo, ShardWriter, build_index

from tests.bench.store import lengths_like_meld

LABELS = ("neutral", "joy", "surprise", "anger", "sadness", "disgust", "fear")
HZ = 49.95  # frames of wav2vec2 per second
WORDS_PER_SECOND = HZ / 11
WIDTHS = {"audio": 1024, "text": 1024}
SPLITS = ("train",) * 8 + ("dev", "test")


def make(folder: Path, count: int, *, narrow: bool = False) -> None:
    """`count` utterances in folder / feats.h5; a label shifts the mean of its features."""
    random = np.random.default_rng(0)
    widths = dict.fromkeys(WIDTHS, 8) if narrow else WIDTHS
    seconds = lengths_like_meld(count, random) / HZ
    steps = {
        "audio": np.clip(seconds * HZ, 3, 40 if narrow else 2048).astype(np.int64),
        "text": np.clip(seconds * WORDS_PER_SECOND, 3, 80).astype(np.int64),
    }
    shift = {m: random.standard_normal((len(LABELS), width)) for m, width in widths.items()}
    shard = folder / "feats.shards" / "shard-00000.h5"
    shard.parent.mkdir(parents=True)
    with ShardWriter(shard, widths) as writer:
        for i in range(count):
            features = {}
            for m, width in widths.items():
                noise = random.standard_normal((steps[m][i], width), dtype=np.float32)
                features[m] = noise + 0.3 * shift[m][i % len(LABELS)].astype(np.float32)
            writer.add(str(i), features)
    rows = [
        {
            "id": str(i),
            "split": SPLITS[i // len(LABELS) % len(SPLITS)],
            "dialogue": str(i // 10),
            "label": LABELS[i % len(LABELS)],
        }
        for i in range(count)
    ]
    build_index(
        folder / "feats.h5",
        [shard],
        rows,
        dataset="bench",
        task="single",
        labels=LABELS,
        modalities={
            "audio": ModalityInfo(widths["audio"], HZ),
            "text": ModalityInfo(widths["text"], None),
        },
    )
