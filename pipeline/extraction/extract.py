"""Manifest → store: the one entry of the extraction stage.

hash → compare with what is there → probe → plan → parts → shards → head file. Whatever is finished
is on disk under its final name, and the head file comes last. Killed anywhere, the same call goes
on from the last finished part.
"""

from __future__ import annotations

import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np

from mer.pipeline.encoders.geometry import SAMPLE_RATE, Geometry
from mer.pipeline.encoders.loading import sha256_file
from mer.pipeline.errors import DataError, FailuresError, StoreError
from mer.pipeline.extraction.budget import choose, fixed, wanted
from mer.pipeline.extraction.fingerprint import UNREADABLE, ExtractOptions, span
from mer.pipeline.extraction.outcome import NAMED, ExtractReport, flagged
from mer.pipeline.extraction.parts import Done, Tally
from mer.pipeline.extraction.plan import Inputs, Part, Plan, Settings, build, cut_shards
from mer.pipeline.extraction.publish import (
    describe_modalities,
    describe_run,
    left_untidy,
    tidy,
    write_failures,
    write_head,
)
from mer.pipeline.extraction.state import State, made_here
from mer.pipeline.extraction.work import (
    Work,
    existing,
    load_encoders,
    make_job,
    open_decoders,
    unsound_sources,
)
from mer.pipeline.manifest import Manifest
from mer.pipeline.media.workers import AGAIN
from mer.pipeline.runtime.hold import appear, held, hold, turn
from mer.pipeline.runtime.progress import Silent
from mer.pipeline.runtime.signals import Stop
from mer.pipeline.store import FeatureStore, Shard
from mer.pipeline.store.arrays import shortened

LONG = 3600.0  # seconds; the output says how many clips are longer


def extract(
    manifest: Manifest,
    out: str | os.PathLike,
    options: ExtractOptions | None = None,
    *,
    source: str | os.PathLike | None = None,
    progress: Silent | None = None,
    dry_run: bool = False,
    confirm: Callable[[int], None] = lambda size: None,
    distrust: bool = False,
    workers: int = 0,
    scheduler: str | None = None,
    share: tuple[int, int] | None = None,
    gentle: bool = False,
    lock: bool = True,
) -> ExtractReport:
    """Extract `manifest` into the store `out` (head file; its shards lie in `<out without
    .h5>.shards/`), or finish, update or check one.

    `source` is the manifest's own file: hashes are remembered beside it and the store can be
    repaired from it. `confirm` is told the bytes about to be written and may raise. `distrust`
    checks every shard that is there before it is kept. `workers` local processes, or those of the
    Dask `scheduler` at an address, or other runs with the other shares (i, n) of the work, make the
    same bytes. `gentle`: on the first Ctrl-C or SIGTERM what is being computed is finished and
    written, then KeyboardInterrupt or Terminated is raised. `lock` False: on a file system without
    locks, where the caller sees to it that no other run works at `out`.

    Raises KeyMismatchError when `out` was made by another recipe; FailuresError, with the report as
    `.report`, when more than `max_failures` utterances failed, after writing the rest;
    EncoderError, DataError, OSError.
    """
    options, progress = options or ExtractOptions(), progress or Silent()
    # for workers that were started elsewhere
    manifest = manifest.with_root(manifest.root.absolute())
    state = State(
        manifest,
        Path(out),
        options,
        Path(source) if source else None,
        progress,
        Stop(gentle=gentle),
    )
    state.look()
    if share is not None and not 1 <= share[0] <= share[1]:
        raise DataError(f"--shard {share[0]}/{share[1]}: expected i/n with i from 1 to n")
    if share is not None and not lock:
        raise DataError(
            f"--shard {share[0]}/{share[1]}: shares of a run need locks; without them, run one "
            "`mer extract` alone"
        )
    if state.leaving:
        progress.note(
            f"{state.leaving:,} utterances of {state.out} are not in this manifest: they leave "
            "the store"
        )
    untidy = share is None and left_untidy(state)
    if state.complete and not distrust and (dry_run or not (state.labels_changed or untidy)):
        report = unchanged(state)  # writes nothing: works on a read-only mount
    elif dry_run:
        report = prepare(state).report("dry-run")
    elif share is not None:
        report = run_share(state, confirm, *share)
    else:
        with hold(state.folder / ".hold", lock=lock) as left_behind:
            if left_behind:
                progress.note(left_behind)
            state.look()  # what was found before the hold may have changed
            if state.complete and not distrust:
                report = unchanged(state)
                if untidy:
                    tidy(state, [record.path for record in state.head.shards])
            else:
                report = run(state, confirm, workers, scheduler)
    state.memory.save()
    report.seconds = round(time.monotonic() - state.started, 3)
    if report.unexpected > options.max_failures and report.action not in ("dry-run", "part"):
        first = next(failure for failure in report.failures if not failure.known)
        error = FailuresError(
            f"{report.unexpected:,} utterances failed (--max-failures {options.max_failures}), "
            f"first {first.id} ({first.stage}: {first.reason}); the store holds the other "
            f"{report.utterances:,}; see {state.failures_path}"
        )
        error.report = report
        raise error
    return report


