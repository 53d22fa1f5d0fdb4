"""What is in a store, for people (`mer inspect`) and machines (`--json`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict

import numpy as np

from mer.pipeline.runtime.terminal import amount, escape, plural
from mer.pipeline.runtime.terms import SPLITS
from mer.pipeline.runtime.unimodal import label_of
from mer.pipeline.store.reader import FeatureStore

BAR_CHARACTERS = 30  # of the longest bar of a histogram
ODD_ROWS = {"absent": "absent", "nan_rows": "with NaN", "zero_rows": "all zero"}


def describe(store: FeatureStore) -> dict:
    """What is in a store, told from its index and its means; the frames are not read.

    Args:
        store: An open store.

    Returns:
        Header, counts, sizes, statistics of lengths and suspicious rows, as JSON has them.

    Raises:
        StoreError: A shard is missing or damaged.
    """
    header, table = store.header, store.table()
    duration = table["duration"].to_numpy()
    modalities = {
        name: {**asdict(info), **_steps(store, name)} for name, info in header.modalities.items()
    }
    members = [store.member(number) for number in range(len(store.members))]
    shards = [record for one in members or [store] for record in one.shards]
    heads = {store.path, *(member.path for member in members)}
    size = sum(path.stat().st_size for path in heads) + sum(record.bytes for record in shards)
    untrained = [name for name, info in header.modalities.items() if not info.trained]
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
        "splits": _splits(store),
        "modalities": modalities,
        "shards": len(shards),
        "members": [
            {"path": str(record.path), "modalities": record.modalities} for record in store.members
        ],
        "bytes": size,
        "untrained": untrained,
        "recipe": header.recipe,
        "provenance": header.provenance,
    }


def _splits(store: FeatureStore) -> dict[str, dict]:
    """For each split that has utterances: how many, how many of each label, and the targets."""
    header, table = store.header, store.table()
    counts: dict[str, int] = Counter()
    labels: dict[str, Counter[str]] = {}
    targets: dict[str, list[list[float]]] = {}
    alone: dict[str, Counter[str]] = {}
    columns = [table[name].to_pylist() for name in ("split", "label", "targets")]
    there = "unimodal" in table.column_names
    columns.append(table["unimodal"].to_pylist() if there else [()] * len(table))
    for split, label, target, entries in zip(*columns, strict=True):
        counts[split] += 1
        labels.setdefault(split, Counter())
        alone.setdefault(split, Counter()).update(label_of(said)[0] for said in entries)
        if label is not None:
            labels[split][label] += 1
        if target is not None:
            targets.setdefault(split, []).append(target)
    splits: dict[str, dict] = {}
    for split in sorted(counts, key=SPLITS.index):
        found = labels[split]
        known = [name for name in header.labels if name in found]
        names = [*known, *sorted(found.keys() - set(known))]
        ordered = {name: found[name] for name in names}
        splits[split] = {"utterances": counts[split], "labels": ordered}
        if alone[split]:
            splits[split]["unimodal"] = dict(alone[split])
        widths = set(map(len, targets.get(split, ())))
        if widths == {len(header.labels)} or (len(widths) == 1 and widths <= {1}):
            values = np.array(targets[split], np.float64)
            splits[split]["targets"] = _targets(values, header.task, header.labels)
    return splits


def render(description: dict) -> str:
    """A description as text, a screen of it.

    Args:
        description: What `describe` returns.

    Returns:
        Lines without control characters.
    """
    d = description
    unknown = d["unknown_durations"]
    hours = f"{d['hours']:.2f} h" + (f" ({unknown:,} of unknown duration)" if unknown else "")
    lines = [
        f"{d['path']}: {d['dataset']}, {plural(d['utterances'], 'utterance')}, {hours}",
        f"  {d['task']} task, {plural(len(d['labels']), 'label')}: {', '.join(d['labels'])}; "
        f"language {d['language']}; format version {d['version']}",
        f"  {amount(d['bytes'])} in {plural(d['shards'], 'shard')}; key "
        f"{d['fingerprint'] or 'none (imported)'}",
    ]
    for member in d["members"]:
        given = [
            here if here == there else f"{here} ({there} there)"
            for here, there in member["modalities"].items()
        ]
        lines.append(f"  joined: {', '.join(given)} from {member['path']}")
    for split, entry in d["splits"].items():
        counts = [f"{name} {n:,}" for name, n in entry["labels"].items()]
        counts += [f"{name} {value:g}" for name, value in entry.get("targets", {}).items()]
        counts += [
            f"{plural(n, 'unimodal label')} of {m}" for m, n in entry.get("unimodal", {}).items()
        ]
        counted = ", ".join(counts)
        lines.append(f"  {split or 'no split':<9}{entry['utterances']:>9,}  {counted}")
    for name, modality in d["modalities"].items():
        lines += _render_modality(name, modality)
    if d["untrained"]:
        lines.append(
            f"  WARNING: {' and '.join(d['untrained'])} made by untrained encoders; they carry no "
            "knowledge of speech or language"
        )
    return "\n".join(map(escape, lines))


def _render_modality(name: str, modality: dict) -> list[str]:
    """The lines about one modality: its encoder, its lengths with a histogram, its odd rows."""
    rate = f"{modality['frame_rate']:g} Hz" if modality["frame_rate"] else "no frame rate"
    words = [
        modality["encoder"] or "encoder unknown",
        modality["revision"] and f"@{modality['revision']}",
        modality["layer"] and f"layer {modality['layer']}",
    ]
    encoder = " ".join(filter(None, words))
    lengths = ", ".join(f"{what} {value:g}" for what, value in modality["length"].items())
    lines = [
        f"  {name}: {modality['dim']} x {modality['dtype']}, {rate}, {encoder}",
        f"    layers: {_layers(modality)}",
        f"    steps: {lengths}, total {modality['steps']:,}",
    ]
    widest = max((count for _, _, count in modality["histogram"]), default=0)
    for low, high, count in modality["histogram"]:
        if count:
            bar = "#" * round(BAR_CHARACTERS * count / widest)
            lines.append(f"    {low:>7}..{high:<7} {count:>7,} {bar}")
    odd = [f"{modality[key]:,} {what}" for key, what in ODD_ROWS.items() if modality[key]]
    lines.append(f"    rows: {', '.join(odd) if odd else 'none absent, with NaN or all zero'}")
    return lines


def _layers(modality: dict) -> str:
    """What is kept of the layers of an encoder, and how to get what is not."""
    count, stack = modality["layers"], modality["stack"]
    width = modality["dim"] // max(1, len(stack))
    if count:
        kept = f"the utterance means of {count} x {width}, {modality['layer_dtype']}"
    else:
        kept = "no utterance means; " + (
            "extracting again with --layer-means --force keeps them"
            if modality["encoder"] not in ("", "imported")
            else "the features were made elsewhere"
        )
    beside = ", ".join(map(str, stack))
    return f"{kept}; a step has layers {beside} side by side" if stack else kept


def _targets(targets: np.ndarray, task: str, labels: Sequence[str]) -> dict[str, float]:
    """For multi the positives of each label, for single the mean shares of raters, for regression
    mean and range, of several targets those of each; `targets` is (N, K)."""
    if task == "multi":
        return dict(zip(labels, targets.sum(axis=0).tolist(), strict=True))
    if task == "single" and targets.shape[1] > 1:
        means = targets.mean(axis=0)
        return {f"{name} mean": round(float(v), 4) for name, v in zip(labels, means, strict=True)}
    if targets.shape[1] > 1:
        found = {}
        for label, column in zip(labels, targets.T, strict=True):
            found[f"{label} mean"] = round(float(column.mean()), 4)
            found[f"{label} min"], found[f"{label} max"] = float(column.min()), float(column.max())
        return found
    return {
        "mean": round(float(targets.mean()), 4),
        "min": float(targets.min()),
        "max": float(targets.max()),
    }


def _steps(store: FeatureStore, modality: str) -> dict:
    """Statistics of the lengths of a modality, and counts of its odd rows."""
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
    """(from, to, count) with the bounds 1, 2..3, 4..7, 8..15 and so on: lengths of speech are
    spread over decades.
    """
    if not len(lengths):
        return []
    bins = np.floor(np.log2(lengths)).astype(int)
    counts = np.bincount(bins)
    return [(1 << b, (2 << b) - 1, int(n)) for b, n in enumerate(counts) if b >= bins.min()]
