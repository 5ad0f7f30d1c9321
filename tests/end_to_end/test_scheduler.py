"""Which text decodes next, beside which others, and what becomes of the rest."""

import asyncio
import re
import threading
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from time import perf_counter

import pytest
from http_server import endless

from easd import generate
from easd.config import load_config
from easd.core.rules import Speculative
from easd.engine.generate import make_engine, make_requests
from easd.engine.pair import Pair
from easd.errors import ConfigError, InputError
from easd.serve.errors import Refusal
from easd.serve.metrics import Metrics
from easd.serve.requests import CompletionRequest
from easd.serve.scheduler import Job, Scheduler, updates
from easd.serve.serving import Reader, Serving

PROMPT = [5, 6]


def job(*, n=1, observe=None, age=0.0, **settings):
    """A job that came `age` seconds ago, with `n` texts."""
    settings = load_config(None, {"max_new_tokens": 500, "n": n, **settings}).settings
    requests = make_requests(endless(), [PROMPT], settings)
    return Job(requests, settings, observe, begun=perf_counter() - age)


def engine(settings, rows):
    return make_engine(endless(), settings, num_rows=rows)


@asynccontextmanager
async def scheduling(make=engine, *, num_rows=2, max_waiting=2, prefill_tokens=256, metrics=None):
    scheduler = Scheduler(
        make,
        num_rows=num_rows,
        max_waiting=max_waiting,
        prefill_tokens=prefill_tokens,
        metrics=metrics or Metrics("endless", 4),
    )
    running = asyncio.create_task(scheduler.run())
    try:
        yield scheduler
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running


async def text_of(job):
    return [token async for update in updates(job) for token in update.tokens]


def alone(**settings):
    found = generate(
        endless().target, endless().draft, PROMPT, tokenizer=endless().tokenizer, **settings
    )
    return found[0].token_ids


def test_a_cancelled_job_is_gone_within_one_step():
    steps = []

    async def scenario():
        async with scheduling() as scheduler:
            leaving, next_one = job(), job()
            staying = job(observe=lambda record, place: steps.append(len(record.rows)))
            for one in (leaving, staying, next_one):
                scheduler.submit(one)
            await leaving.updates.get()
            await staying.updates.get()
            assert next_one.updates.empty()
            scheduler.cancel(leaving)
            seen = len(steps)
            await next_one.updates.get()
            # One step was under way, and the next one has the newcomer.
            assert len(steps) - seen <= 2
            assert leaving.updates.qsize() <= 1
            assert steps[-1] == 2

    asyncio.run(scenario())


def test_nothing_is_taken_on_while_shutting_down():
    async def scenario():
        async with scheduling(num_rows=1) as scheduler:
            assert scheduler.accepting
            running, waiting = job(max_new_tokens=40), job()
            scheduler.submit(running)
            scheduler.submit(waiting)
            await running.updates.get()
            scheduler.close(30)
            assert not scheduler.accepting
            with pytest.raises(Refusal) as new:
                scheduler.submit(job())
            for refused in (new.value, waiting.updates.get_nowait()):
                assert refused.status == 503
                assert refused.body.error.code == "shutting_down"
            assert len(await text_of(running)) > 30

    asyncio.run(scenario())


def test_a_server_without_a_draft_takes_what_needs_none():
    pair = replace(endless(), draft=None)

    def reader(**settings):
        return Reader(pair, Serving(config=load_config(None, {"target": "x", **settings})))

    with pytest.raises(ConfigError, match="needs a draft model and the server has none"):
        reader(rule="speculative")
    assert reader(rule="target")
    looking_up = reader(rule="speculative", drafter="prompt-lookup")
    asked = CompletionRequest(model="x", prompt="w5")
    assert looking_up.settings(asked).rule == Speculative()
    with pytest.raises(ConfigError, match="needs a draft model and the server has none"):
        looking_up.settings(asked.model_copy(update={"speculative": {"rule": "draft"}}))


def test_models_without_a_context_window_write_as_much_as_is_asked_for(monkeypatch):
    monkeypatch.setattr(Pair, "context_window", None)
    config = load_config(None, {"target": "x", "max_new_tokens": 7})
    reader = Reader(endless(), Serving(config=config))
    for asked, given in ((None, 7), (9000, 9000)):
        body = CompletionRequest(model="x", prompt="w5", max_tokens=asked)
        (request,) = reader.requests(body, [PROMPT], reader.settings(body))
        assert request.max_new_tokens == given
    last = endless().vocab_size - 1
    assert reader.requests(body, [[last]], reader.settings(body))
    with pytest.raises(InputError, match=rf"token id {last + 1} and the vocabulary {last + 1}"):
        reader.requests(body, [[last + 1]], reader.settings(body))


def test_prompts_of_ids_may_fill_the_context_window_and_no_more():
    reader = Reader(endless(), Serving(config=load_config(None, {"target": "x"})))
    longest = [5] * reader.limit
    assert reader.prompts(longest) == [longest]
    with pytest.raises(Refusal, match=f"the prompt has {len(longest) + 1} tokens"):
        reader.prompts([*longest, 5])