def repair(
    head: str | os.PathLike,
    *,
    root: str | os.PathLike | None = None,
    progress: Silent | None = None,
    gentle: bool = False,
    lock: bool = True,
    **changes,
) -> ExtractReport:
    """Extract again what is damaged or missing in a store, with the recipe, encoders and manifest
    it remembers. `root`: where the media are now; `changes`: options such as device or offline.
    Raises DataError for a store that `mer extract` did not make.
    """
    store = FeatureStore(head, check=False)
    header = store.header
    if not header.recipe or "extract" not in header.provenance:
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
        options = replace(ExtractOptions(**made["options"]), **changes)
    except TypeError:
        raise DataError(
            f"{head}: made with options that this mer does not know; call `mer extract` for it "
            "again"
        ) from None
    return extract(
        manifest,
        head,
        options,
        source=made["manifest"],
        progress=progress,
        distrust=True,
        gentle=gentle,
        lock=lock,
    )


def unchanged(state: State) -> ExtractReport:
    """The features are all there: at most the head file is written again, for new
    labels or splits.
    """
    head = state.head
    made = made_here(head)
    number = {u.id: row for row, u in enumerate(state.manifest.rows)}
    if unknown := [failure["id"] for failure in made["failures"] if failure["id"] not in number]:
        raise StoreError(
            f"{state.out}: names a failure that is not in the manifest ({shortened(unknown[0])}); "
            "make it again with --force"
        )
    failures = [
        state.failure(number[failure["id"]], failure["stage"], failure["reason"])
        for failure in made["failures"]
    ]
    if state.labels_changed:
        made = {
            **made,
            "manifest_hash": state.manifest.hash,
            "failures": [asdict(failure) for failure in failures],
        }
        provenance = {**head.header.provenance, "extract": made}
        write_head(
            state,
            [record.path for record in head.shards],
            {failure.id for failure in failures},
            head.header.modalities,
            provenance,
        )
    found = flagged(head.table()["id"].to_pylist(), head.flags)
    return ExtractReport(
        state.out,
        state.keys.fingerprint,
        "head" if state.labels_changed else "nothing",
        len(head),
        reused=len(head),
        failures=failures,
        failures_path=state.failures_path,
        audio_seconds=made["audio_seconds"],
        padding=made["padding"],
        self_test=made["self_test"],
        counts=made["counts"],
        flagged={name: found.get(name, [])[:NAMED] for name in made["counts"]},
        bytes=sum(record.bytes for record in head.shards),
        shards=len(head.shards),
        untrained=state.untrained(),
    )


def run(
    state: State, confirm: Callable[[int], None], workers: int, scheduler: str | None
) -> ExtractReport:
    """Plan, encode, assemble, publish; whatever an earlier run has finished is taken over."""
    job = prepare(state)
    job.settle(confirm)
    if not workers and scheduler is None:
        return finish(job, encode_windows(job, job.work))
    from mer.pipeline.extraction.cluster import workers_for

    with workers_for(
        job.work, state.keys.checkpoints, workers=workers, scheduler=scheduler
    ) as cluster:
        tally = encode_windows(job, cluster)
    return finish(job, tally)


