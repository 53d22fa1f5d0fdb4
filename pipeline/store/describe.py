"""What is in a store, for people (`mer inspect`) and machines (`--json`)."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict

import numpy as np

from mer.pipeline.runtime.terminal import escape
from mer.pipeline.runtime.terms import SPLITS
from mer.pipeline.store.reader import FeatureStore


def describe(store: FeatureStore) -> dict:
    """Header, counts, sizes, length statistics and suspicious rows.

    Reads the means, not the frames.
    """
    header, table = store.header, store.table()
    splits: dict[str, dict] = {}
    for split, label in zip(table["split"].to_pylist(), table["label"].to_pylist(), strict=True):
        entry = splits.setdefault(split, {"utterances": 0, "labels": Counter()})
        entry["utterances"] += 1
        if label is not None:
            entry["labels"][label] += 1
    splits = dict(sorted(splits.items(), key=lambda item: SPLITS.index(item[0])))
    for split, entry in splits.items():
        counts = entry["labels"]
        known = [name for name in header.labels if name in counts]
        entry["labels"] = {
            name: counts[name] for name in [*known, *sorted(counts.keys() - set(known))]
        }
        targets = [
            t
            for s, t in zip(table["split"].to_pylist(), table["targets"].to_pylist(), strict=True)
            if s == split and t is not None
        ]
        if targets:
            entry["targets"] = _targets(np.array(targets, np.float64), header.task, header.labels)
    duration = table["duration"].to_numpy()
    return {
        "path": str(store.path),
        "version": header.version,
        "dataset": header.dataset,
        "task": header.task,
        "labels": list(header.labels),
        "language": header.language,
        "fingerprint": header.fingerprint,
        "utterances": len(store),
        "hours": round(float(np.nansum(duration)) / 3600, 4),
        "unknown_durations": int(np.isnan(duration).sum()),
        "splits": splits,
        "modalities": {
            m: {**asdict(header.modalities[m]), **_steps(store, m)} for m in header.modalities
        },
        "shards": len(store.shards),
        "bytes": store.path.stat().st_size + sum(r.bytes for r in store.shards),
        "untrained": [m for m, info in header.modalities.items() if not info.trained],
        "recipe": header.recipe,
        "provenance": header.provenance,
    }


def render(d: dict) -> str:
    """The description as text, a screen of it."""
    lines = [
        f"{d['path']}: {d['dataset']}, {d['utterances']:,} utterances, {d['hours']:.2f} h"
        + (f" ({d['unknown_durations']:,} of unknown duration)" if d["unknown_durations"] else ""),
        f"  {d['task']} task, {len(d['labels'])} labels: {', '.join(d['labels'])}; language "
        f"{d['language']}; format version {d['version']}",
        f"  {d['bytes'] / 1e6:,.1f} MB in {d['shards']} shard{'s' * (d['shards'] != 1)}; key "
        f"{d['fingerprint'] or 'none (imported)'}",
    ]
    for split, entry in d["splits"].items():
        counts = ", ".join(f"{name} {n:,}" for name, n in entry["labels"].items())
        if "targets" in entry:
            counts = ", ".join(
                filter(
                    None,
                    [counts, *(f"{name} {value:g}" for name, value in entry["targets"].items())],
                )
            )
        lines.append(f"  {split or 'no split':<9}{entry['utterances']:>9,}  {counts}")
    for name, m in d["modalities"].items():
        rate = f"{m['frame_rate']:g} Hz" if m["frame_rate"] else "no frame rate"
        said = [
            m["encoder"] or "encoder unknown",
            m["revision"] and f"@{m['revision']}",
            m["layer"] and f"layer {m['layer']}",
        ]
        encoder = " ".join(filter(None, said))
        lines.append(f"  {name}: {m['dim']} x {m['dtype']}, {rate}, {encoder}")
        lines.append(
            f"    steps: {', '.join(f'{name} {value:g}' for name, value in m['length'].items())}, "
            f"total {m['steps']:,}"
        )
        widest = max((n for _, _, n in m["histogram"]), default=0)
        lines += [
            f"    {lo:>7}..{hi:<7} {n:>7,} {'#' * round(30 * n / widest)}"
            for lo, hi, n in m["histogram"]
            if n
        ]
        odd = [
            f"{m[key]:,} {what}"
            for key, what in (
                ("absent", "absent"),
                ("nan_rows", "with NaN"),
                ("zero_rows", "all zero"),
            )
            if m[key]
        ]
        lines.append(f"    rows: {', '.join(odd) if odd else 'none absent, with NaN or all zero'}")
    if d["untrained"]:
        lines.append(
            f"  WARNING: {' and '.join(d['untrained'])} made by untrained encoders; they carry no "
            "knowledge of speech or language"
        )
    return "\n".join(map(escape, lines))


def _targets(targets: np.ndarray, task: str, labels: list[str]) -> dict[str, float]:
    """multi: positives a label; regression: mean and range."""
    if task == "multi":
        return dict(zip(labels, targets.sum(axis=0).tolist(), strict=True))
    return {
        "mean": round(float(targets.mean()), 4),
        "min": float(targets.min()),
        "max": float(targets.max()),
    }


def _steps(store: FeatureStore, modality: str) -> dict:
    lengths = store.lengths(modality)
    present = lengths[lengths > 0]
    pooled = store.pooled(modality)
    suspects = np.flatnonzero((lengths > 0) & ~pooled.any(axis=1)).tolist()
    zero = [row for row in suspects if not store.features(modality, row, "stored").any()]
    some = present if len(present) else np.zeros(1, np.int64)
    return {
        "steps": int(lengths.sum()),
        "absent": int((lengths == 0).sum()),
        "zero_rows": len(zero),
        "nan_rows": int((~np.isfinite(pooled)).any(axis=1).sum()),
        "length": {
            "min": int(some.min()),
            "median": float(np.median(some)),
            "mean": round(float(some.mean()), 2),
            "p95": float(np.percentile(some, 95)),
            "max": int(some.max()),
        },
        "histogram": _histogram(present),
    }


def _histogram(lengths: np.ndarray) -> list[tuple[int, int, int]]:
    """(from, to, count) with bounds 1, 2..3, 4..7, 8..15 ...: lengths of speech spread over
    decades.
    """
    if not len(lengths):
        return []
    bins = np.floor(np.log2(lengths)).astype(int)
    counts = np.bincount(bins)
    return [(1 << b, (2 << b) - 1, int(n)) for b, n in enumerate(counts) if b >= bins.min()]
