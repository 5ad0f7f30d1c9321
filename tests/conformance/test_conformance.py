"""One test for each thread that users of other engines opened about what this engine does too.

Each docstring names the thread upstream (owner/repository#number) and the behaviour expected here.
"""

from collections import Counter
from itertools import pairwise

import pytest
import torch
from models import (
    build,
    fresh_pair,
    llama_pair,
    near,
    prompts,
    requests,
    run,
    texts,
    word_tokenizer,
)
from scipy.stats import chisquare
from torch.nn.functional import one_hot
from transformers import Gemma3TextConfig
from transformers.generation import logits_process as hf

from easd import EASD, Speculative, custom_generate, generate
from easd.core.noise import Noise, race, request_key
from easd.core.rules import TargetOnly
from easd.engine.generate import decode
from easd.engine.pair import Pair
from easd.engine.processing import Processing
from easd.engine.request import Request
from easd.engine.settings import Settings

TEXTS = prompts(6)
GREEDY = Processing(greedy=True)
GAMMA = 6


def same_model():
    """The target drafts for itself, so that everything happens in the middle of full blocks."""
    target, _ = llama_pair()
    return target, target


def spoken(pair, asked, **settings):
    return texts(
        pair, asked, **{"rule": Speculative(), "gamma": GAMMA, "coupling": "shared"} | settings
    )


def long_texts():
    return spoken(same_model(), requests(TEXTS, max_new_tokens=24), rule=TargetOnly())


def steps(pair, asked, **settings):
    return decode(Pair.of(*pair), asked, Settings(**{"batch_size": len(asked)} | settings))


# Distribution.


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_the_draft_probabilities_shown_are_those_sampled_from(temperature):
    """huggingface/transformers#47932: the q returned was not the q that was sampled.

    Draft tokens of thousands of requests with one prompt, against the `draft_probs` of the step.
    """
    processing = Settings(temperature=temperature, top_k=6).processing(0, [], [])
    asked = requests([TEXTS[1]] * 2000, max_new_tokens=3, processing=processing)
    record = next(steps(llama_pair(), asked, rule=Speculative(), gamma=1))
    probs = record.step.draft_probs[0, 0]
    counts = torch.bincount(record.step.draft_tokens[:, 0], minlength=len(probs)).double()
    assert int((probs > 0).sum()) == 6
    assert counts[probs == 0].sum() == 0
    expected = probs[probs > 0] * 2000
    assert chisquare(counts[probs > 0], expected * (2000 / expected.sum())).pvalue > 1e-3


def test_greedy_decoding_drafts_greedily_under_the_greedy_rule():
    """huggingface/transformers#32867: a greedy draft was judged by the sampling rule.

    Both sides are one-hot, a draft token is kept where it is the target's best, and never else.
    """
    asked = requests(TEXTS, processing=GREEDY)
    for record in steps(llama_pair(), asked, rule=Speculative()):
        step, judgement = record.step, record.decision.judgement
        proposed = step.draft_probs[:, :-1].gather(-1, step.draft_tokens[..., None])
        there = step.has_draft()[:, :-1]
        assert (proposed[..., 0] == 1)[there].all()
        best = step.target_probs[:, :-1].argmax(-1)
        assert (judgement.accept_prob == (best == step.draft_tokens))[there].all()


def test_bfloat16_models_are_judged_in_float32():
    """deepseek-ai/DeepSpec#31: bfloat16 sampling against float32 acceptance.

    Both sides are float32 probabilities of the bfloat16 logits, rounded nowhere in between.
    """
    target, draft = (model.to(torch.bfloat16) for model in fresh_pair())
    for record in steps((target, draft), requests(TEXTS), rule=Speculative()):
        for probs in (record.step.draft_probs, record.step.target_probs):
            assert probs.dtype == torch.float32
            rows = probs[probs.sum(-1) > 0]
            torch.testing.assert_close(rows.sum(-1), torch.ones(len(rows)), atol=1e-5, rtol=0)
            assert (rows.to(torch.bfloat16).float() != rows).any()
        assert record.decision.judgement.accept_prob.dtype == torch.float32


def test_every_block_has_draft_probabilities():
    """vllm-project/vllm#40149: draft_probs was None and the rule fell back without a word."""
    for record in steps(llama_pair(), requests(TEXTS), rule=Speculative()):
        sums = record.step.draft_probs.sum(-1)
        for row, count in enumerate(record.step.num_draft_tokens.tolist()):
            assert sums[row, :count].allclose(torch.ones(count, dtype=sums.dtype))


