"""One thread that decodes, and who is next."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields, replace
from time import perf_counter
from typing import Any

from easd.engine.engine import Engine, StepRecord
from easd.engine.request import Counts, FinishReason, Request
from easd.engine.settings import Settings
from easd.serve.errors import Refusal
from easd.serve.metrics import Metrics

_LONGEST_WAIT = 60  # Seconds that a refused client is told to wait at most.

Observe = Callable[[StepRecord, int], Any]


@dataclass(frozen=True, slots=True)
class Update:
    """What one text of a job gained in a step.

    Attributes:
        index: which of the job's texts.
        tokens: its new tokens.
        finished: why it ended, if it did.
        counts: of its draft tokens so far.
        step: the same of this step alone.
        seen: what the job's observer made of the step.
    """

    index: int
    tokens: list[int]
    finished: FinishReason | None
    counts: Counts
    step: Counts
    seen: Any


@dataclass(slots=True, eq=False)
class Job:
    """Texts that one client waits for.

    Attributes:
        requests: of the engine.
        settings: which engine they need.
        observe: called in the decoding thread with a step's record and the text's place in it.
        updates: what happened, for the client to read; a refusal ends it.
        begun: when it was submitted.
    """

    requests: list[Request]
    settings: Settings
    observe: Observe | None = None
    updates: asyncio.Queue[Update | Refusal] = field(default_factory=asyncio.Queue)
    begun: float = field(default_factory=perf_counter)


@dataclass(frozen=True, slots=True)
class _Slot:
    """A text that an engine has: its job, which of the job's it is, and the kind of engine."""

    job: Job
    index: int
    kind: Any

    @property
    def request(self) -> Request:
        return self.job.requests[self.index]


