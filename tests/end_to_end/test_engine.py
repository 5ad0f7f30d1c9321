"""The engine on tiny random models: batches, rules, drafters, and what it must refuse."""

from dataclasses import replace
from functools import cache

import pytest
import torch
from models import (
    build,
    fresh_pair,
    llama_config,
    llama_pair,
    processing,
    prompts,
    requests,
    run,
    texts,
    word_tokenizer,
)

from easd import generate
from easd.core.couplings import COUPLINGS
from easd.core.rules import EASD, DraftOnly, Speculative, TargetOnly, make_rule, rule_names
from easd.engine.generate import decode, make_engine
from easd.engine.pair import Pair
from easd.engine.request import Request
from easd.engine.settings import Settings
from easd.errors import ConfigError, InputError, ModelError

GATED = EASD(tau_h=1.5, tau_o=0.8)
ALL_RULES = [
    replace(rule, tau_h=1.5, tau_o=0.8) if isinstance(rule, EASD) else rule
    for rule in map(make_rule, rule_names())
]
TEXTS = prompts(12)


SAMPLED = {"processing": processing(temperature=0.8, top_k=12, repetition_penalty=1.2)}
GREEDY = {"processing": processing(temperature=0, repetition_penalty=1.2)}


def test_the_gate_of_the_pair_opens():
    done = run(llama_pair(), requests(TEXTS), rule=GATED)
    examined = sum(row.counts.examined for row in done.values())
    penalised = sum(row.counts.penalised for row in done.values())
    assert 0.2 < penalised / examined < 0.7


@pytest.mark.parametrize("fields", [{}, SAMPLED, GREEDY], ids=["plain", "sampled", "greedy"])
@pytest.mark.parametrize("rule", ALL_RULES, ids=rule_names())
def test_batched_is_alone(rule, fields):
    asked = requests(TEXTS[:5], max_new_tokens=8, eos=frozenset({2}), **fields)
    alone = texts(llama_pair(), asked, rule=rule, batch_size=1)
    assert texts(llama_pair(), asked, rule=rule) == alone
    assert texts(llama_pair(), asked, rule=rule, batch_size=2) == alone


def test_a_request_keeps_its_text_in_any_order_and_company():
    asked = requests(TEXTS, seed=5)
    straight = run(llama_pair(), asked, rule=GATED, batch_size=4)
    backwards = run(llama_pair(), asked[::-1], rule=GATED, batch_size=5)
    some = run(llama_pair(), asked[3:7], rule=GATED)
    assert {n: row.ids for n, row in straight.items()} == {n: r.ids for n, r in backwards.items()}
    assert all(straight[number].ids == row.ids for number, row in some.items())


def test_another_seed_and_another_number_give_other_texts():
    asked = [
        Request(prompt=TEXTS[1], number=number, seed=seed, max_new_tokens=12)
        for number in range(3)
        for seed in range(3)
    ]
    alone = [tuple(texts(llama_pair(), [request], rule=GATED)[0]) for request in asked]
    assert len(set(alone)) == 9


@cache
def target_only_text(fields=None):
    return texts(llama_pair(), requests(TEXTS), rule=TargetOnly(), coupling="shared")


@pytest.mark.parametrize("batch_size", [1, 3, 16])
@pytest.mark.parametrize("gamma", [1, 2, 5, 8])
def test_speculation_under_shared_noise_is_the_target_token_for_token(gamma, batch_size):
    spoken = texts(
        llama_pair(),
        requests(TEXTS),
        rule=Speculative(),
        coupling="shared",
        gamma=gamma,
        batch_size=batch_size,
    )
    assert spoken == target_only_text()


def test_prompt_lookup_under_shared_noise_is_the_target_token_for_token():
    spoken = texts(
        (llama_pair()[0], None),
        requests(TEXTS),
        rule=Speculative(),
        coupling="shared",
        drafter="prompt-lookup",
        batch_size=5,
    )
    assert spoken == target_only_text()


def test_prompt_lookup_proposes_and_is_accepted_on_repetitive_text():
    target, _ = llama_pair()
    asked = [
        Request(
            prompt=(5, 6, 7, 8) * 4,
            number=n,
            max_new_tokens=24,
            processing=processing(temperature=0),
        )
        for n in range(2)
    ]
    lookup = {"rule": Speculative(), "drafter": "prompt-lookup", "gamma": 5}
    done = run((target, None), asked, **lookup)
    assert all(row.counts.proposed > 0 for row in done.values())
    first = next(iter(decode(Pair.of(target), asked, Settings(**lookup))))
    assert first.step.num_draft_tokens.tolist() == [5, 5]
    assert first.step.draft_tokens.tolist() == [[5, 6, 7, 8, 5]] * 2
    tokens, probs = first.step.draft_tokens, first.step.draft_probs[:, :5]
    assert torch.equal(probs, torch.zeros_like(probs).scatter(-1, tokens[..., None], 1))
    greedy = run((target, None), asked, rule=TargetOnly())
    assert {n: row.ids for n, row in done.items()} == {n: row.ids for n, row in greedy.items()}