def test_as_many_texts_as_slots_and_queue_hold_are_taken_at_once():
    metrics = Metrics("endless", 4)

    def counted():
        page = metrics.page().decode()
        return [
            int(float(re.search(rf"^easd_texts_{what}{{.*}} (.*)$", page, re.MULTILINE)[1]))
            for what in ("running", "waiting")
        ]

    async def scenario():
        async with scheduling(num_rows=2, max_waiting=2, metrics=metrics) as scheduler:
            with pytest.raises(Refusal, match=r"5 texts are more than .* \(2 \+ 2\)"):
                scheduler.submit(job(n=5))
            whole = job(n=4, max_new_tokens=8)
            scheduler.submit(whole)
            assert counted() == [0, 4]
            gained = 0
            async for update in updates(whole):
                if not gained:
                    assert counted() == [2, 2]
                gained += len(update.tokens)
                assert len(scheduler._running) <= 2
            assert gained == 32
            assert counted() == [0, 0]

    asyncio.run(scenario())


@pytest.mark.parametrize("first", ["shared", "maximal"])
def test_texts_with_shared_noise_and_without_decode_beside_each_other(first):
    """In engines of their own: noise is shared by all rows of an engine or by none."""
    second = {"shared": "maximal", "maximal": "shared"}[first]

    async def scenario():
        async with scheduling() as scheduler:
            jobs = [job(coupling=each, max_new_tokens=20, seed=7) for each in (first, second)]
            for one in jobs:
                scheduler.submit(one)
            return [await text_of(one) for one in jobs]

    expected = [alone(coupling=each, max_new_tokens=20, seed=7) for each in (first, second)]
    assert asyncio.run(scenario()) == expected
    assert expected[0] != expected[1]


def test_engines_that_share_a_single_token_still_read_their_prompts():
    async def scenario():
        async with scheduling(prefill_tokens=1) as scheduler:
            jobs = [job(coupling=each, max_new_tokens=3) for each in ("shared", "maximal")]
            for one in jobs:
                scheduler.submit(one)
            return [len(await text_of(one)) for one in jobs]

    assert asyncio.run(asyncio.wait_for(scenario(), 60)) == [3, 3]


def test_what_is_cancelled_waits_for_the_turn_of_its_own_engine():
    steps, budgets = [], []

    def make(settings, rows):
        found = engine(settings, rows)
        step = found.step

        def counted(prefill_tokens):
            steps.append(settings.coupling)
            budgets.append(prefill_tokens)
            return step(prefill_tokens)

        found.step = counted
        return found

    async def scenario():
        async with scheduling(make) as scheduler:
            staying, leaving = job(coupling="maximal"), job(coupling="shared")
            scheduler.submit(staying)
            scheduler.submit(leaving)
            await leaving.updates.get()
            while not staying.updates.empty():
                staying.updates.get_nowait()
            await staying.updates.get()  # The other engine's turn has come.
            scheduler.cancel(leaving)
            taken = len(steps)
            while len(steps) < taken + 10:
                await staying.updates.get()
            assert set(steps[taken + 1 :]) == {"maximal"}
            # The engines share what may be cached of prompts between two steps.
            assert set(budgets[:taken]) == {128}
            assert budgets[-1] == 256

    asyncio.run(asyncio.wait_for(scenario(), 60))


def test_what_is_cancelled_while_another_engine_breaks_is_cancelled():
    """The engine that breaks takes its own rows with it and nobody else's."""
    entered, go_on = threading.Event(), threading.Event()
    steps = []

    def make(settings, rows):
        found = engine(settings, rows)
        step = found.step

        def broken(prefill_tokens):
            entered.set()
            go_on.wait(60)
            raise RuntimeError("out of memory")

        def counted(prefill_tokens):
            steps.append(found)
            return step(prefill_tokens)

        found.step = broken if settings.rule.models == "target" else counted
        return found

    async def scenario():
        async with scheduling(make, num_rows=3) as scheduler:
            breaking, leaving = job(rule="target"), job(rule="speculative", max_new_tokens=2000)
            scheduler.submit(breaking)
            scheduler.submit(leaving)
            await asyncio.to_thread(entered.wait, 60)
            scheduler.cancel(leaving)
            go_on.set()
            with pytest.raises(Refusal, match="the server failed"):
                await text_of(breaking)
            again = job(rule="speculative", max_new_tokens=1)
            scheduler.submit(again)
            assert len(await text_of(again)) == 1
            await asyncio.sleep(0.1)
            assert len(steps) == 1
            assert leaving.updates.empty()

    asyncio.run(asyncio.wait_for(scenario(), 60))


@pytest.mark.parametrize(("age", "least", "most"), [(0, 1, 3), (100, 33, 40), (100_000, 60, 60)])
def test_how_long_a_refused_client_waits_follows_from_how_long_texts_take(age, least, most):
    """A tenth of what the last text took goes into an average that starts at one second."""

    async def scenario():
        async with scheduling(num_rows=1, max_waiting=3) as scheduler:
            ended = job(max_new_tokens=1, age=age)
            scheduler.submit(ended)
            await text_of(ended)
            running = job(max_new_tokens=2000)
            scheduler.submit(running)
            await running.updates.get()
            scheduler.submit(job(n=3))
            with pytest.raises(Refusal) as refused:
                scheduler.submit(job())
            assert refused.value.status == 429
            return int(refused.value.headers["Retry-After"])

    assert least <= asyncio.run(scenario()) <= most