class Scheduler:
    """Decodes for many clients at once.

    Everything but the engine's own work happens on the event loop, so there is nothing to lock.
    Requests share an engine if their rules run the models in the same way and their noise is of the
    same kind; engines share the models and take turns, and a slot is a slot in any of them.

    Args:
        make_engine: an empty engine for given settings and so many rows.
        num_rows: texts decoded at once.
        max_waiting: texts that may wait beyond those.
        metrics: told of everything.
    """

    def __init__(
        self,
        make_engine: Callable[[Settings, int], Engine],
        *,
        num_rows: int,
        max_waiting: int,
        metrics: Metrics,
    ) -> None:
        self._make_engine = make_engine
        self._num_rows = num_rows
        self._max_waiting = max_waiting
        self._metrics = metrics
        self._waiting: deque[tuple[Job, int]] = deque()
        self._running: dict[int, _Slot] = {}  # By the identity of the engine's request.
        self._cancelled: list[_Slot] = []  # Their engines do not know yet.
        self._engines: dict[Any, Engine] = {}
        self._seconds = 1.0  # That a text takes, lately.
        self._wake = asyncio.Event()
        self._closed = False
        self._thread = ThreadPoolExecutor(1, "easd-engine")

    @property
    def accepting(self) -> bool:
        """Whether new work is taken in."""
        return not self._closed

    def submit(self, job: Job) -> None:
        """Puts a job in line.

        Raises:
            Refusal: The line is full, or the server is about to stop.
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
        """Drops what is left of a job; its slots are free before the next step."""
        self._waiting = deque(entry for entry in self._waiting if entry[0] is not job)
        for key in [key for key, slot in self._running.items() if slot.job is job]:
            self._cancelled.append(self._running.pop(key))
        self._count()

    def close(self, grace: float) -> None:
        """Takes in nothing more, and ends what still runs after `grace` seconds."""
        if self._closed:
            return
        self._closed = True
        begun = {id(slot.job) for slot in self._running.values()}
        for job in {id(job): job for job, _ in self._waiting if id(job) not in begun}.values():
            self._fail(job, _shutting_down())
        asyncio.get_running_loop().call_later(grace, self._end_all)

    async def run(self) -> None:
        """Decodes for ever."""
        try:
            while True:
                if not (self._waiting or self._engines):
                    self._wake.clear()
                    await self._wake.wait()
                self._admit()
                for kind, engine in list(self._engines.items()):
                    await self._step(kind, engine)
        finally:
            self._closed = True
            self._end_all()
            self._thread.shutdown(wait=False)

    def _admit(self) -> None:
        """Gives free slots to those in line."""
        while self._waiting and len(self._running) < self._num_rows:
            job, index = self._waiting.popleft()
            rule = job.settings.rule
            kind = (rule.models, rule.draft_at_bonus, job.settings.coupling == "shared")
            if kind not in self._engines:
                try:
                    self._engines[kind] = self._make_engine(job.settings, self._num_rows)
                except Exception as error:
                    self._fail(job, Refusal.of(error))
                    continue
            slot = _Slot(job, index, kind)
            self._engines[kind].waiting.append(slot.request)
            self._running[id(slot.request)] = slot
        self._count()

    async def _step(self, kind: Any, engine: Engine) -> None:
        """One step of one engine; after an error its rows cannot be trusted any more."""
        cancelled = [slot.request for slot in self._cancelled if slot.kind == kind]
        self._cancelled = [slot for slot in self._cancelled if slot.kind != kind]
        slots = {key: slot for key, slot in self._running.items() if slot.kind == kind}
        observers = {key: slot.job.observe for key, slot in slots.items() if slot.job.observe}
        loop = asyncio.get_running_loop()
        try:
            updates = await loop.run_in_executor(
                self._thread, _advance, engine, cancelled, observers
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
            if isinstance(update.seen, Exception):
                self._fail(slot.job, Refusal.of(update.seen))
            else:
                self._deliver(slot, update)
        if not engine.busy:
            del self._engines[kind]
        self._count()

    def _deliver(self, slot: _Slot, update: Update) -> None:
        job = slot.job
        seconds = perf_counter() - job.begun
        first = update.counts.blocks == 1
        self._metrics.add_step(update, seconds_to_first=seconds if first else None)
        if update.finished:
            del self._running[id(slot.request)]
            self._seconds += 0.1 * (seconds - self._seconds)
            self._metrics.add_text(update.finished, len(slot.request.prompt), seconds)
        job.updates.put_nowait(replace(update, index=slot.index))

    def _fail(self, job: Job, refusal: Refusal) -> None:
        self.cancel(job)
        job.updates.put_nowait(refusal)

    def _end_all(self) -> None:
        running, waiting = [s.job for s in self._running.values()], [j for j, _ in self._waiting]
        for job in {id(job): job for job in running + waiting}.values():
            self._fail(job, _shutting_down())

    def _count(self) -> None:
        self._metrics.running.set(len(self._running))
        self._metrics.waiting.set(len(self._waiting))


def _advance(
    engine: Engine, cancelled: list[Request], observers: dict[int, Observe]
) -> list[tuple[int, Update]]:
    """A step in the decoding thread; updates by the identity of their request."""
    for request in cancelled:
        engine.cancel(request)
    if not engine.busy:
        return []
    before = {id(row.request): replace(row.counts) for row in engine.rows}
    found = []
    for record in engine.step():
        for place, (row, tokens) in enumerate(zip(record.rows, record.committed, strict=True)):
            key = id(row.request)
            step = _difference(row.counts, before.get(key, Counts()))
            seen = _observed(observers.get(key), record, place)
            found.append((key, Update(0, tokens, row.finished, replace(row.counts), step, seen)))
    return found


def _observed(observe: Observe | None, record: StepRecord, place: int) -> Any:
    """What an observer makes of a step; its errors are its job's alone."""
    if observe is None:
        return None
    try:
        return observe(record, place)
    except Exception as error:
        return error


def _difference(now: Counts, before: Counts) -> Counts:
    return Counts(**{f.name: getattr(now, f.name) - getattr(before, f.name) for f in fields(now)})


def _shutting_down() -> Refusal:
    return Refusal(
        503,
        "the server is shutting down; try again later or elsewhere",
        code="shutting_down",
        headers={"Retry-After": "5"},
    )