def test_gated_bonus_under_shared_noise_knows_no_gamma_and_no_batch():
    rule = replace(GATED, draft_at_bonus=True)
    spoken = [
        texts(
            llama_pair(),
            requests(TEXTS),
            rule=rule,
            coupling="shared",
            gamma=gamma,
            batch_size=batch_size,
        )
        for gamma, batch_size in [(1, 1), (8, 1), (1, 16), (8, 16)]
    ]
    assert all(text == spoken[0] for text in spoken)
    assert spoken[0] != target_only_text()


@pytest.mark.parametrize("batch_size", [1, 5, 16])
@pytest.mark.parametrize("fields", [{}, SAMPLED, GREEDY], ids=["plain", "sampled", "greedy"])
@pytest.mark.parametrize("rule", [Speculative(), replace(GATED, draft_at_bonus=True)])
def test_blocks_that_end_early_keep_the_text_under_shared_noise(rule, fields, batch_size):
    asked = requests(TEXTS, **fields)
    whole = run(llama_pair(), asked, rule=rule, coupling="shared", gamma=6)
    early = run(
        *(llama_pair(), asked),
        rule=rule,
        coupling="shared",
        gamma=6,
        batch_size=batch_size,
        least_block_prob=0.3,
    )
    assert {n: row.ids for n, row in early.items()} == {n: row.ids for n, row in whole.items()}
    proposed = [sum(row.counts.proposed for row in done.values()) for done in (early, whole)]
    assert 0 < proposed[0] < 0.9 * proposed[1]


@pytest.mark.parametrize("rule", [Speculative(), replace(GATED, draft_at_bonus=True)])
def test_where_a_block_ends_is_the_rows_own_business(rule):
    asked = requests(TEXTS[:5], max_new_tokens=8)
    alone = texts(llama_pair(), asked, rule=rule, batch_size=1, gamma=6, least_block_prob=0.3)
    assert texts(llama_pair(), asked, rule=rule, gamma=6, least_block_prob=0.3) == alone


def test_blocks_do_not_end_early_where_the_bonus_is_not_gated():
    with pytest.raises(ConfigError, match="draft_at_bonus = true"):
        Settings(rule=GATED, least_block_prob=0.4)


def test_a_gate_that_never_opens_is_speculation():
    rule = EASD(tau_h=float("inf"), draft_at_bonus=True)
    for coupling in COUPLINGS:
        asked = requests(TEXTS)
        closed = texts(llama_pair(), asked, rule=rule, coupling=coupling)
        assert closed == texts(llama_pair(), asked, rule=Speculative(), coupling=coupling)


def test_easd_is_the_target_up_to_the_first_token_a_penalty_changed():
    """The law of every position decides: where it is the target's, the token is the target's."""
    rule = replace(GATED, draft_at_bonus=True)
    differing = 0
    for number, (plain, gated) in enumerate(
        zip(
            target_only_text(),
            texts(llama_pair(), requests(TEXTS), rule=rule, coupling="shared", gamma=3),
            strict=True,
        )
    ):
        same = next((i for i, (a, b) in enumerate(zip(plain, gated, strict=True)) if a != b), None)
        if same is None:
            continue
        differing += 1
        assert gate_is_open(rule, [*TEXTS[number], *plain[:same]])
    assert differing > 2


def gate_is_open(rule, prefix):
    from easd.core.step import Step

    target, draft = llama_pair()
    ids = torch.tensor([prefix], device=target.device)
    with torch.no_grad():
        p, q = (model(ids, use_cache=False).logits[:, -1:].softmax(-1) for model in (target, draft))
    step = Step(
        draft_tokens=ids[:, :0],
        num_draft_tokens=torch.zeros_like(ids[:, 0]),
        draft_probs=q,
        target_probs=p,
    )
    return bool(rule.signals(step)["gate"][0, 0])