def test_logits_of_many_tokens_are_those_of_one():
    """vllm-project/vllm#8783: scoring n tokens at once gave other logits than one by one."""
    blocks = run(
        llama_pair(), requests(TEXTS, keep_scores=True), rule=Speculative(), coupling="shared"
    )
    singles = run(
        llama_pair(), requests(TEXTS, keep_scores=True), rule=TargetOnly(), coupling="shared"
    )
    for number, row in blocks.items():
        torch.testing.assert_close(
            torch.stack(row.scores), torch.stack(singles[number].scores), atol=1e-9, rtol=0
        )


# Stop and end of sequence.


def test_a_stop_string_in_the_middle_of_a_block_ends_the_text_there():
    """huggingface/transformers#48039: text went on behind a stop string completed mid-block."""
    target, _ = llama_pair()
    tokenizer = word_tokenizer()
    options = {"coupling": "shared", "tokenizer": tokenizer, "rule": Speculative(), "gamma": GAMMA}
    for free in generate(target, target, TEXTS, max_new_tokens=24, **options):
        prompt = [free.prompt_ids]
        stop = tokenizer.decode(free.token_ids[2:4])
        (cut,) = generate(target, target, prompt, stop=(stop,), max_new_tokens=24, **options)
        if free.number == 0:
            assert cut.token_ids == free.token_ids[: len(cut.token_ids)]
        assert cut.finish_reason in ("stop", "length")
        decoded = tokenizer.decode(cut.token_ids)
        assert decoded.count(stop) == (cut.finish_reason == "stop")
        assert decoded.endswith(stop) or cut.finish_reason == "length"


def test_a_stop_string_may_lie_across_tokens_and_blocks():
    """huggingface/transformers#48039, the other half: no completed stop string is missed."""
    target, _ = llama_pair()
    tokenizer = word_tokenizer()
    options = {"coupling": "shared", "tokenizer": tokenizer, "rule": Speculative(), "gamma": 3}
    (free,) = generate(target, target, [TEXTS[2]], max_new_tokens=20, **options)
    for begin in range(17):
        stop = tokenizer.decode(free.token_ids[begin : begin + 3])[1:]  # from inside a word on
        (cut,) = generate(target, target, [TEXTS[2]], stop=(stop,), max_new_tokens=20, **options)
        lengths = range(1, begin + 4)
        first = next(n for n in lengths if stop in tokenizer.decode(free.token_ids[:n]))
        assert (cut.token_ids, cut.finish_reason) == (free.token_ids[:first], "stop")


def test_end_of_sequence_in_the_middle_of_a_block_ends_the_text_there():
    """huggingface/transformers#47912: tokens behind an accepted EOS were kept."""
    free = long_texts()
    for place in range(1, 12):
        end = frozenset({free[1][place]})
        asked = requests(TEXTS, max_new_tokens=24, eos=end)
        done = run(same_model(), asked, rule=Speculative(), gamma=GAMMA, coupling="shared")
        for number, row in done.items():
            at = next((i for i, t in enumerate(free[number]) if t in end), None)
            assert row.new_ids == (free[number] if at is None else free[number][: at + 1])
            assert row.finished == ("length" if at is None else "eos")


def test_the_token_limit_does_not_hide_an_earlier_stop():
    """sgl-project/sglang#31599: with both in one block, `length` was reported instead of `stop`."""
    free = long_texts()
    for limit in range(1, 10):
        end = frozenset({free[1][limit - 1]})
        first = free[1].index(free[1][limit - 1]) + 1
        (row,) = run(
            same_model(),
            [Request(prompt=TEXTS[1], number=1, max_new_tokens=limit, eos=end)],
            rule=Speculative(),
            gamma=GAMMA,
            coupling="shared",
        ).values()
        assert (row.finished, len(row.new_ids)) == ("eos", first)


def test_a_criterion_met_in_the_middle_of_a_block_ends_the_text_there():
    """huggingface/transformers 5.23: custom criteria were asked once a block and missed."""
    asked_about = []

    def three_long(text, scores):
        asked_about.append(text.shape[1])
        return text.shape[1] == len(TEXTS[1]) + 3

    asked = [Request(prompt=TEXTS[1], max_new_tokens=20, criteria=(three_long,))]
    (row,) = run(same_model(), asked, rule=Speculative(), gamma=GAMMA).values()
    assert (row.finished, len(row.new_ids)) == ("stop", 3)
    assert asked_about == [len(TEXTS[1]) + count for count in (1, 2, 3)]


