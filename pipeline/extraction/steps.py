"""Manifest → store: `extract` takes the steps of an extraction one after the other.

    request   what was asked for, checked and hashed          request.py, fingerprint.py
    look      what is already at the output                    look.py
    probe     how long each clip is, what cannot be read       probe.py
    settle    resume, self-test, budgets, then one plan        settle.py, plan.py
    run       parts are encoded, shards assembled              runner.py, parts.py, cluster.py
    publish   failures, head file, tidying up                  publish.py

Each step is a function from frozen values to a frozen value. Whatever is finished is on disk under
its final name, and the head file comes last. Killed anywhere, the same call goes on from the last
finished part.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from mer.pipeline.errors import DataError
from mer.pipeline.extraction.look import look, made_here
from mer.pipeline.extraction.options import ExtractOptions, as_recorded
from mer.pipeline.extraction.outcome import ExtractReport, TooManyFailures
from mer.pipeline.extraction.parts import Done, Tally
from mer.pipeline.extraction.plan import Part
from mer.pipeline.extraction.publish import left_untidy, publish, tidy, unchanged
from mer.pipeline.extraction.request import (
    Company,
    Here,
    Request,
    Scheduler,
    Share,
    Where,
    Workers,
    check_place,
    make_request,
    remember_files,
)
from mer.pipeline.extraction.runner import LocalRunner, Runner
from mer.pipeline.extraction.settle import (
    Prepared,
    Settled,
    adopted,
    prepare,
    report,
    settle,
    sketch,
)
from mer.pipeline.manifest import Manifest
from mer.pipeline.media.workers import workers_kept
from mer.pipeline.runtime.hold import appear, held, hold, turn
from mer.pipeline.runtime.progress import Silent
from mer.pipeline.runtime.signals import Stop
from mer.pipeline.runtime.terminal import plural
from mer.pipeline.store import FeatureStore

HERE = Here()


@workers_kept()
def extract(
    manifest: Manifest,
    out: str | os.PathLike,
    options: ExtractOptions | None = None,
    *,
    where: Where = HERE,
    source: str | os.PathLike | None = None,
    progress: Silent | None = None,
    confirm: Callable[[int], None] = lambda size: None,
    dry_run: bool = False,
    distrust: bool = False,
    gentle: bool = False,
) -> ExtractReport:
    """Extract a manifest into a store, or finish, update or check one.

    Args:
        manifest: the utterances, with the root that their media are under.
        out: the head file, e.g. feats.h5; its shards lie in `<out without .h5>.shards/`.
        options: encoders and all else that can be asked for.
        where: `Here()`, `Workers(count)` local processes, the `Scheduler(address)` of a Dask
            cluster, or a `Share(index, count)` of the work, the others being done by other runs.
            The bytes are the same.
        source: the manifest's own file: hashes are remembered beside it, and the store can be
            repaired from it.
        progress: is told how far the run is, and what the user should know.
        confirm: is told the bytes about to be written, and may raise.
        dry_run: plan only; nothing is computed or written.
        distrust: check every shard that is there before it is kept.
        gentle: on the first Ctrl-C or SIGTERM what is being computed is finished and written, then
            KeyboardInterrupt or Terminated is raised.

    Returns:
        What was done: utterances extracted and reused, failures, seconds of audio, bytes.

    Raises:
        KeyMismatchError: `out` was made by another recipe, or of another corpus.
        TooManyFailures: more than `max_failures` utterances failed; the rest is written, and the
            report is its `.report`.
        EncoderError: an encoder cannot be loaded or trusted.
        DataError: nothing can be read, or a file changed during the run.
        OSError: the disk is full, the folder cannot be written, …
    """
    started = time.monotonic()
    options, place = options or ExtractOptions(), check_place(Path(out))
    memory = remember_files(Path(source) if source else None, place)
    company = Company(progress or Silent(), memory, Stop(gentle=gentle), confirm)
    request = make_request(manifest, place, options, source, company)
    found = look(request, company.progress)
    if found.leaving:
        company.progress.note(
            f"{plural(found.leaving, 'utterance')} of {place.out} not in this manifest: taken out "
            "of the store"
        )
    if found.adding and found.head is not None:
        held = found.head.header.modalities
        company.progress.note(
            f"adding {' and '.join(found.adding)} to {place.out}; {' and '.join(held)} of it "
            f"{'is' if len(held) == 1 else 'are'} taken over where unchanged"
        )
    untidy = not isinstance(where, Share) and left_untidy(request)
    if found.complete and not distrust and (dry_run or not (found.labels_changed or untidy)):
        done = unchanged(request, found)  # writes nothing: works on a read-only mount
    elif dry_run:
        done = report(sketch(request, company, found, prepare(request, company)), "dry-run")
    elif isinstance(where, Share):
        done = run_share(request, company, where, started)
    else:
        done = run_alone(request, company, where, started, distrust=distrust, untidy=untidy)
    company.memory.save()
    done = replace(done, seconds=round(time.monotonic() - started, 3))
    _check_failures(request, done)
    return done


def repair(
    head: str | os.PathLike,
    *,
    root: str | os.PathLike | None = None,
    progress: Silent | None = None,
    gentle: bool = False,
    where: Where = HERE,
    **changes,
) -> ExtractReport:
    """Extract again what is damaged or missing in a store, with the recipe, encoders and manifest
    that it remembers.

    Args:
        head: the store's head file.
        root: where the media are now, if they have moved.
        progress: is told how far the run is.
        gentle, where: as for `extract`.
        changes: options that decide no feature, such as device or offline.

    Returns:
        What was done.

    Raises:
        DataError: `mer extract` did not make the store.
    """
    store = FeatureStore(head, check=False)
    if not store.header.recipe or "extract" not in store.header.provenance:
        raise DataError(
            f"{head}: its features were not made by `mer extract`, so they cannot be made again; "
            "import them again"
        )
    made = made_here(store)
    if not made["manifest"]:
        raise DataError(
            f"{head}: does not say which manifest file it was made from (an export leaves it "
            "out); extract or export it again"
        )
    manifest = Manifest.read(made["manifest"])
    if root is not None:
        manifest = manifest.with_root(root)
    try:
        options = replace(as_recorded(made["options"]), **changes)
    except TypeError:
        raise DataError(
            f"{head}: made with options that this mer does not know; call `mer extract` for it "
            "again"
        ) from None
    return extract(
        manifest,
        head,
        options,
        where=where,
        source=made["manifest"],
        progress=progress,
        distrust=True,
        gentle=gentle,
    )


def _check_failures(request: Request, done: ExtractReport) -> None:
    """Raise TooManyFailures when more failed than the options allow."""
    allowed = request.options.max_failures
    if done.unexpected <= allowed or done.action in ("dry-run", "part"):
        return
    first = next(failure for failure in done.failures if not failure.known)
    raise TooManyFailures(
        f"{plural(done.unexpected, 'utterance')} failed (--max-failures {allowed}), first "
        f"{first.id} ({first.stage}: {first.reason}); the store holds the other "
        f"{done.utterances:,}; see {request.place.failures}",
        done,
    )


# --- run: alone, or as one of several shares


def run_alone(
    request: Request,
    company: Company,
    where: Where,
    started: float,
    *,
    distrust: bool,
    untidy: bool,
) -> ExtractReport:
    """The whole of the work by this run, which holds the folder."""
    place = request.place
    with hold(place.folder / ".hold", lock=where.lock) as left_behind:
        if left_behind:
            company.progress.note(left_behind)
        found = look(request, company.progress)  # what was found before the hold may have changed
        if found.complete and found.head is not None and not distrust:
            done = unchanged(request, found)
            if untidy:
                tidy(place, [record.path for record in found.head.shards])
            return done
        settled = settle(request, company, found, prepare(request, company))
        with runner_for(settled, where) as runner:
            tally = run_windows(settled, runner, company)
        return publish(settled, tally, started)


@contextmanager
def runner_for(settled: Settled, where: Where) -> Iterator[Runner]:
    """Whoever does the pieces of the plan."""
    if isinstance(where, Workers | Scheduler):
        from mer.pipeline.extraction.cluster import workers_for

        with workers_for(settled.assignment, where) as cluster:
            yield cluster
    else:
        yield LocalRunner(settled.assignment, settled.encoders)


def run_windows(settled: Settled, runner: Runner, company: Company) -> Tally:
    """Encode every part that is not there yet and assemble the shards, window by window."""
    standing, stop, tally = settled.standing(), company.stop, Tally()
    with stop.listening(), progress_of(settled, settled.plan.all_parts, company.progress) as done:
        for window, parts in enumerate(settled.plan.parts):
            missing = standing.missing(window)
            todo = standing.unfinished(window) if missing else []
            waiting = {part.name for part in todo}
            for part in parts:
                if part.name not in waiting:
                    done(part, part.length, fresh=False)
            if missing:
                tally += runner.encode(window, todo, done, stop)
                stop.check()
                runner.assemble(window, missing, stop)
                stop.check()
            standing.clear(window)
    return tally


def run_share(request: Request, company: Company, share: Share, started: float) -> ExtractReport:
    """One share of the work: every `count`-th part.

    The run that finds all parts there assembles shards and head.
    """
    place = request.place
    mine = place.folder / f".hold-{share.index}-of-{share.count}"
    with hold(place.folder / ".hold", shared=True), hold(mine) as left_behind:
        if left_behind:
            company.progress.note(left_behind)
        prepared = prepare(request, company)
        settled = _settle_together(request, company, prepared, mine)
        if isinstance(settled, ExtractReport):
            return settled
        _run_own_parts(settled, share, company)
        return _finish_together(request, company, settled, share, started)


def _settle_together(
    request: Request, company: Company, prepared: Prepared, mine: Path
) -> Settled | ExtractReport:
    """The plan that the first share makes and the others adopt; or what was done, if the others
    have finished since.
    """
    folder = request.place.folder
    with turn(folder / ".turn") as ledger:
        found = look(request, company.progress)
        if found.complete:  # a plan written now would be left behind
            return unchanged(request, found)
        prepared = adopted(request, prepared)
        if prepared.stored is None:
            others = any(held(path) for path in folder.glob(".hold-*-of-*") if path != mine)
            if others and request.place.plan.exists():
                raise DataError(
                    f"{folder}: runs with other options or data write there; wait for them, or "
                    "choose another --out"
                )
            ledger.write({})
        return settle(request, company, found, prepared)


def _run_own_parts(settled: Settled, share: Share, company: Company) -> None:
    """Encode the parts of this share that are not there yet."""
    standing, stop = settled.standing(), company.stop
    runner = LocalRunner(settled.assignment, settled.encoders)
    ours = list(settled.plan.all_parts)[share.index - 1 :: share.count]
    with stop.listening(), progress_of(settled, ours, company.progress) as done:
        for window in range(len(settled.plan.parts)):
            todo = []
            if standing.missing(window):
                unfinished = {part.name for part in standing.unfinished(window)}
                todo = [p for p in ours if p.window == window and p.name in unfinished]
            runner.encode(window, todo, done, stop)
            stop.check()


def _finish_together(
    request: Request, company: Company, settled: Settled, share: Share, started: float
) -> ExtractReport:
    """The store, if all other shares have done their parts too."""
    standing, windows = settled.standing(), range(len(settled.plan.parts))
    with turn(request.place.folder / ".turn") as ledger:
        found = look(request, company.progress)
        if found.complete:
            return unchanged(request, found)
        told = ledger.read().get(str(share.count))
        numbers = told if isinstance(told, list) else []
        finished = {share.index} | {number for number in numbers if type(number) is int}
        ledger.write({str(share.count): sorted(finished)})
        # then all parts have been published, even if a network file system does not show them all
        # yet
        if len(finished) == share.count:
            incomplete = [window for window in windows if standing.missing(window)]
            parts = [part for window in incomplete for part in settled.plan.parts[window]]
            appear([request.place.parts / part.name for part in parts])
        if any(standing.is_unfinished(window) for window in windows):
            return report(settled, "part")
        runner = LocalRunner(settled.assignment, settled.encoders)
        return publish(settled, run_windows(settled, runner, company), started)


@contextmanager
def progress_of(settled: Settled, parts: Iterable[Part], progress: Silent) -> Iterator[Done]:
    """Call the value with a part of `parts` and the length done of it.

    What is shown is the progress of the first modality of which there is something to encode, in
    lengths of the clips: windows of an encoder that are longer count as what is in them.
    """
    lengths: Counter = Counter()
    rows: dict[str, set[int]] = {}
    for part in parts:
        lengths[part.modality] += part.length
        rows.setdefault(part.modality, set()).update(item.row for item in part.items)
    modalities = [one.modality for one in settled.inputs.chosen]
    counted = next((m for m in modalities if lengths[m.name]), modalities[-1])
    windows = lengths[counted.name]
    of_clips = settled.inputs.lengths[counted.name].lengths
    within = sum(of_clips[row] for row in rows.get(counted.name, ()))
    per_unit = counted.per_unit * max(1.0, windows / within if within else 1.0)
    with progress.task("extracting", windows / per_unit, counted.unit) as advance:

        def done(part: Part, length: int, fresh: bool = True) -> None:
            if part.modality == counted.name:
                advance(length / per_unit, fresh)

        yield done