def test_freed_slots_are_refilled():
    """Prompts of 1 to 60 tokens and texts of 1 to 30 through three slots."""
    asked = [
        replace(request, max_new_tokens=1 + 29 * (request.number % 3 == 0) + request.number % 5)
        for request in requests(prompts(14, longest=60, seed=3))
    ]
    alone = [texts(llama_pair(), [request], rule=GATED)[0] for request in asked]
    most = 0
    done = {}
    for record in decode(Pair.of(*llama_pair()), asked, Settings(rule=GATED, batch_size=3)):
        most = max(most, len(record.rows))
        done |= {row.request.number: row.new_ids for row in record.rows if row.finished}
    assert most == 3
    assert [done[number] for number in range(14)] == alone
    assert [len(text) for text in alone] == [request.max_new_tokens for request in asked]


def test_cancelled_requests_leave_the_others_alone():
    asked = requests(TEXTS[:8])
    expected = run(llama_pair(), asked, rule=GATED)
    engine = make_engine(Pair.of(*llama_pair()), Settings(rule=GATED), num_rows=4)
    for request in asked:
        engine.submit(request)
    done = {}
    for turn in range(1000):
        if turn == 1:
            engine.cancel(asked[0])  # decoding, in the first place
            engine.cancel(asked[3])  # decoding, in the last place
            engine.cancel(asked[6])  # waiting
            engine.cancel(replace(asked[1]))  # unknown: another request with the same number
        if not engine.busy:
            break
        (record,) = engine.step()
        done |= {row.request.number: row.ids for row in record.rows if row.finished}
    assert not engine.busy
    assert done == {n: row.ids for n, row in expected.items() if n not in (0, 3, 6)}


def test_what_submit_refuses_leaves_the_others_alone():
    asked = requests(TEXTS[:2])
    engine = make_engine(Pair.of(*llama_pair()), Settings(rule=GATED), num_rows=2)
    engine.submit(asked[0])
    engine.step()
    with pytest.raises(InputError, match="prompt 1 is empty"):
        engine.submit(replace(asked[1], prompt=()))
    with pytest.raises(InputError, match="context window of 2048"):
        engine.submit(replace(asked[1], max_new_tokens=2048))
    with pytest.raises(ConfigError, match="decode each by itself"):
        engine.submit(replace(asked[1], rule=TargetOnly()))
    engine.submit(asked[1])
    done = {}
    while engine.busy:
        (record,) = engine.step()
        done |= {row.request.number: row.new_ids for row in record.rows if row.finished}
    assert [done[0], done[1]] == texts(llama_pair(), asked, rule=GATED)


def test_cancelling_everything_ends_the_engine():
    engine = make_engine(Pair.of(*llama_pair()), Settings(), num_rows=2)
    asked = requests(TEXTS[:3])
    for request in asked:
        engine.submit(request)
    engine.step()
    for request in asked:
        engine.cancel(request)
    assert not engine.busy


@pytest.mark.parametrize("rule", [Speculative(), replace(GATED, draft_at_bonus=True)], ids=str)
@pytest.mark.parametrize("length", [1, 2])
def test_texts_of_one_or_two_tokens(rule, length):
    asked = requests(TEXTS, max_new_tokens=length)
    spoken = texts(llama_pair(), asked, rule=rule, coupling="shared", gamma=4)
    assert [len(text) for text in spoken] == [length] * len(asked)
    done = run(llama_pair(), asked, rule=rule, gamma=4)
    assert all(row.counts.proposed <= length - 1 for row in done.values())


def test_several_texts_per_prompt_differ_and_are_reproducible():
    target, draft = llama_pair()
    options = {"n": 3, "max_new_tokens": 12, "rule": GATED}
    first = generate(target, draft, TEXTS[:2], **options)
    again = generate(target, draft, TEXTS[:2], batch_size=1, **options)
    assert [g.token_ids for g in first] == [g.token_ids for g in again]
    assert [g.number for g in first] == list(range(6))
    assert [g.prompt_ids for g in first] == [TEXTS[0]] * 3 + [TEXTS[1]] * 3
    assert len({tuple(g.token_ids) for g in first[:3]}) == 3


def test_unequal_padding_of_vocabularies():
    target, draft = llama_pair()
    wide = build(llama_config(vocab_size=40), seed=9)
    weights = draft.state_dict()
    for name, values in wide.state_dict().items():
        if values.shape != weights[name].shape:  # embeddings and head: the rows beyond are padding
            values[:24] = weights[name]
            weights[name] = values
    wide.load_state_dict(weights)
    asked = requests(TEXTS[:4])
    assert texts((target, wide), asked, rule=GATED) == texts((target, draft), asked, rule=GATED)
    # Of a target, only a tokenizer tells which rows are no tokens.
    known = word_tokenizer(24)
    assert texts((wide, draft, known), asked, rule=Speculative(), coupling="shared") == texts(
        (draft, draft), asked, rule=TargetOnly(), coupling="shared"
    )


