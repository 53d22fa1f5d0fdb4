"""The last step of an extraction: the list of failures, the head file that says the store is
complete, and tidying up.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import socket
import time
from dataclasses import asdict
from importlib import metadata
from pathlib import Path

from mer.pipeline.extraction.fingerprint import ExtractOptions
from mer.pipeline.extraction.outcome import ExtractReport, Failure
from mer.pipeline.extraction.plan import SHARD_NAME, Settings
from mer.pipeline.extraction.state import State
from mer.pipeline.extraction.work import Work
from mer.pipeline.store import ModalityInfo, build_index
from mer.pipeline.store.arrays import leftovers, sweep, temporary_for

# of the manifest, in the head
COLUMNS = (
    "id",
    "split",
    "session",
    "dialogue",
    "speaker",
    "position",
    "label",
    "targets",
    "text",
    "tags",
)


def write_failures(path: Path, failures: list[Failure]) -> None:
    if not failures:
        path.unlink(missing_ok=True)
        return
    temporary = temporary_for(path)
    lines = "".join(json.dumps(asdict(failure), ensure_ascii=False) + "\n" for failure in failures)
    # as escaped, it is still JSON
    temporary.write_text(lines, encoding="utf-8", errors="backslashreplace")
    os.replace(temporary, path)


def describe_modalities(options: ExtractOptions, work: Work) -> dict[str, ModalityInfo]:
    infos = {}
    for modality, encoder in work.encoders.items():
        point = encoder.checkpoint
        extra = {"hash": point.hash, "precision": encoder.precision}
        rate, layer = None, "last"
        if modality == "audio":
            rate, layer, extra["pool"] = (
                work.geometry.rate / options.pool,
                options.audio_layer,
                options.pool,
            )
        infos[modality] = ModalityInfo(
            encoder.dim,
            rate,
            point.name,
            point.revision,
            layer,
            options.dtype,
            point.trained,
            extra,
        )
    return infos


def describe_run(state: State, work: Work, report: ExtractReport) -> dict:
    """What goes into the head file and nowhere else: it differs from run to run."""
    settings = work.plan.settings
    options = (
        asdict(state.options)
        | {f"{m}_encoder": point.source for m, point in state.keys.checkpoints.items()}
        | {"force": False}
    )
    return {
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "host": socket.gethostname(),
        "device": str(next(iter(work.encoders.values())).device),
        "versions": {n: metadata.version(n) for n in ("mer", "torch", "transformers", "numpy")}
        | {"python": platform.python_version()},
        "extract": {
            "manifest": str(state.source.resolve()) if state.source else None,
            "manifest_hash": state.manifest.hash,
            "root": str(state.manifest.root),
            "options": options,
            "plan": {n: getattr(settings, n) for n in ("budgets", "one_by_one")}
            | {"batches": report.batches},
            "padding": report.padding,
            "self_test": report.self_test,
            "counts": report.counts,
            "audio_seconds": report.audio_seconds,
            "seconds": round(time.monotonic() - state.started, 3),
            "oom_splits": report.oom_splits,
            "fp32_batches": report.fp32_batches,
            "failures": [asdict(failure) for failure in report.failures],
        },
    }


def write_head(
    state: State,
    shards: list[Path],
    failed: set[str],
    modalities: dict[str, ModalityInfo],
    provenance: dict,
) -> None:
    manifest = state.manifest
    table = [
        {name: getattr(u, name) for name in COLUMNS} for u in manifest.rows if u.id not in failed
    ]
    build_index(
        state.out,
        shards,
        table,
        dataset=manifest.dataset,
        task=manifest.task,
        labels=manifest.labels,
        modalities=modalities,
        language=manifest.language,
        fingerprint=state.keys.fingerprint,
        recipe=state.keys.recipe,
        provenance=provenance,
    ).close()


def tidy(state: State, shards: list[Path]) -> None:
    """Remove what was needed to get here, once the head file names `shards`; the plan goes last."""
    named = {path.name for path in shards}
    for path in state.folder.glob("shard-*.h5"):
        if SHARD_NAME.fullmatch(path.name) and path.name not in named:
            path.unlink()
    for path in state.work.glob("*.h5"):
        path.unlink(missing_ok=True)
    shutil.rmtree(state.work, ignore_errors=True)
    sweep(state.folder)
    sweep(state.out.parent, state.out.name)


def left_untidy(state: State) -> bool:
    """Whether the run that wrote this head file was killed before it could tidy up.

    What another run has left, with other options or of another corpus, is that run's to go on with.
    """
    if not os.access(state.folder, os.W_OK):
        return False
    if leftovers(state.folder) or leftovers(state.out.parent, state.out.name):
        return True
    if not state.work.exists():
        return False
    plan = state.work / "plan.json"
    return not plan.exists() or Settings.names(plan) == state.keys.fingerprint