def run_share(
    state: State, confirm: Callable[[int], None], index: int, count: int
) -> ExtractReport:
    """Share `index` (from 1) of `count`: every count-th part.

    The run that finds all parts there assembles shards and head.
    """
    mine = state.folder / f".hold-{index}-of-{count}"
    with hold(state.folder / ".hold", shared=True), hold(mine) as left_behind:
        if left_behind:
            state.progress.note(left_behind)
        job = prepare(state)
        with turn(state.folder / ".turn") as ledger:
            state.look()
            # the others have finished since; a plan written now would be left behind
            if state.complete:
                return unchanged(state)
            job.adopt()
            others = any(held(path) for path in state.folder.glob(".hold-*-of-*") if path != mine)
            if not job.resumed and others and (state.work / "plan.json").exists():
                raise DataError(
                    f"{state.folder}: runs with other options or data write there; wait for them, "
                    "or choose another --out"
                )
            if not job.resumed:
                ledger.write({})
            job.settle(confirm)
        work, tally, stop = job.work, Tally(), state.stop
        ours = [part for parts in work.plan.parts for part in parts][index - 1 :: count]
        with stop.listening(), progress_of(job, ours) as done:
            for window in range(len(work.plan.parts)):
                unfinished = (
                    {part.name for part in work.unfinished(window)}
                    if work.missing(window)
                    else set()
                )
                todo = [part for part in ours if part.window == window and part.name in unfinished]
                work.encode(window, todo, tally, done, stop)
                stop.check()
        with turn(state.folder / ".turn") as ledger:
            state.look()
            if state.complete:
                return unchanged(state)
            told = ledger.read().get(str(count))
            done = (
                {index} | {number for number in told if type(number) is int}
                if isinstance(told, list)
                else {index}
            )
            ledger.write({str(count): sorted(done)})
            # then all parts have been published, even if a network file system does not show them
            # all yet
            if len(done) == count:
                appear(
                    [
                        work.work / part.name
                        for window, parts in enumerate(work.plan.parts)
                        if work.missing(window)
                        for part in parts
                    ]
                )
            if any(
                work.missing(window) and work.unfinished(window)
                for window in range(len(work.plan.parts))
            ):
                return job.report("part")
            return finish(job, encode_windows(job, work))


@dataclass
class Prepared:
    """A run that is ready to compute."""

    state: State
    work: Work
    resumed: bool
    self_test: dict[str, dict] = field(default_factory=dict)

    def adopt(self) -> None:
        """Take the plan that another share has written meanwhile, if any."""
        settings = Settings.read(self.state.work / "plan.json", self.state.keys.fingerprint)
        if settings is not None:
            self.work.plan, self.resumed, self.work.resumed = (
                make_plan(self.state, settings, self.work),
                True,
                True,
            )

    def settle(self, confirm: Callable[[int], None]) -> None:
        """Self-test, and write down the plan if it is a new one."""
        state = self.state
        if not self.resumed:
            confirm(self.bytes)
            self.look_at_free_space()
        self.choose_one_by_one()
        self.choose_budgets()
        if self.resumed:
            state.progress.note(f"going on with the unfinished run in {state.folder}")
        else:
            shutil.rmtree(state.work, ignore_errors=True)  # of a run with other options or contents
            self.work.plan.settings.write(state.work / "plan.json")
        for point in state.keys.checkpoints.values():
            if not point.trained:
                state.progress.note(
                    f"{point.kind} encoder {point.name} is untrained: its features are for trying "
                    "things out"
                )
        state.memory.save()

    def look_at_free_space(self) -> None:
        """Say beforehand that the disk will be full; it is the user's to decide what to do about
        it.
        """
        kept = self.work.plan.settings.kept
        needed = sum(
            self.work.inputs.sizes[row]
            for shard in self.work.plan.shards
            if shard.name not in kept
            for row in shard.rows
        )
        free = shutil.disk_usage(self.state.folder).free
        if needed > free:
            self.state.progress.note(
                f"{self.state.folder}: {needed / 1e6:,.0f} MB to write, up to as much again for a "
                f"while, and {free / 1e6:,.0f} MB free; "
                "when the disk is full, free some space and run the same command again: it goes on"
            )

    @property
    def bytes(self) -> int:
        return sum(
            self.work.inputs.sizes[row] for shard in self.work.plan.shards for row in shard.rows
        )

    def choose_one_by_one(self) -> None:
        """The self-test, and what follows from it: an encoder whose features depend on the batch is
        run one item at a time.
        """
        self.self_test = self.work.self_test()
        failed = [modality for modality, result in self.self_test.items() if not result["passed"]]
        if self.resumed or not failed:
            return
        for modality in failed:
            result = self.self_test[modality]
            self.state.progress.note(
                f"{modality} encoder {self.state.keys.checkpoints[modality].name}: batch and "
                f"single differ by {result['relative']:.1e} "
                f"(allowed: {result['tolerance']:.0e}), so it runs one item at a time: exact, but "
                "slower"
            )
        self.work.plan = make_plan(
            self.state, replace(self.work.plan.settings, one_by_one=failed), self.work
        )

    def choose_budgets(self) -> None:
        """Budgets that are to be found by trying, for a new plan."""
        settings = self.work.plan.settings
        asked = [
            m
            for m, value in wanted(self.state.options).items()
            if value == "auto" and m not in settings.one_by_one
        ]
        if asked and not self.resumed:
            found = choose(self.work, asked, self.state.progress.note)
            self.work.plan = make_plan(
                self.state, replace(settings, budgets=settings.budgets | found), self.work
            )

    def report(self, action: str) -> ExtractReport:
        state, plan = self.state, self.work.plan
        settings = plan.settings
        planned = [row for shard in plan.shards for row in shard.rows]
        reused = len(settings.reused) + sum(
            len(shard.rows) for shard in plan.shards if shard.name in settings.kept
        )
        return ExtractReport(
            state.out,
            state.keys.fingerprint,
            action,
            len(planned),
            len(planned) - reused,
            reused,
            [state.failure(row, *why) for row, why in sorted(settings.left_out.items())],
            state.failures_path,
            sum(self.work.inputs.samples[row] for row in planned) / SAMPLE_RATE,
            padding=plan.padding(),
            batches=plan.batches(),
            self_test=self.self_test,
            bytes=self.bytes,
            shards=len(plan.shards),
            untrained=state.untrained(),
        )