@pytest.mark.parametrize("prompt", [(5, 24), (5, -1)])
def test_token_ids_outside_the_vocabulary_are_refused(prompt):
    with pytest.raises(InputError, match="the vocabulary 24 tokens"):
        texts(llama_pair(), requests([prompt]))


def test_requests_share_a_batch_whatever_their_rules_and_temperatures():
    """Never one row's temperature or rule for another's."""
    kinds = [processing(temperature=t, top_k=k) for t, k in [(0, 0), (0.5, 0), (1, 4), (1, 0)]]
    rules = [r for r in ALL_RULES if r.models == "both" and not r.draft_at_bonus]
    asked = [
        replace(
            request,
            rule=rules[place % len(rules)],
            processing=kinds[place % len(kinds)],
            wants_raw=place % 5 == 0,
        )
        for place, request in enumerate(requests(TEXTS * 3))
    ]
    alone = [texts(llama_pair(), [request], rule=request.rule)[0] for request in asked]
    assert texts(llama_pair(), asked, batch_size=len(asked)) == alone
    assert texts(llama_pair(), asked, batch_size=7) == alone


def test_a_step_has_a_record_for_each_rule_and_greediness():
    asked = [
        replace(request, rule=rule, processing=processing(temperature=temperature))
        for request, rule, temperature in zip(
            requests(TEXTS[:4]),
            [GATED, Speculative(), GATED, GATED],
            [1.0, 1.0, 0.7, 0.0],
            strict=True,
        )
    ]
    engine = make_engine(Pair.of(*llama_pair()), Settings(), num_rows=4)
    for request in asked:
        engine.submit(request)
    records = engine.step()
    assert [[row.request.number for row in r.rows] for r in records] == [[0, 2], [1], [3]]
    assert [r.step.raw_target_probs is None for r in records] == [True, True, False]
    assert all(len(r.step.target_probs) == len(r.committed) == len(r.rows) for r in records)


@pytest.mark.parametrize("other", [TargetOnly(), DraftOnly(), replace(GATED, draft_at_bonus=True)])
def test_rules_that_run_the_models_in_another_way_do_not_share_a_batch(other):
    asked = [replace(requests(TEXTS[:1])[0], rule=other)]
    with pytest.raises(ConfigError, match="decode each by itself"):
        texts(llama_pair(), asked, rule=GATED)


@pytest.mark.parametrize("field", ["stop", "bad_words"])
def test_one_text_where_several_are_asked_for_is_refused(field):
    with pytest.raises(ConfigError, match="'w5 w7' is one text; give a list"):
        Settings(**{field: "w5 w7"})


def test_vocabularies_unequal_beyond_padding_are_refused():
    target, _ = llama_pair()
    other = build(llama_config(vocab_size=2000))
    with pytest.raises(ModelError, match=r"draft vocabulary \(2000\).*target vocabulary \(24\)"):
        texts((target, other), requests(TEXTS[:1]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rule", [Speculative(), GATED], ids=str)
def test_smaller_dtypes(dtype, rule):
    target, draft = (model.to(dtype) for model in fresh_pair())
    seen = []
    pair, settings = Pair.of(target, draft), Settings(rule=rule, batch_size=3)
    for record in decode(pair, requests(TEXTS[:5]), settings):
        seen.append(record.step.target_probs)
    assert all(probs.dtype == torch.float32 for probs in seen)
    ones = torch.cat([probs.sum(-1).flatten() for probs in seen])
    torch.testing.assert_close(ones, torch.ones_like(ones), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("target", "draft"), [(torch.float64, torch.float32), (torch.float32, torch.bfloat16)], ids=str
)
@pytest.mark.parametrize("rule", [Speculative(), GATED])
@pytest.mark.parametrize("coupling", COUPLINGS)
def test_pairs_of_unequal_dtypes(target, draft, rule, coupling):
    pair = fresh_pair()
    spoken = texts(
        (pair[0].to(target), pair[1].to(draft)), requests(TEXTS[:3]), rule=rule, coupling=coupling
    )
    assert [len(text) for text in spoken] == [16] * 3


def test_a_model_can_draft_for_itself():
    target, _ = llama_pair()
    done = run((target, target), requests(TEXTS[:4]), rule=Speculative(), gamma=4)
    assert all(row.counts.accepted == row.counts.examined for row in done.values())


def test_draft_only_needs_no_target_forward():
    target, draft = llama_pair()
    done = texts((target, draft), requests(TEXTS[:2]), rule=DraftOnly(), coupling="shared")
    assert done == texts((draft, None), requests(TEXTS[:2]), rule=TargetOnly(), coupling="shared")