def test_accepted_tokens_behind_the_end_are_not_counted():
    """vllm-project/vllm#56101: the acceptance length counted tokens dropped behind EOS."""
    free = long_texts()
    asked = [Request(prompt=TEXTS[1], number=1, max_new_tokens=24, eos=frozenset({free[1][2]}))]
    (row,) = run(same_model(), asked, rule=Speculative(), gamma=GAMMA, coupling="shared").values()
    counts = row.counts
    assert len(row.new_ids) == free[1].index(free[1][2]) + 1
    assert counts.blocks == 1
    assert counts.accepted == counts.examined == len(row.new_ids)
    assert counts.proposed == GAMMA


def test_nothing_is_returned_past_a_stop():
    """vllm-project/vllm#47616: token ids and logprobs past a stop string were returned."""
    free = long_texts()
    asked = requests(TEXTS, max_new_tokens=24, eos=frozenset({free[1][3]}), keep_scores=True)
    records = list(steps(same_model(), asked, rule=Speculative(), gamma=GAMMA, coupling="shared"))
    done = {r.request.number: r for record in records for r in record.rows if r.finished}
    committed = {number: [] for number in done}
    for record in records:
        for row, tokens in zip(record.rows, record.committed, strict=True):
            committed[row.request.number] += tokens
    for number, row in done.items():
        assert len(row.scores) == len(row.new_ids)
        assert committed[number] == row.new_ids
        assert not set(row.new_ids[:-1]) & row.request.eos


# Processors, seeds, logprobs.


class CountPenalty(hf.LogitsProcessor):
    """OpenAI's frequency and presence penalties on the whole text."""

    def __call__(self, input_ids, scores):
        counts = one_hot(input_ids, scores.shape[-1]).sum(1)
        return scores - 0.9 * counts - 0.5 * (counts > 0)


IN_BLOCK = {
    "frequency": (CountPenalty(),),
    "repetition": (hf.RepetitionPenaltyLogitsProcessor(1.8),),
    "no repeated pairs": (hf.NoRepeatNGramLogitsProcessor(2),),
    "both": (CountPenalty(), hf.TemperatureLogitsWarper(0.7), hf.TopKLogitsWarper(5)),
    "warper first": (hf.TopKLogitsWarper(5), CountPenalty()),
}


@pytest.mark.parametrize("name", IN_BLOCK)
def test_penalties_apply_to_every_position_of_a_block(name):
    """vllm-project/vllm#18902: the frequency penalty ignored tokens of the block itself.

    Against a loop without a cache that calls the processors token by token.
    """
    asked = requests(TEXTS, processing=Processing(IN_BLOCK[name]))
    blocks = spoken(llama_pair(), asked)
    assert blocks == [token_by_token(llama_pair()[0], request) for request in asked]
    assert blocks != spoken(llama_pair(), requests(TEXTS))


def transformers_text(target, request, **options):
    """The new tokens that transformers' own greedy decoding writes after the request's prompt."""
    ids = torch.tensor([request.prompt])
    plain = target.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=request.max_new_tokens,
        pad_token_id=0,
        **options,
    )
    return plain[0, ids.shape[1] :].tolist()


@pytest.mark.parametrize("name", ["frequency", "repetition", "no repeated pairs"])
def test_penalties_apply_under_greedy_decoding_as_in_transformers(name):
    """vllm-project/vllm#18902, greedy, against transformers' own generate."""
    asked = requests(TEXTS, processing=Processing(IN_BLOCK[name], greedy=True))
    target, _ = llama_pair()
    for request, text in zip(asked, spoken(llama_pair(), asked), strict=True):
        assert text == transformers_text(target, request, logits_processor=list(IN_BLOCK[name]))


def token_by_token(model, request):
    ids = list(request.prompt)
    for _ in range(request.max_new_tokens):
        text = torch.tensor([ids])
        with torch.no_grad():
            scores = model(input_ids=text, use_cache=False).logits[:, -1]
        for processor in request.processing.processors:
            scores = processor(text, scores)
        noise = Noise(
            keys=torch.tensor([request_key(request.seed, request.number)]),
            start=torch.tensor([len(ids)]),
            shared=True,
        )
        ids.append(int(race(scores.softmax(-1), noise.emit(torch.tensor([0]), scores.shape[-1]))))
    return ids[len(request.prompt) :]


