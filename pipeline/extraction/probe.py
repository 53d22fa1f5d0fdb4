"""Step 3, `probe`: how long each clip is, and which rows cannot be read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from mer.pipeline.datasets import takes
from mer.pipeline.encoders.modality import Lengths, Rows
from mer.pipeline.errors import DataError, MissingError, UnreadableError
from mer.pipeline.extraction.decoding import open_decoders
from mer.pipeline.extraction.fingerprint import Chosen, Unreadable
from mer.pipeline.extraction.request import Company, Request
from mer.pipeline.media.stages import AGAIN, Problem, Stage
from mer.pipeline.runtime.terminal import plural

PROBES_AHEAD = 256
LONG_CLIP_SECONDS = 3600.0  # the output says how many clips are longer
NOTHING = Problem(Stage.EMPTY, "nothing to encode: no sound, text or picture of it was asked for")
# not remembered: these may go otherwise the next time
NOT_THE_CLIP = AGAIN | {Stage.OOM}


@dataclass(frozen=True)
class Probed:
    """`lengths[modality][row]` as decoders told them (0: none was told), and why rows are left out
    of the store.
    """

    lengths: Mapping[str, tuple[int, ...]]
    left_out: Mapping[int, Problem] = field(default_factory=dict)


def probe(request: Request, company: Company, left_out: Mapping[int, Problem]) -> Probed:
    """Lengths of everything that a decoder can tell one of.

    `left_out` are rows that an unfinished run could not read: they stay left out. Raises DataError
    when no row can be read, or a file changes meanwhile.
    """
    rows = request.rows(company.memory)
    lengths: dict[str, tuple[int, ...]] = {}
    problems = dict(left_out)
    try:
        for choice in request.keys.chosen:
            measured, new_problems = _probe_one(choice, request, rows, company, problems)
            lengths[choice.name] = measured
            problems |= new_problems
            _tell_long_clips(choice, request, company, measured)
    except BaseException:
        company.memory.save()  # lengths that have been read need not be read again
        raise
    problems |= _empty(request, lengths, problems)
    if len(problems) == len(rows):
        blank = [row for row, problem in problems.items() if problem == NOTHING]
        for choice in request.keys.chosen:
            measured = lengths[choice.name]
            check_lengths(choice, request, rows, Lengths(measured, measured, ()), blank)
        reasons = [(problems[row].stage, problems[row].reason) for row in range(len(rows))]
        raise UnreadableError(_none_can_be_read(request, problems), reasons)
    return Probed(lengths, problems)


def check_lengths(
    choice: Chosen, request: Request, rows: Rows, lengths: Lengths, readable: Sequence[int]
) -> None:
    """Raise DataError where what was asked of a modality is in none of the readable rows, with the
    remedy for this corpus.
    """
    try:
        choice.modality.check_lengths(rows, lengths, readable)
    except MissingError as error:
        corpus = request.manifest.dataset
        if not error.prepared or not takes(corpus, error.prepared):
            raise
        remedy = f"`mer prepare {corpus} --{error.prepared}` makes a manifest that has it"
        raise MissingError(error.found, remedy, clip=error.clip) from None


def _probe_one(
    choice: Chosen, request: Request, rows: Rows, company: Company, left_out: Mapping[int, Problem]
) -> tuple[tuple[int, ...], dict[int, Problem]]:
    """(length of each row, problems by row) of one modality."""
    modality, memory = choice.modality, company.memory
    lengths, unknown = [0] * len(rows), []
    problems: dict[int, Problem] = {}
    for row, u in enumerate(rows.utterances):
        file = modality.file(u)
        if file is None or row in left_out:
            continue
        digest = request.keys.digests[file]
        key = digest.key(sound=modality.sound)
        if digest.unreadable is not None:
            path = rows.root / file
            folder = digest.unreadable is Unreadable.UNREADABLE and path.is_dir()
            reason = f"{path}: {'a folder, no file' if folder else digest.unreadable.reason}"
            problems[row] = Problem(Stage.OPEN, reason)
            continue
        known = memory.spans.get((key, modality.span(u)))
        if known is None:
            unknown.append(row)
        elif isinstance(known, Problem):  # perhaps met in another file of the same bytes
            problems[row] = replace(known, reason=f"{rows.root / file}: {known.reason}")
        else:
            lengths[row] = known
    for row, found in _decode(choice, unknown, request, rows, company):
        u = rows.utterances[row]
        if isinstance(found, Problem):
            problems[row] = found
        else:
            lengths[row] = found
        if not isinstance(found, Problem) or found.stage not in NOT_THE_CLIP:
            file = modality.file(u) or ""
            if isinstance(found, Problem):
                found = replace(found, reason=found.reason.removeprefix(f"{rows.root / file}: "))
            key = request.keys.digests[file].key(sound=modality.sound)
            memory.remember(key, modality.span(u), found)
    return tuple(lengths), problems


def _decode(choice: Chosen, unknown: list[int], request: Request, rows: Rows, company: Company):
    """(row, its length or problem) of rows whose length is not known, as decoders tell them."""
    if not unknown:
        return
    jobs = (choice.modality.probe_job(row, rows) for row in unknown)
    task = company.progress.task(f"reading lengths ({choice.name})", len(unknown), "clips")
    with open_decoders(request.options, len(unknown)) as decoders, task as advance:
        results = decoders.run((job for job in jobs if job is not None), ahead=PROBES_AHEAD)
        for row, result in zip(unknown, results, strict=True):
            advance(1)
            if result.stage == Stage.CHANGED:
                raise DataError(f"{result.reason}; run the same command again")
            if result.stage is None:
                yield row, result.samples
            else:
                yield row, Problem(Stage(result.stage), result.reason or "")


def _tell_long_clips(
    choice: Chosen, request: Request, company: Company, lengths: tuple[int, ...]
) -> None:
    """Say which clips take hours: a damaged header or a missing `end` may be to blame."""
    hours = {}
    for row, length in enumerate(lengths):
        seconds = choice.modality.seconds(length) if length else None
        if seconds is not None and seconds > LONG_CLIP_SECONDS:
            hours[row] = seconds / 3600
    if hours:
        longest = max(hours, key=lambda row: hours[row])
        company.progress.note(
            f"{plural(len(hours), 'clip')} longer than {LONG_CLIP_SECONDS / 3600:g} h, "
            f"{sum(hours.values()):,.1f} h of {choice.name} together, the longest "
            f"{request.manifest.rows[longest].id:.80} ({hours[longest]:.1f} h); if they should "
            "not be, give start and end"
        )


def _empty(
    request: Request, lengths: Mapping[str, tuple[int, ...]], left_out: Mapping[int, Problem]
) -> dict[int, Problem]:
    """Rows that have nothing of any modality."""
    found = {}
    for row, u in enumerate(request.manifest.rows):
        if row not in left_out and not any(
            choice.modality.has(u)
            and (choice.modality.file(u) is None or lengths[choice.name][row])
            for choice in request.keys.chosen
        ):
            found[row] = NOTHING
    return found


def _none_can_be_read(request: Request, left_out: Mapping[int, Problem]) -> str:
    rows, first = request.manifest.rows, left_out[0]
    why = f"({first.stage}: {first.reason})"
    if len(rows) == 1:
        return f"{rows[0].id} cannot be read {why}"
    return (
        f"{request.manifest.dataset}: none of {plural(len(rows), 'utterance')} can be read, first "
        f"{rows[0].id} {why}"
    )