def prepare(state: State) -> Prepared:
    """Lengths, encoders and plan: the stored one of an unfinished run, or a new one."""
    rows, points = state.manifest.rows, state.keys.checkpoints
    settings = stored_plan(state)
    inputs = Inputs(
        ids=[u.id for u in rows],
        paths=[
            str(state.manifest.root / u.audio) if u.audio and "audio" in points else None
            for u in rows
        ],
        spans=[(u.start, u.end) for u in rows],
        texts=[(u.text or None) if "text" in points else None for u in rows],
        contents=state.keys.contents,
        recipe_key=state.recipe_key,
        seen=state.memory.seen,
    )
    left_out = dict(settings.left_out) if settings else {}
    try:
        inputs.samples = probe(state, inputs, left_out)
        tell_long_clips(state, inputs)
    except BaseException:
        state.memory.save()  # lengths that have been read need not be read again, also after Ctrl-C
        raise
    for row in range(len(rows)):
        if not inputs.samples[row] and not inputs.texts[row]:
            left_out.setdefault(row, ("empty", "neither audio nor text"))
    if len(left_out) == len(rows):
        stage, reason = left_out[0]
        none = (
            f"{state.manifest.dataset}: none of {len(rows):,} utterances can be read, first "
            f"{rows[0].id}"
        )
        raise DataError(
            f"{none if len(rows) > 1 else rows[0].id + ' cannot be read'} ({stage}: {reason})"
        )
    encoders = load_encoders(points, state.options)
    geometry = Geometry.of(points["audio"]) if "audio" in points else None
    work = Work(
        inputs,
        None,
        state.options,
        state.folder,
        geometry,
        encoders,
        {m: encoder.dim for m, encoder in encoders.items()},
    )
    tokenise(work)
    resumed = work.resumed = settings is not None
    work.plan = make_plan(state, settings or new_settings(state, work, left_out), work)
    return Prepared(state, work, resumed)


def stored_plan(state: State) -> Settings | None:
    """The plan of an unfinished run, if it can be gone on with; else a note says why not, and
    everything that is sound is taken over.
    """
    note = state.progress.note
    settings = Settings.read(state.work / "plan.json", state.keys.fingerprint, note)
    if settings is None:
        return None
    modalities = list(state.keys.checkpoints)
    if not settings.fits(len(state.manifest), modalities):
        note(
            f"{state.work / 'plan.json'}: the plan of an unfinished run is damaged; starting again"
        )
        return None
    if reason := unsound_sources(state.folder, settings, modalities, state.keys.contents):
        note(f"{reason}; planning the unfinished run again")
        return None
    return settings


