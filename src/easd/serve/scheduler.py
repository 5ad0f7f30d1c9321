"""Continuous batching: decodes in one thread and admits queued requests between steps."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Any

from easd.engine.batch import StepRecord
from easd.engine.engine import Engine
from easd.engine.request import Counts, FinishReason, Request
from easd.engine.settings import Settings
from easd.serve.errors import Refusal
from easd.serve.metrics import Metrics

_LONGEST_WAIT = 60  # Maximum of Retry-After, in seconds.

Observe = Callable[[StepRecord, int], Any]


@dataclass(frozen=True, slots=True)
class Update:
    """New tokens of one text of a job in a step.

    Attributes:
        index: which of the job's texts.
        finished: why it ended, if it did.
        counts: its draft tokens so far.
        seen: what the job's observer returned for the step.
    """

    index: int
    tokens: list[int]
    finished: FinishReason | None
    counts: Counts
    seen: Any


@dataclass(slots=True, eq=False)
class Job:
    """The texts of one HTTP request.

    Attributes:
        requests: one for each text.
        settings: of all texts; they determine the engine.
        observe: called in the decoding thread with a step's record and the text's place in it.
        updates: read by the HTTP handler; a refusal is the last one.
        begun: time of creation, by `perf_counter`.
    """

    requests: list[Request]
    settings: Settings
    observe: Observe | None = None
    updates: asyncio.Queue[Update | Refusal] = field(default_factory=asyncio.Queue)
    begun: float = field(default_factory=perf_counter)


async def updates(job: Job) -> AsyncIterator[Update]:
    """Yields a job's updates until all its texts have finished.

    Raises:
        Refusal: The job failed or was ended.
    """
    left = len(job.requests)
    while left:
        update = await job.updates.get()
        if isinstance(update, Refusal):
            raise update
        left -= update.finished is not None
        yield update


@dataclass(slots=True)
class _Slot:
    """Text `index` of a job in the engine with key `kind`, and its counts as last seen."""

    job: Job
    index: int
    kind: Any
    counts: Counts = field(default_factory=Counts)

    @property
    def request(self) -> Request:
        return self.job.requests[self.index]


class Scheduler:
    """Decodes for many clients at once.

    Everything except the engines' steps runs on the event loop, so nothing needs a lock. Requests
    share an engine if their rules run the models in the same way and they want the same noise. The
    engines share the models and take turns, and `num_rows` and `prefill_tokens` limit all of them
    together.

    Args:
        make_engine: makes an idle engine for settings and a number of rows.
        num_rows: maximum number of texts decoded at once.
        max_waiting: maximum number of texts in the queue.
        prefill_tokens: maximum number of prompt tokens cached between two steps.
    """

    def __init__(
        self,
        make_engine: Callable[[Settings, int], Engine],
        *,
        num_rows: int,
        max_waiting: int,
        prefill_tokens: int,
        metrics: Metrics,
    ) -> None:
        self._make_engine = make_engine
        self._num_rows = num_rows
        self._max_waiting = max_waiting
        self._prefill_tokens = prefill_tokens
        self._metrics = metrics
        self._waiting: deque[tuple[Job, int]] = deque()
        self._running: dict[int, _Slot] = {}  # By the identity of the engine's request.
        self._cancelled: list[_Slot] = []  # Not yet cancelled in their engines.
        self._engines: dict[Any, Engine] = {}
        self._seconds = 1.0  # Moving average of the time from request to end.
        self._wake = asyncio.Event()
        self._closed = False
        self._thread = ThreadPoolExecutor(1, "easd-engine")

    @property
    def accepting(self) -> bool:
        """Whether new jobs are accepted."""
        return not self._closed

    def submit(self, job: Job) -> None:
        """Queues a job.

        Raises:
            Refusal: The queue is full, or the server is shutting down.
        """
        if self._closed:
            raise _shutting_down()
        free = self._num_rows - len(self._running) + self._max_waiting - len(self._waiting)
        if len(job.requests) > self._num_rows + self._max_waiting:
            raise Refusal(
                400,
                f"{len(job.requests)} texts are more than this server's slots and queue hold "
                f"({self._num_rows} + {self._max_waiting}); ask for fewer at a time",
                param="n",
            )
        if len(job.requests) > free:
            self._metrics.refused.inc()
            wait = math.ceil(self._seconds * len(self._waiting) / self._num_rows)
            raise Refusal(
                429,
                f"{len(self._waiting)} texts wait already and at most {self._max_waiting} may; "
                "try again later",
                code="queue_full",
                headers={"Retry-After": str(min(max(wait, 1), _LONGEST_WAIT))},
            )
        self._waiting.extend((job, index) for index in range(len(job.requests)))
        self._wake.set()
        self._count()

    def cancel(self, job: Job) -> None:
        """Drops the rest of a job, whose slots are free before the next step."""
        self._waiting = deque(entry for entry in self._waiting if entry[0] is not job)
        for key in [key for key, slot in self._running.items() if slot.job is job]:
            self._cancelled.append(self._running.pop(key))
        self._count()

    def close(self, grace: float) -> None:
        """Refuses new jobs and those without a token after the running step.

        Ends the other jobs after `grace` seconds.
        """
        if self._closed:
            return
        self._closed = True
        for job in {job for job, _ in self._waiting} - self._running_jobs():
            self._fail(job, _shutting_down())
        self._wake.set()
        asyncio.get_running_loop().call_later(grace, self._end_all)

    async def run(self) -> None:
        """Decodes until cancelled."""
        try:
            while True:
                if not (self._waiting or self._engines):
                    self._wake.clear()
                    await self._wake.wait()
                self._admit()
                for kind, engine in list(self._engines.items()):
                    await self._step(kind, engine)
                if self._closed:
                    for job in self._running_jobs() - self._begun_jobs():
                        self._fail(job, _shutting_down())
        finally:
            self._closed = True
            self._end_all()
            # A step cannot be stopped, but the event loop goes on and hears a second signal.
            await asyncio.get_running_loop().run_in_executor(None, self._thread.shutdown)

    def _admit(self) -> None:
        """Submits queued texts to their engines while there are free slots."""
        while self._waiting and len(self._running) < self._num_rows:
            job, index = self._waiting.popleft()
            rule = job.settings.rule
            kind = (rule.models, rule.draft_at_bonus, job.settings.coupling == "shared")
            slot = _Slot(job, index, kind)
            try:
                if kind not in self._engines:
                    self._engines[kind] = self._make_engine(job.settings, self._num_rows)
                self._engines[kind].submit(slot.request)
            except Exception as error:
                self._fail(job, Refusal.of(error))
                continue
            self._running[id(slot.request)] = slot
        self._count()

    async def _step(self, kind: Any, engine: Engine) -> None:
        """Runs one step of an engine and drops the engine on an error, which corrupts its rows."""
        cancelled = [slot.request for slot in self._cancelled if slot.kind == kind]
        self._cancelled = [slot for slot in self._cancelled if slot.kind != kind]
        slots = {key: slot for key, slot in self._running.items() if slot.kind == kind}
        observers = {key: slot.job.observe for key, slot in slots.items() if slot.job.observe}
        loop = asyncio.get_running_loop()
        try:
            budget = max(1, self._prefill_tokens // len(self._engines))
            updates = await loop.run_in_executor(
                self._thread, _advance, engine, cancelled, observers, budget
            )
        except Exception as error:
            del self._engines[kind]
            for slot in slots.values():
                self._fail(slot.job, Refusal.of(error))
            self._cancelled = [slot for slot in self._cancelled if slot.kind != kind]
            return
        for key, update in updates:
            slot = self._running.get(key)
            if slot is None:
                continue  # Cancelled meanwhile.
            if isinstance(update, Exception):
                self._fail(slot.job, Refusal.of(update))
            else:
                self._deliver(slot, update)
        if not engine.busy:
            del self._engines[kind]
        self._count()

    def _deliver(self, slot: _Slot, update: Update) -> None:
        job = slot.job
        seconds = perf_counter() - job.begun
        first = update.counts.blocks == 1
        gained = update.counts - slot.counts
        slot.counts = update.counts
        self._metrics.add_step(
            len(update.tokens), gained, seconds_to_first=seconds if first else None
        )
        if update.finished:
            del self._running[id(slot.request)]
            self._seconds += 0.1 * (seconds - self._seconds)
            self._metrics.add_text(update.finished, len(slot.request.prompt), seconds)
        job.updates.put_nowait(replace(update, index=slot.index))

    def _fail(self, job: Job, refusal: Refusal) -> None:
        self.cancel(job)
        job.updates.put_nowait(refusal)

    def _end_all(self) -> None:
        for job in {job for job, _ in self._waiting} | self._running_jobs():
            self._fail(job, _shutting_down())

    def _running_jobs(self) -> set[Job]:
        return {slot.job for slot in self._running.values()}

    def _begun_jobs(self) -> set[Job]:
        """Returns jobs of which at least one text has a token."""
        return {slot.job for slot in self._running.values() if slot.counts.blocks}

    def _count(self) -> None:
        self._metrics.running.set(len(self._running))
        self._metrics.waiting.set(len(self._waiting))


def _advance(
    engine: Engine, cancelled: list[Request], observers: dict[int, Observe], prefill_tokens: int
) -> list[tuple[int, Update | Exception]]:
    """Runs a step in the decoding thread; returns updates or errors by the requests' identity."""
    for request in cancelled:
        engine.cancel(request)
    if not engine.busy:
        return []
    found: list[tuple[int, Update | Exception]] = []
    for outcome in engine.step(prefill_tokens):
        if not isinstance(outcome, StepRecord):
            found.append((id(outcome.row.request), outcome.error))
            continue
        for place, row in enumerate(outcome.rows):
            key = id(row.request)
            found.append((key, _update(outcome, place, observers.get(key))))
    return found


def _update(record: StepRecord, place: int, observe: Observe | None) -> Update | Exception:
    """Returns a text's update, or the error of its observer, which must fail only its job."""
    row = record.rows[place]
    try:
        seen = None if observe is None else observe(record, place)
    except Exception as error:
        return error
    return Update(0, record.committed[place], row.finished, replace(row.counts), seen)


def _shutting_down() -> Refusal:
    return Refusal(
        503,
        "the server is shutting down; try again later or elsewhere",
        code="shutting_down",
        headers={"Retry-After": "5"},
    )
