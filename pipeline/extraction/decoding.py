"""Decoding processes for an extraction, and which files this version of the decoder reads otherwise
than the first.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

from mer.pipeline.extraction.memory import FileMemory
from mer.pipeline.extraction.options import ExtractOptions
from mer.pipeline.media import containers
from mer.pipeline.media.workers import Decoders, Job
from mer.pipeline.runtime.machine import cores

MOST_DECODERS = 16
LOOKED_AT_A_TIME = 8  # files
JOBS_AHEAD = 256


def open_decoders(options: ExtractOptions, jobs: int) -> Decoders:
    """As many decoding processes as the options and the cores say, and no more than there are
    jobs.
    """
    wanted = options.decoders
    if wanted < 0:
        wanted = max(1, min(MOST_DECODERS, cores() // 2))
    return Decoders(min(wanted, jobs), timeout=options.decode_timeout)


def decoded_otherwise(
    files: Mapping[str, str], options: ExtractOptions, memory: FileMemory
) -> dict[str, str]:
    """sha256 → reason, for content that this version decodes otherwise than the first.

    `files` maps the sha256 to a path that has it. Bytes alone tell it of most files; for containers
    with time stamps a decoding process looks at their packets. What was found is remembered.
    """
    unknown = {digest: path for digest, path in files.items() if digest not in memory.kinds}
    if unknown:
        with ThreadPoolExecutor(min(LOOKED_AT_A_TIME, cores())) as pool:
            found = dict(zip(unknown, pool.map(_told_by_bytes, unknown.values()), strict=True))
        asked = [digest for digest, why in found.items() if why is None]
        with open_decoders(options, len(asked)) as decoders:
            jobs = (Job("changed", unknown[digest], "auto", None, None) for digest in asked)
            results = decoders.run(jobs, ahead=JOBS_AHEAD)
            for digest, result in zip(asked, results, strict=True):
                found[digest] = (result.reason or "") if result.stage is None else None
        for digest, why in found.items():
            if why is not None:
                memory.kinds[digest] = why
                memory.changed = True
    return {digest: why for digest in files if (why := memory.kinds.get(digest))}


def _told_by_bytes(path: str) -> str | None:
    """Why a file is decoded otherwise, "" if it is not; None where its packets have to be looked
    at.
    """
    try:
        found = containers.look(path)
    except (OSError, ValueError):
        return None
    if found.why:
        return found.why
    return "" if found.exact or found.missing else None