@pytest.mark.parametrize("rule", [Speculative(), EASD(tau_h=1.5, draft_at_bonus=True)], ids=str)
@pytest.mark.parametrize("greedy", [False, True])
def test_a_grammar_holds_at_every_position_of_a_block(rule, greedy):
    """vllm-project/vllm#36138: the grammar was skipped inside blocks.

    The grammar counts up, every token the last plus 1 to 3, and is over with the end token: behind
    it there is nothing it could allow.
    """

    def counts_up(_, ids):
        last = int(ids[-1])
        assert last != 2, "asked behind the end of the text"
        return [n for n in (last + 1, last + 2, last + 3) if n < 24] or [2]

    processing = Processing((hf.PrefixConstrainedLogitsProcessor(counts_up, 1),), greedy=greedy)
    starts = [(3,), (4, 5), (18, 19), (22,)]
    asked = requests(starts, max_new_tokens=30, eos=frozenset({2}), processing=processing)
    for text, start in zip(texts(llama_pair(), asked, rule=rule, gamma=GAMMA), starts, strict=True):
        assert text[-1] == 2
        whole = [start[-1], *text[:-1]]
        assert all(1 <= b - a <= 3 for a, b in pairwise(whole))


def test_parallel_texts_of_one_prompt_are_as_good_as_single_ones():
    """vllm-project/vllm#9441: with n > 1 and seeds the texts were gibberish.

    The first tokens of many parallel texts follow the target's own distribution.
    """
    target, draft = llama_pair()
    prompt = TEXTS[3]
    many = generate(
        target, draft, [prompt], n=1500, max_new_tokens=2, rule=Speculative(), batch_size=500
    )
    again = generate(
        target, draft, [prompt], n=1500, max_new_tokens=2, rule=Speculative(), batch_size=999
    )
    assert [g.token_ids for g in many] == [g.token_ids for g in again]
    with torch.no_grad():
        probs = target(torch.tensor([prompt]), use_cache=False).logits[0, -1].softmax(-1)
    counts = Counter(g.token_ids[0] for g in many)
    common = [token for token in range(len(probs)) if probs[token] * 1500 >= 5]
    expected = [float(probs[token]) * 1500 for token in common]
    observed = [counts[token] for token in common]
    rest = 1500 - sum(expected)
    if rest > 1:
        expected.append(rest)
        observed.append(1500 - sum(observed))
    else:
        expected = [e * sum(observed) / sum(expected) for e in expected]
    assert chisquare(observed, expected).pvalue > 1e-3


def test_unseeded_runs_differ_and_the_global_seed_is_honoured():
    """NVIDIA/TensorRT-LLM#19487: unseeded requests shared one state of the generator."""
    target, draft = llama_pair()
    ids = torch.tensor([TEXTS[3]] * 3)

    def ask():
        return target.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=True,
            max_new_tokens=12,
            pad_token_id=0,
            custom_generate=custom_generate,
            draft_model=draft,
        ).tolist()

    torch.manual_seed(5)
    first, second = ask(), ask()
    torch.manual_seed(5)
    assert ask() == first
    rows = [tuple(row) for row in first + second]
    assert len(set(rows)) == 6


def test_logprobs_of_uncertain_tokens_are_not_zero():
    """ggml-org/llama.cpp#27972: accepted draft tokens were reported with logprob 0.0.

    Every token's logprob is the target's, drafted or not.
    """
    target, _ = llama_pair()
    for row in run(
        llama_pair(), requests(TEXTS, keep_scores=True), rule=EASD(tau_h=1.5), gamma=GAMMA
    ).values():
        with torch.no_grad():
            logits = target(torch.tensor([row.ids]), use_cache=False).logits[0]
        plain = logits[len(row.request.prompt) - 1 : -1].log_softmax(-1)
        ours = torch.stack(row.scores).log_softmax(-1)
        at = torch.tensor(row.new_ids)[:, None]
        torch.testing.assert_close(ours.gather(1, at), plain.gather(1, at), atol=1e-9, rtol=0)
        assert (ours.gather(1, at) < 0).all()


# Cache, batch, control.


def test_batches_are_decoded_and_rows_do_not_mix():
    """huggingface/transformers#32165: assisted generation refuses more than one text at a time."""
    asked = requests(TEXTS, processing=GREEDY)
    target, _ = llama_pair()
    for request, text in zip(asked, spoken(llama_pair(), asked), strict=True):
        assert text == transformers_text(target, request)


def test_refused_tokens_leave_no_trace_in_a_sliding_window():
    """huggingface/transformers#48280: rolling back a sliding-window cache corrupted it.

    A draft that is nearly always refused, windows shorter than the text, greedy, against
    transformers' own generate.
    """
    config = Gemma3TextConfig(
        vocab_size=24,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        sliding_window=5,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    target = build(config, spread=12.0)
    draft = near(target, noise=2.0)
    asked = requests(TEXTS, processing=GREEDY, max_new_tokens=24)
    done = run((target, draft), asked, rule=Speculative(), gamma=GAMMA)
    assert sum(r.counts.accepted for r in done.values()) < sum(
        r.counts.examined for r in done.values()
    )
    for request in asked:
        assert done[request.number].new_ids == transformers_text(target, request)
