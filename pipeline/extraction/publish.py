"""Step 6, `publish`: the list of failures, the head file that says the store is complete, and
tidying up.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from mer.pipeline.errors import DataError, StoreError
from mer.pipeline.extraction.look import Found, made_here
from mer.pipeline.extraction.outcome import NAMED, ExtractReport, Failure, flagged
from mer.pipeline.extraction.parts import Tally
from mer.pipeline.extraction.plan import SHARD_NAME, Settings
from mer.pipeline.extraction.request import Place, Request
from mer.pipeline.extraction.settle import Settled, report
from mer.pipeline.media.stages import Problem, Stage
from mer.pipeline.runtime.files import leftovers, publishing, shortened, sweep
from mer.pipeline.runtime.hold import appear
from mer.pipeline.runtime.machine import installed_version
from mer.pipeline.store import ModalityInfo, Shard, build_index
from mer.pipeline.store.schema import EVERY


def publish(settled: Settled, tally: Tally, started: float) -> ExtractReport:
    """Everything is there: failures, head file, and then away with what no head names.

    `started` is when the run began, by `time.monotonic`. Raises DataError when shards cannot be
    seen from here, or no utterance could be extracted.
    """
    request, plan = settled.request, settled.plan
    place = request.place
    if unseen := appear([place.folder / shard.name for shard in plan.shards]):
        raise DataError(
            f"{unseen[0]}: finished, but not to be seen from here; all machines must have the "
            "folder of --out under one path"
        )
    shards = [Shard(place.folder / shard.name) for shard in plan.shards]
    failures = _failures(settled, shards)
    shards = [shard for shard in shards if len(shard)]
    write_failures(place.failures, failures)
    if not shards:
        first = failures[0]
        raise DataError(
            f"{request.manifest.dataset}: no utterance could be extracted, first {first.id} "
            f"({first.stage}: {first.reason}); see {place.failures}"
        )
    done = _report(settled, shards, failures, tally)
    paths = [shard.path for shard in shards]
    left_out = {failure.id for failure in failures}
    provenance = describe_run(settled, done, time.monotonic() - started)
    write_head(request, paths, left_out, describe_modalities(settled), provenance)
    tidy(place, paths)
    return done


def _failures(settled: Settled, shards: Sequence[Shard]) -> list[Failure]:
    """Everything that is not in the store, in the order of the manifest."""
    number = {u.id: row for row, u in enumerate(settled.inputs.rows.utterances)}
    failed = dict(settled.plan.settings.left_out)
    for shard in shards:
        for id, stage, reason in shard.meta["failures"]:
            if id not in number:
                raise StoreError(
                    f"{shard.path}: its failures are not of this manifest; remove it and run the "
                    "same command again"
                )
            failed[number[id]] = Problem(Stage(stage), reason)
    return [settled.request.failure(row, failed[row]) for row in sorted(failed)]


def _report(
    settled: Settled, shards: Sequence[Shard], failures: list[Failure], tally: Tally
) -> ExtractReport:
    planned = report(settled, "extracted")
    flags = np.concatenate([shard.flags for shard in shards])
    found = flagged([id for shard in shards for id in shard.ids], flags)
    return replace(
        planned,
        failures=failures,
        counts={name: len(ids) for name, ids in found.items()},
        flagged={name: ids[:NAMED] for name, ids in found.items()},
        utterances=len(flags),
        shards=len(shards),
        extracted=len(flags) - planned.reused,
        audio_seconds=float(sum(np.nansum(shard.duration) for shard in shards)),
        bytes=sum(shard.bytes for shard in shards),
        oom_splits=tally.oom_splits,
        fp32_batches=tally.fp32_batches,
    )


def unchanged(request: Request, found: Found) -> ExtractReport:
    """The features are all there: at most the head file is written again, for new labels or
    splits.
    """
    head = found.head
    assert head is not None
    made = made_here(head)
    number = {u.id: row for row, u in enumerate(request.manifest.rows)}
    unknown = [failure["id"] for failure in made["failures"] if failure["id"] not in number]
    if unknown:
        raise StoreError(
            f"{request.place.out}: names a failure that is not in the manifest "
            f"({shortened(unknown[0])}); make it again with --force"
        )
    failures = [
        request.failure(number[failure["id"]], Problem(Stage(failure["stage"]), failure["reason"]))
        for failure in made["failures"]
    ]
    if found.labels_changed:
        changed = {
            "manifest_hash": request.manifest.hash,
            "failures": [asdict(failure) for failure in failures],
        }
        provenance = {**head.header.provenance, "extract": {**made, **changed}}
        shards = [record.path for record in head.shards]
        left_out = {failure.id for failure in failures}
        write_head(request, shards, left_out, head.header.modalities, provenance)
    flags = flagged(head.table()["id"].to_pylist(), head.flags)
    return ExtractReport(
        request.place.out,
        request.keys.fingerprint,
        "head" if found.labels_changed else "nothing",
        len(head),
        reused=len(head),
        failures=failures,
        failures_path=request.place.failures,
        audio_seconds=made["audio_seconds"],
        padding=made["padding"],
        self_test=made["self_test"],
        counts=made["counts"],
        flagged={name: flags.get(name, [])[:NAMED] for name in made["counts"]},
        bytes=sum(record.bytes for record in head.shards),
        shards=len(head.shards),
        untrained=request.keys.untrained,
    )


def write_failures(path: Path, failures: Sequence[Failure]) -> None:
    """One JSON object for each failure, one to a line; no file when nothing failed."""
    if not failures:
        path.unlink(missing_ok=True)
        return
    lines = "".join(json.dumps(asdict(failure), ensure_ascii=False) + "\n" for failure in failures)
    with publishing(path) as temporary:
        # a file name that is no UTF-8 as escaped; it is still JSON
        temporary.write_text(lines, encoding="utf-8", errors="backslashreplace")


def describe_modalities(settled: Settled) -> dict[str, ModalityInfo]:
    """What the header says of each modality."""
    infos = {}
    for choice in settled.request.keys.chosen:
        if choice.name in _taken_over(settled):
            infos[choice.name] = _as_before(settled, choice.name)
            continue
        point, encoder = choice.checkpoint, settled.encoders[choice.name]
        described = choice.modality.describe(point)
        infos[choice.name] = ModalityInfo(
            encoder.dim,
            described.frame_rate,
            point.name,
            point.revision,
            described.layer,
            settled.request.options.dtype,
            point.trained,
            {"hash": point.hash, "precision": encoder.precision, **described.extra},
            stack=described.stack,
        )
    return infos


def _taken_over(settled: Settled) -> set[str]:
    """Modalities of the earlier store for which this run computed nothing; what is recorded of how
    they were computed stays as it was.
    """
    before = settled.before
    there = before.modalities if before is not None else {}
    return {name for name in there if not settled.plan.length(name)}


def _as_before(settled: Settled, name: str) -> ModalityInfo:
    """What the header said of a modality; what follows from the shards is said anew."""
    assert settled.before is not None
    info = settled.before.modalities[name]
    extra = {key: value for key, value in info.extra.items() if key != "overflow"}
    return replace(info, extra=extra)


def _self_tests(settled: Settled) -> dict[str, dict]:
    """The self-tests of this run; of modalities that were taken over, those of the run that
    computed them.
    """
    provenance = settled.before.provenance if settled.before is not None else {}
    before = provenance.get("extract", {}).get("self_test", {})
    kept = {name: test for name, test in before.items() if name in _taken_over(settled)}
    return kept | settled.self_test


def describe_run(settled: Settled, done: ExtractReport, seconds: float) -> dict:
    """What goes into the head file and nowhere else: it differs from run to run."""
    request, settings = settled.request, settled.plan.settings
    sources = {f"{choice.name}_encoder": choice.checkpoint.source for choice in request.keys.chosen}
    packages = ("mer", "torch", "transformers", "numpy")
    versions = {name: installed_version(name) for name in packages}
    return {
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "host": socket.gethostname(),
        "device": str(next(iter(settled.encoders.values())).device),
        "versions": versions | {"python": platform.python_version()},
        "extract": {
            "manifest": str(request.source.resolve()) if request.source else None,
            "manifest_hash": request.manifest.hash,
            "root": str(request.manifest.root),
            "options": asdict(request.options) | sources | {"force": False},
            "plan": {
                "budgets": settings.budgets,
                "one_by_one": settings.one_by_one,
                "batches": done.batches,
            },
            "padding": done.padding,
            "self_test": _self_tests(settled),
            "counts": done.counts,
            "audio_seconds": done.audio_seconds,
            "seconds": round(seconds, 3),
            "oom_splits": done.oom_splits,
            "fp32_batches": done.fp32_batches,
            "failures": [asdict(failure) for failure in done.failures],
        },
    }


def write_head(
    request: Request,
    shards: Sequence[Path],
    failed: set[str],
    modalities: Mapping[str, ModalityInfo],
    provenance: dict,
) -> None:
    """Write the head file over finished shards, without the rows that failed."""
    manifest = request.manifest
    table = []
    for u in manifest.rows:
        if u.id not in failed:
            table.append({name: getattr(u, name) for name in EVERY.names})
    build_index(
        request.place.out,
        shards,
        table,
        dataset=manifest.dataset,
        task=manifest.task,
        labels=manifest.labels,
        modalities=modalities,
        language=manifest.language,
        fingerprint=request.keys.fingerprint,
        recipe=request.keys.recipe,
        provenance=provenance,
    ).close()


def tidy(place: Place, shards: Iterable[Path]) -> None:
    """Remove what was needed to get here, once the head file names `shards`; the plan goes last."""
    named = {path.name for path in shards}
    for path in place.folder.glob("shard-*.h5"):
        if SHARD_NAME.fullmatch(path.name) and path.name not in named:
            path.unlink()
    for path in place.parts.glob("*.h5"):
        path.unlink(missing_ok=True)
    shutil.rmtree(place.parts, ignore_errors=True)
    sweep(place.folder)
    sweep(place.out.parent, place.out.name)


def left_untidy(request: Request) -> bool:
    """Whether the run that wrote this head file was killed before it could tidy up.

    What another run has left, with other options or of another corpus, is that run's to go on with.
    """
    place = request.place
    if not os.access(place.folder, os.W_OK):
        return False
    if leftovers(place.folder) or leftovers(place.out.parent, place.out.name):
        return True
    if not place.parts.exists():
        return False
    return not place.plan.exists() or Settings.names(place.plan) == request.keys.fingerprint
