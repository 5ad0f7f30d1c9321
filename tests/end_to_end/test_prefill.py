"""Prompts are cached in chunks between steps: same texts, short waits, fair turns."""

from dataclasses import replace

import pytest
import torch
from models import llama_pair, near, requests, run, sliding

from easd.core.rules import EASD, Speculative, TargetOnly
from easd.engine.generate import make_engine
from easd.engine.pair import Pair
from easd.engine.settings import Settings

GATED = EASD(tau_h=1.5, tau_o=0.8)


def long_prompts(*lengths):
    generator = torch.Generator().manual_seed(1)
    return [
        tuple(torch.randint(3, 24, (length,), generator=generator).tolist()) for length in lengths
    ]


LENGTHS = (65, 1, 33, 130, 64, 2, 7)


def decode(pair, asked, budget, cancelled=None, num_rows=4, **settings):
    """Ids by number, decoded with so many prompt tokens a step."""
    engine = make_engine(Pair.of(*pair), Settings(rule=GATED, **settings), num_rows=num_rows)
    for request in asked:
        engine.submit(request)
    done, turn = {}, 0
    while engine.busy:
        for record in engine.step(budget):
            done |= {row.request.number: row.ids for row in record.rows if row.finished}
        turn += 1
        if turn == 3 and cancelled is not None:
            engine.cancel(asked[cancelled])
    return done


@pytest.mark.parametrize("coupling", ["shared", "maximal"])
@pytest.mark.parametrize("budget", [7, 32, 1000])
def test_texts_know_no_chunks(budget, coupling):
    asked = requests(long_prompts(*LENGTHS), max_new_tokens=8)
    alone = run(llama_pair(), asked, rule=GATED, batch_size=1, coupling=coupling)
    found = decode(llama_pair(), asked, budget, coupling=coupling)
    assert found == {number: row.ids for number, row in alone.items()}


@pytest.mark.parametrize("name", ["mistral", "gemma3", "qwen2"])
@pytest.mark.parametrize("budget", [5, 6, 16])
def test_sliding_windows_know_no_chunks(name, budget):
    asked = requests(long_prompts(20, 3, 31, 6), max_new_tokens=12)
    alone = run(sliding(name), asked, rule=GATED, batch_size=1)
    assert decode(sliding(name), asked, budget) == {n: row.ids for n, row in alone.items()}


@pytest.mark.parametrize("cancelled", [0, 3])
def test_a_prompt_cancelled_between_chunks_leaves_the_others_alone(cancelled):
    asked = requests(long_prompts(90, 40, 2, 120, 30), max_new_tokens=8)
    alone = run(llama_pair(), asked, rule=GATED, batch_size=1)
    expected = {n: row.ids for n, row in alone.items() if n != cancelled}
    assert decode(llama_pair(), asked, 16, cancelled) == expected


def test_a_prompt_may_fill_the_context_window_in_chunks():
    target, draft = llama_pair()
    asked = [
        replace(request, max_new_tokens=2048 - len(request.prompt))
        for request in requests(long_prompts(2045, 2047))
    ]
    alone = run((target, draft), asked, rule=GATED, batch_size=1)
    found = decode((target, draft), asked, 300)
    assert found == {n: row.ids for n, row in alone.items()}


def watched(lengths, budget, *, stream=True, pair=None, **settings):
    """An engine beside whose stream prompts wait, and tokens fed to each model in a step."""
    pair = pair or llama_pair()
    engine = make_engine(Pair.of(*pair), Settings(**settings), num_rows=len(lengths) + 1)
    asked = requests(long_prompts(5, *lengths), max_new_tokens=3)
    fed = {}
    for model in engine._rows._models:
        extend = model.extend

        def watch(first, pieces, *, model=model, extend=extend):
            fed[id(model)] = fed.get(id(model), 0) + len(pieces) * max(map(len, pieces))
            extend(first, pieces)

        model.extend = watch
    if stream:
        engine.submit(replace(asked[0], max_new_tokens=400))
        engine.step(budget)
    for request in asked[1:]:
        engine.submit(request)

    def step():
        fed.clear()
        return [row for record in engine.step(budget) for row in record.rows], dict(fed)

    return engine, step


@pytest.mark.parametrize("rule", [GATED, Speculative(), TargetOnly()], ids=str)
@pytest.mark.parametrize("lengths", [(600,), (1200,), (300,) * 7, (1, 40, 30, 500, 2)], ids=str)
def test_between_two_tokens_of_a_stream_are_few_of_a_prompt(lengths, rule):
    _, step = watched(lengths, 64, rule=rule)
    steps, ended = 0, set()
    while len(ended) < len(lengths):
        rows, fed = step()
        steps += 1
        assert all(tokens <= 64 for tokens in fed.values())
        assert len(fed) <= (1 if rule == TargetOnly() else 2)
        assert 0 in {row.request.number for row in rows}, "the stream waits for the prompts"
        ended |= {row.request.number for row in rows if row.finished} - {0}
    # No budget is wasted either: what waits is read at the rate that the budget allows.
    assert steps <= sum(lengths) // 64 + 8


def test_short_prompts_do_not_wait_for_long_ones_nor_long_ones_for_ever():
    engine, step = watched((1500, 30), 64)
    started = {}
    newcomers = iter(requests(long_prompts(*[50] * 60), max_new_tokens=3))
    for turn in range(60):
        rows, _ = step()
        for row in rows:
            started.setdefault(row.request.number, turn)
        engine.submit(replace(next(newcomers), number=100 + turn))
        if 1 in started:
            break
    assert started[2] <= 2
    assert 1 in started, "newcomers keep overtaking the long prompt"
    assert started[1] > 1500 / 64


def test_prompts_of_a_batch_share_a_forward():
    _, step = watched((8, 9, 10, 11, 12, 13), 128, stream=False)
    rows, fed = step()
    assert len(rows) == 6
    assert all(tokens == 6 * 12 for tokens in fed.values())


def test_steps_without_a_record_count_their_seconds_once():
    engine, _ = watched((90,), 16, stream=False)
    seconds = []
    waited = 0
    while engine.busy:
        records = engine.step(16)
        waited += not records
        seconds += [record.seconds for record in records]
    assert waited == 5
    assert seconds[0]["prefill"] > 5 * max(later["prefill"] for later in seconds[1:])


def test_the_slots_of_a_draft_with_other_layers_follow():
    target, _ = llama_pair()
    asked = requests(long_prompts(90, 40, 2, 120, 30), max_new_tokens=8)
    pair = target, near(target, noise=0.4, seed=3)
    alone = run(pair, asked, rule=GATED, batch_size=1)
    assert decode(pair, asked, 24, num_rows=3) == {n: row.ids for n, row in alone.items()}
