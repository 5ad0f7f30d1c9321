"""Any rule in a running engine: its law in the target's place, of requests side by side."""

import pytest
import torch
from in_vllm.conftest import LAB
from in_vllm.observed import PROMPTS, decode, sampled, statistics
from in_vllm.test_whole_law import PROMPT, laws, p_value
from transformers import AutoModelForCausalLM
from vllm import SamplingParams

from easd import generate
from easd.config import parse_rule

POOL = {"name": "pool", "tau_h": 0, "tau_o": 0, "a": 1.38, "b": 1.01, "draft_at_bonus": True}
ASKED = {
    "pool-sampled": {**POOL, "pick": "sample"},
    "easd-by-its-law": {"name": "easd", "tau_h": 0.05, "tau_o": 0.4, "draft_at_bonus": True},
    "typical-acceptance": {"name": "typical-acceptance"},
}
SAMPLES = 4_000


@pytest.fixture(scope="module")
def drawn(start):
    """Draws from laws; requests bring rules of their own."""
    return start({**POOL, "coupling": "maximal"})


def test_greedy_texts_are_those_of_easds_own_engine(drawn):
    """But for the first token, which has no draft in vLLM."""
    texts = decode(drawn, sampled(temperature=0.0, max_tokens=30))
    models = [AutoModelForCausalLM.from_pretrained(LAB / model) for model in ("target", "draft")]
    prompts = [prompt + text[:1] for prompt, text in zip(PROMPTS, texts, strict=True)]
    for model in models:
        model.float().eval().generation_config.eos_token_id = None
    found = generate(*models, prompts, rule=parse_rule(POOL), temperature=0.0, max_new_tokens=29)
    assert [each.token_ids for each in found] == [text[1:] for text in texts]


def test_a_pool_that_adds_nothing_is_the_target_at_its_best(drawn, stock):
    """With a = 1 and b = 0 the best token of the pool is the target's."""
    best = sampled(temperature=0.0, extra_args={"easd": {**POOL, "a": 1.0, "b": 0.0}})
    assert decode(drawn, best) == decode(stock, sampled(temperature=0.0))


@pytest.mark.parametrize("rule", ASKED.values(), ids=ASKED)
def test_second_tokens_follow_the_closed_form(drawn, rule):
    params = SamplingParams(
        temperature=1.0, max_tokens=2, ignore_eos=True, extra_args={"easd": rule}
    )
    counts = torch.zeros(109, 109, dtype=torch.float64)
    for first, second in decode(drawn, params, prompts=[PROMPT] * SAMPLES):
        counts[first, second] += 1
    law, target = laws(rule=parse_rule(rule))
    assert p_value(counts, law) > 0.001
    assert p_value(counts, target) < 1e-6


def test_rules_of_all_kinds_share_a_batch(drawn):
    """Each request's text is what it is alone: greedy, so that no number is drawn."""
    asked = [
        {"easd": {**POOL, "b": -0.57}},
        {"easd": False},
        {"easd": {"name": "cascade"}},
        {"easd": {"name": "easd", "tau_h": 0.05, "tau_o": 0.4}},
    ]
    params = [sampled(temperature=0.0, extra_args=each) for each in asked]
    together = decode(drawn, params)
    alone = [
        decode(drawn, each, prompts=[prompt])[0]
        for each, prompt in zip(params, PROMPTS, strict=True)
    ]
    assert together == alone


def test_what_is_counted(drawn):
    before = statistics(drawn)
    decode(drawn, sampled(extra_args={"easd": ASKED["easd-by-its-law"]}))
    after = statistics(drawn)
    counts = {name: after[name] - before[name] for name in before}
    assert 10 < counts["penalised"] < counts["examined"]
    assert counts["penalised"] <= min(counts["draft_entropy"], counts["overlap"])
