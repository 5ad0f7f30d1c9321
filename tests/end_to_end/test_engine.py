"""The engine on tiny random models: batches, slots, caches, masks, and what it must refuse."""

import gc
import weakref
from dataclasses import dataclass, replace
from functools import cache

import pytest
import torch
from models import (
    build,
    fresh_pair,
    gpt2_config,
    llama_config,
    llama_pair,
    near,
    prompts,
    requests,
    run,
    texts,
)
from transformers import (
    BloomConfig,
    FalconMambaConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GptOssConfig,
    Lfm2Config,
    MambaConfig,
    MistralConfig,
    OpenAIGPTConfig,
    PegasusConfig,
    Qwen2Config,
    RobertaConfig,
)
from transformers.generation import logits_process as hf

from easd import generate
from easd.core.couplings import COUPLINGS
from easd.core.noise import Noise, race, request_key
from easd.core.rules import EASD, DraftOnly, Speculative, TargetOnly, make_rule, rule_names
from easd.engine.generate import decode, make_engine, make_requests
from easd.engine.processing import Processing
from easd.engine.request import Request
from easd.engine.settings import Settings
from easd.errors import ConfigError, InputError, ModelError, NumericsError

GATED = EASD(tau_h=1.5, tau_o=0.8)
ALL_RULES = [
    replace(rule, tau_h=1.5, tau_o=0.8) if isinstance(rule, EASD) else rule
    for rule in map(make_rule, rule_names())
]
TEXTS = prompts(12)


def processing(**options):
    return Settings(**options).processing(0, [2], [])


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
    done = run((target, None), asked, rule=Speculative(), drafter="prompt-lookup", gamma=5)
    assert all(row.counts.proposed > 0 for row in done.values())
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
    for record in decode(*llama_pair(), asked, Settings(rule=GATED, batch_size=3)):
        most = max(most, len(record.rows))
        done |= {row.request.number: row.new_ids for row in record.rows if row.finished}
    assert most == 3
    assert [done[number] for number in range(14)] == alone
    assert [len(text) for text in alone] == [request.max_new_tokens for request in asked]


def test_cancelled_requests_leave_the_others_alone():
    asked = requests(TEXTS[:8])
    expected = run(llama_pair(), asked, rule=GATED)
    engine = make_engine(*llama_pair(), Settings(rule=GATED), num_rows=4)
    engine.waiting.extend(asked)
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


def test_cancelling_everything_ends_the_engine():
    engine = make_engine(*llama_pair(), Settings(), num_rows=2)
    asked = requests(TEXTS[:3])
    engine.waiting.extend(asked)
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


def test_long_prompts_are_prefilled_in_chunks():
    generator = torch.Generator().manual_seed(0)
    long = [
        tuple(torch.randint(3, 24, (length,), generator=generator).tolist())
        for length in (513, 40, 1100, 512, 514)
    ]
    asked = requests(long, max_new_tokens=6)
    target, draft = llama_pair()
    batched = texts((target, draft), asked, rule=Speculative(), coupling="shared", batch_size=5)
    assert batched == [uncached(target, request) for request in asked]