def probe(state: State, inputs: Inputs, left_out: dict[int, tuple[str, str]]) -> list[int]:
    """Samples of each row's audio at 16 kHz, 0 where it has none; rows that cannot be read go to
    `left_out`.
    """
    samples, unknown = [0] * len(inputs.ids), []
    spans = [span(u, state.options.audio_track) for u in state.manifest.rows]
    for row, digest in enumerate(state.keys.digests):
        if not digest or row in left_out:
            continue
        if digest.startswith("!"):
            left_out[row] = "open", f"{inputs.paths[row]}: {UNREADABLE[digest]}"
            continue
        known = state.memory.spans.get((digest, spans[row]))
        if known is None:
            unknown.append(row)
        elif known[1] is None:
            samples[row] = known[0]
        else:
            left_out[row] = known[1], known[2]
    if unknown:
        task = state.progress.task("reading lengths", len(unknown), "clips")
        with open_decoders(state.options, len(unknown)) as decoders, task as advance:
            jobs = (make_job(inputs, row, "probe", state.options) for row in unknown)
            for row, result in zip(unknown, decoders.run(jobs, ahead=256), strict=True):
                advance(1)
                if result.stage == "changed":
                    raise DataError(f"{result.reason}; run the same command again")
                if result.stage is None:
                    samples[row] = result.samples
                else:
                    left_out[row] = result.stage, result.reason
                if result.stage not in (*AGAIN, "oom"):  # these may go otherwise the next time
                    state.memory.remember(
                        state.keys.digests[row],
                        spans[row],
                        result.samples,
                        result.stage,
                        result.reason,
                    )
    return samples


def tell_long_clips(state: State, inputs: Inputs) -> None:
    """Say which clips take hours: a damaged header or a missing `end` may be to blame."""
    found = [row for row, samples in enumerate(inputs.samples) if samples > LONG * SAMPLE_RATE]
    if found:
        hours = sum(inputs.samples[row] for row in found) / SAMPLE_RATE / 3600
        longest = max(found, key=lambda row: inputs.samples[row])
        state.progress.note(
            f"{len(found):,} clips longer than {LONG / 3600:g} h, {hours:,.1f} h of audio "
            "together, the longest "
            f"{inputs.ids[longest]:.80} ({inputs.samples[longest] / SAMPLE_RATE / 3600:.1f} h); "
            "if they should not be, give start and end"
        )


def tokenise(work: Work) -> None:
    """Token ids of each distinct transcript, and the bytes of features of each row."""
    inputs, options = work.inputs, work.options
    texts = list(dict.fromkeys(filter(None, inputs.texts)))
    if texts:
        ids, cut = work.encoders["text"].tokens(texts)
        inputs.token_ids = dict(zip(texts, ids, strict=True))
        inputs.cut_texts = {text for text, was in zip(texts, cut, strict=True) if was}
    item = np.dtype(options.dtype).itemsize
    pooled = 4 * sum(work.dims.values())
    for samples, text in zip(inputs.samples, inputs.texts, strict=True):
        frames = -(-work.geometry.frames(samples) // options.pool) if samples else 0
        tokens = len(inputs.token_ids.get(text, ())) if text else 0
        inputs.sizes.append(
            frames * work.dims.get("audio", 0) * item
            + tokens * work.dims.get("text", 0) * item
            + pooled
        )


def make_plan(state: State, settings: Settings, work: Work) -> Plan:
    options = state.options
    return build(
        settings,
        work.inputs,
        list(work.dims),
        work.geometry,
        max_seconds=options.max_seconds,
        pool=options.pool,
    )


def new_settings(state: State, work: Work, left_out: dict[int, tuple[str, str]]) -> Settings:
    """Budgets, and what can be taken over from shards that are there."""
    options, contents = state.options, state.keys.contents
    there, rows, unsound = {}, {}, []
    recorded = (
        {record.path.name: record.sha256 for record in state.head.shards}
        if state.head is not None
        else {}
    )
    for path, found in existing(state.folder, state.recipe_key, recorded, sha256_file):
        if isinstance(found, str):
            state.progress.note(f"{found}; extracting it again")
            unsound.append(path.name)
        else:
            there[path.name] = found.key
            for at, content in enumerate(found.meta["contents"]):
                rows.setdefault(content, (path.name, at))
    tell_decoded_again(state, rows)
    shards = cut_shards(work.inputs, set(left_out), options.shard_bytes)
    kept = [shard.name for shard in shards if there.get(shard.name) == shard.key]
    wanted = sorted(row for shard in shards if shard.name not in kept for row in shard.rows)
    return Settings(
        fingerprint=state.keys.fingerprint,
        budgets=fixed(options, next(iter(work.encoders.values())).device.type),
        shard_bytes=options.shard_bytes,
        window=options.window,
        part_lengths={
            "audio": round(options.part_seconds * SAMPLE_RATE),
            "text": options.part_tokens,
        },
        left_out=left_out,
        kept=kept,
        rebuilt=[shard.name for shard in shards if shard.name in unsound],
        reused={row: rows[contents[row]] for row in wanted if contents[row] in rows},
    )


def tell_decoded_again(state: State, there: Collection[str]) -> None:
    """Say how many utterances, whose features are `there` from the first version of the decoder,
    are decoded again, and why.
    """
    again = Counter(why for older, why in state.keys.older.values() if older in there)
    if again:
        reasons = ", ".join(f"{count:,} for {why}" for why, count in again.most_common())
        state.progress.note(
            f"{again.total():,} utterances are decoded again, because an earlier version read "
            f"them otherwise: {reasons}"
        )


def encode_windows(job: Prepared, runner) -> Tally:
    """Encode every part that is not there yet and assemble the shards, window by window.

    `runner` is the work itself or a cluster.
    """
    work, tally, stop = job.work, Tally(), job.state.stop
    with stop.listening(), progress_of(job) as done:
        for window, parts in enumerate(work.plan.parts):
            missing = work.missing(window)
            todo = work.unfinished(window) if missing else []
            waiting = {part.name for part in todo}
            for part in parts:
                if part.name not in waiting:
                    done(part, part.length, fresh=False)
            if missing:
                runner.encode(window, todo, tally, done, stop)
                stop.check()
                runner.assemble(window, missing, stop=stop)
                stop.check()
            work.clear(window)
    return tally


@contextmanager
def progress_of(job: Prepared, parts: Iterable[Part] | None = None) -> Iterator[Done]:
    """Call the value with a part and the length done of it, of those `parts` (None: all).

    Counts audio where there is any, else tokens.
    """
    length: Counter = Counter()
    for part in (
        parts if parts is not None else (part for window in job.work.plan.parts for part in window)
    ):
        length[part.modality] += part.length
    counted, unit, scale = ("audio", "s", SAMPLE_RATE) if length["audio"] else ("text", "tokens", 1)
    with job.state.progress.task("extracting", length[counted] / scale, unit) as advance:
        yield (
            lambda part, length, fresh=True: (
                advance(length / scale, fresh) if part.modality == counted else None
            )
        )


def finish(job: Prepared, tally: Tally) -> ExtractReport:
    """Everything is there: failures, head file, and then away with what no head names."""
    state, work = job.state, job.work
    report = job.report("extracted")
    if unseen := appear([state.folder / shard.name for shard in work.plan.shards]):
        raise DataError(
            f"{unseen[0]}: finished, but not to be seen from here; all machines must have the "
            "folder of --out under one path"
        )
    shards = [Shard(state.folder / shard.name) for shard in work.plan.shards]
    number = {id: row for row, id in enumerate(work.inputs.ids)}
    failed = dict(work.plan.settings.left_out)
    for shard in shards:
        for id, stage, reason in shard.meta["failures"]:
            if id not in number:
                raise StoreError(
                    f"{shard.path}: its failures are not of this manifest; remove it and run the "
                    "same command again"
                )
            failed[number[id]] = stage, reason
    shards = [shard for shard in shards if len(shard)]
    report.failures = [state.failure(row, *failed[row]) for row in sorted(failed)]
    write_failures(state.failures_path, report.failures)
    if not shards:
        raise DataError(
            f"{state.manifest.dataset}: no utterance could be extracted; see {state.failures_path}"
        )
    flags = np.concatenate([shard.flags for shard in shards])
    found = flagged([id for shard in shards for id in shard.ids], flags)
    report.counts = {name: len(ids) for name, ids in found.items()}
    report.flagged = {name: ids[:NAMED] for name, ids in found.items()}
    report.utterances, report.shards = len(flags), len(shards)
    report.extracted = report.utterances - report.reused
    report.audio_seconds = float(sum(np.nansum(shard.duration) for shard in shards))
    report.bytes = sum(shard.bytes for shard in shards)
    report.oom_splits, report.fp32_batches = tally.oom_splits, tally.fp32_batches
    paths = [shard.path for shard in shards]
    left_out = {failure.id for failure in report.failures}
    write_head(
        state,
        paths,
        left_out,
        describe_modalities(state.options, work),
        describe_run(state, work, report),
    )
    tidy(state, paths)
    return report