def uncached(model, request, *, at_once=None):
    """Target-only decoding under shared noise by plain forwards over the whole text."""
    ids = list(request.prompt)
    key = torch.tensor([request_key(request.seed, request.number)])
    while len(ids) < len(request.prompt) + request.max_new_tokens:
        with torch.no_grad():
            given = torch.tensor([ids], device=model.device)
            logits = model(input_ids=given, use_cache=False).logits[:, -1].cpu()
        noise = Noise(keys=key, start=torch.tensor([len(ids)]), shared=True)
        drawn = noise.emit(torch.tensor([0]), logits.shape[-1])
        ids.append(int(race(logits.double().softmax(-1), drawn)))
    return ids[len(request.prompt) :]


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
    assert texts((wide, draft), asked, rule=Speculative(), coupling="shared") == texts(
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
    engine = make_engine(*llama_pair(), Settings(), num_rows=4)
    engine.waiting.extend(asked)
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
    for record in decode(target, draft, requests(TEXTS[:5]), Settings(rule=rule, batch_size=3)):
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


@cache
def sliding(name):
    common = {
        "vocab_size": 24,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "sliding_window": 6,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    config = {
        "mistral": lambda: MistralConfig(num_hidden_layers=2, **common),
        "gemma3": lambda: Gemma3TextConfig(num_hidden_layers=3, layer_types=kinds, **common),
        "gemma3-all-sliding": lambda: Gemma3TextConfig(
            num_hidden_layers=2, layer_types=["sliding_attention"] * 2, **common
        ),
        "qwen2": lambda: Qwen2Config(
            num_hidden_layers=3, layer_types=kinds, use_sliding_window=True, **common
        ),
        "qwen2-window-unused": lambda: Qwen2Config(num_hidden_layers=2, **common),
    }[name]()
    target = build(config, spread=12.0)
    return target, near(target, noise=0.2)


@pytest.mark.parametrize(
    "name", ["mistral", "gemma3", "gemma3-all-sliding", "qwen2", "qwen2-window-unused"]
)
def test_sliding_windows_are_exact(name):
    """Scores of every emitted token against one plain forward over the whole text."""
    target, draft = sliding(name)
    asked = requests(prompts(7, longest=20), max_new_tokens=20, keep_scores=True)
    for row in run((target, draft), asked, rule=Speculative(), batch_size=3).values():
        with torch.no_grad():
            given = torch.tensor([row.ids], device=target.device)
            logits = target(input_ids=given, use_cache=False).logits[0]
        plain = logits[len(row.request.prompt) - 1 : -1]
        torch.testing.assert_close(torch.stack(row.scores), plain, atol=1e-9, rtol=0)


def test_a_draft_that_lags_two_tokens_catches_up():
    """After a full acceptance the draft has seen neither its last token nor the bonus token."""
    target, _ = llama_pair()
    asked = requests(TEXTS[:3], max_new_tokens=13)
    fed = []
    engine = make_engine(target, target, Settings(rule=Speculative(), gamma=3), num_rows=3)
    engine.waiting.extend(asked)
    forward = engine.drafter.model.forward

    def watch(tokens, *rest, **named):
        fed.append(tokens.shape[1])
        return forward(tokens, *rest, **named)

    engine.drafter.model.forward = watch
    done = {}
    while engine.busy:
        (record,) = engine.step()
        done |= {row.request.number: row.ids for row in record.rows if row.finished}
    assert 2 in fed
    plain = run((target, None), asked, rule=TargetOnly())
    assert {len(ids) for ids in done.values()} == {len(row.ids) for row in plain.values()}


def test_capacity_grows_in_the_middle_of_a_text():
    pair = llama_pair()
    asked = requests(TEXTS[:3], max_new_tokens=150)
    engine = make_engine(*pair, Settings(rule=Speculative(), coupling="shared"), num_rows=3)
    engine.waiting.extend(asked)
    capacities, done = set(), {}
    while engine.busy:
        (record,) = engine.step()
        done |= {r.request.number: r.new_ids for r in record.rows if r.finished}
        capacities.add(engine.target.cache.placement.capacity)
    assert capacities == {64, 128, 256}
    plain = texts((pair[0], None), asked, rule=TargetOnly(), coupling="shared", batch_size=1)
    assert [done[number] for number in range(3)] == plain


@pytest.mark.parametrize("rule", [Speculative(), replace(GATED, draft_at_bonus=True)], ids=str)
def test_keys_and_values_are_never_recomputed(rule, monkeypatch):
    """Each token goes through the target once; only refused drafts are forwarded in vain."""
    target, draft = llama_pair()
    fed = {id(target): 0, id(draft): 0}
    hooks = [
        model.register_forward_pre_hook(
            lambda model, _, named: fed.update(
                {id(model): fed[id(model)] + named["input_ids"].numel()}
            ),
            with_kwargs=True,
        )
        for model in (target, draft)
    ]
    try:
        (row,) = run((target, draft), requests(TEXTS[5:6], max_new_tokens=40), rule=rule).values()
    finally:
        for hook in hooks:
            hook.remove()
    counts = row.counts
    prompt = len(row.request.prompt)
    assert fed[id(target)] == prompt - 1 + counts.blocks + counts.proposed
    # The draft: prompt, its own tokens and what it did not draft itself, each at most once.
    assert fed[id(draft)] <= prompt - 1 + counts.proposed + 2 * counts.blocks


def test_no_step_copies_the_cache():
    """Slots stay where they are until the capacity grows, and returned keys are views of them."""
    engine = make_engine(*llama_pair(), Settings(rule=GATED), num_rows=4)
    engine.waiting.extend(requests(TEXTS[:4], max_new_tokens=30))
    engine.step()
    homes = [layer.keys.data_ptr() for layer in engine.target.cache.layers]
    layer = engine.target.cache.layers[0]
    seen = []
    update = layer.update

    def watch(*states, **named):
        keys, values = update(*states, **named)
        seen.append(keys.untyped_storage().data_ptr() == layer.keys.untyped_storage().data_ptr())
        return keys, values

    layer.update = watch
    while engine.busy:
        engine.step()
    assert seen
    assert all(seen)
    assert [layer.keys.data_ptr() for layer in engine.target.cache.layers] == homes


@pytest.mark.parametrize("config", [gpt2_config(24), llama_config()], ids=lambda c: c.model_type)
def test_a_text_may_fill_the_context_window(config):
    config.max_position_embeddings = 32
    target = build(config, spread=12.0)
    pair = target, near(target)
    asked = [
        replace(request, max_new_tokens=32 - len(request.prompt))
        for request in requests(prompts(5, longest=30))
    ]
    spoken = texts(pair, asked, rule=Speculative(), coupling="shared", gamma=5)
    assert spoken == [uncached(target, request) for request in asked]
    with pytest.raises(InputError, match="context window of 32"):
        texts(pair, [replace(asked[0], max_new_tokens=32)], rule=Speculative())


TINY = {"vocab_size": 24, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
REFUSED = {
    "recurrent": MambaConfig(hidden_size=16, num_hidden_layers=1, state_size=4, **TINY),
    "recurrent too": FalconMambaConfig(hidden_size=16, num_hidden_layers=1, state_size=4, **TINY),
    "hybrid": Lfm2Config(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        layer_types=["conv", "full_attention"],
        **TINY,
    ),
    "positions of its own": PegasusConfig(
        d_model=16, decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=16, **TINY
    ),
    "ALiBi": BloomConfig(hidden_size=16, n_layer=1, n_head=2, **TINY),
    "soft-capped": Gemma2Config(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        **TINY,
    ),
    "attention sinks": GptOssConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        num_local_experts=2,
        num_experts_per_tok=1,
        **TINY,
    ),
    "no cache": OpenAIGPTConfig(n_embd=16, n_layer=1, n_head=2, **TINY),
    "positions after padding": RobertaConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        is_decoder=True,
        **TINY,
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_models_that_slots_cannot_serve_are_refused(kind):
    model = build(REFUSED[kind], dtype=torch.float32)
    with pytest.raises(ModelError, match="transformers' own generate") as caught:
        texts((model, None), requests(TEXTS[:1]), rule=TargetOnly())
    assert ("keeps no keys and values" in str(caught.value)) == (kind == "no cache")


def test_chunked_attention_is_refused():
    from transformers import Llama4TextConfig

    config = Llama4TextConfig(
        hidden_size=16,
        intermediate_size=16,
        intermediate_size_mlp=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        num_local_experts=1,
        layer_types=["chunked_attention", "full_attention"],
        **TINY,
    )
    model = build(config, dtype=torch.float32)
    with pytest.raises(ModelError, match="chunked_attention"):
        texts((model, None), requests(TEXTS[:1]), rule=TargetOnly())


def test_encoder_decoders_are_refused():
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0, **TINY
    )
    with pytest.raises(ModelError, match="encoder-decoder"):
        texts((T5ForConditionalGeneration(config), None), requests(TEXTS[:1]), rule=TargetOnly())


# Numbers that are none.


def poisoned(model, *, after):
    """`model` with NaN logits from the forward after `after` on."""
    calls = []

    def spoil(module, args, output):
        calls.append(1)
        if len(calls) > after:
            output.logits[:] = float("nan")

    model.register_forward_hook(spoil)
    return model


@pytest.mark.parametrize("greedy", [False, True])
@pytest.mark.parametrize("which", ["target", "draft"])
@pytest.mark.parametrize("rule", [Speculative(), GATED], ids=str)
def test_nan_logits_are_one_clear_error(which, greedy, rule):
    target, draft = fresh_pair()
    poisoned(target if which == "target" else draft, after=5)
    asked = requests(TEXTS[:3], processing=processing(temperature=0 if greedy else 1))
    with pytest.raises(NumericsError, match=f"the {which}'s logits are NaN") as caught:
        texts((target, draft), asked, rule=rule)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("greedy", [False, True])
def test_a_processor_that_bans_everything_is_one_clear_error(greedy):
    def ban(ids, scores):
        return scores.fill_(float("-inf")) if ids.shape[1] > 8 else scores

    asked = requests(TEXTS[:3], processing=Processing((ban,), greedy=greedy))
    with pytest.raises(NumericsError, match="leave no token to choose"):
        texts(llama_pair(), asked, rule=GATED)


@pytest.mark.parametrize("greedy", [False, True])
@pytest.mark.parametrize("rule", [Speculative(), GATED], ids=str)
def test_a_draft_that_knows_no_allowed_token_is_overruled(greedy, rule):
    """A reduced head leaves -inf on most of the vocabulary; a grammar may allow only those."""
    target, draft = fresh_pair()

    def reduce_head(module, args, output):
        output.logits[..., 12:] = float("-inf")

    draft.register_forward_hook(reduce_head)
    allowed = [13, 14, 15]

    def grammar(ids, scores):
        only = torch.full_like(scores, float("-inf"))
        only[:, allowed] = scores[:, allowed]
        return only

    asked = requests(TEXTS[:3], processing=Processing((grammar,), greedy=greedy))
    spoken = texts((target, draft), asked, rule=rule)
    assert all(set(text) <= set(allowed) for text in spoken)
    if greedy:
        assert spoken == texts((target, draft), asked, rule=TargetOnly())


@dataclass
class Watch:
    """A processor that records the texts it is asked about."""

    seen: list

    def __call__(self, ids, scores):
        self.seen.append(tuple(ids[0].tolist()))
        return scores


@pytest.mark.parametrize("drafter", ["model", "prompt-lookup"])
def test_processors_are_asked_only_about_texts_that_may_be(drafter):
    """Never behind an end-of-sequence token, the last token allowed, or padding of the batch."""
    seen = []
    asked = [
        replace(request, max_new_tokens=1 + 3 * request.number)
        for request in requests(
            [(5, 6, 5, 6, 5)] * 9, eos=frozenset({4, 5}), processing=Processing((Watch(seen),))
        )
    ]
    target, draft = llama_pair()
    pair = (target, draft if drafter == "model" else None)
    done = run(pair, asked, rule=Speculative(), drafter=drafter, gamma=6)
    assert {row.finished for row in done.values()} == {"eos", "length"}
    new = [text[5:] for text in seen]
    assert max(map(len, new)) < 1 + 3 * 8
    assert not any({4, 5} & set(text) for text in new)


def test_processors_see_the_prefix_of_their_own_position():
    """A repetition penalty in blocks of 6 is that of one token at a time."""
    fields = {"processing": Processing((hf.RepetitionPenaltyLogitsProcessor(1.7),))}
    asked = requests(TEXTS[:5], **fields)
    blocks = texts(llama_pair(), asked, rule=Speculative(), coupling="shared", gamma=6)
    assert blocks == texts(llama_pair(), asked, rule=TargetOnly(), coupling="shared")


def test_draft_only_needs_no_target_forward():
    target, draft = llama_pair()
    done = texts((target, draft), requests(TEXTS[:2]), rule=DraftOnly(), coupling="shared")
    assert done == texts((draft, None), requests(TEXTS[:2]), rule=TargetOnly(), coupling="shared")


def test_dropout_of_the_config_is_not_the_engines_business():
    config = GPT2Config(vocab_size=24, n_positions=32, n_embd=16, n_layer=1, n_head=2)
    model = build(config, spread=4.0)
    asked = requests(TEXTS[:2])
    spoken = texts((model, model), asked, rule=Speculative(), coupling="shared")
    assert spoken == [uncached(model, request) for request in asked]


def test_an_engine_out_of_use_frees_its_slots_at_once():
    target = build(gpt2_config())
    settings = Settings(rule=TargetOnly(), max_new_tokens=3)
    engine = make_engine(target, None, settings, num_rows=2)
    engine.waiting.extend(make_requests([target], [[1, 2], [3]], settings, None))
    while engine.busy:
        engine.step()
    slots = weakref.ref(engine.target.cache)
    gc.disable()  # Reference counts alone must do, or a long run waits for the collector.
    try:
        del engine
        assert slots() is None
    finally:
        gc.enable()
