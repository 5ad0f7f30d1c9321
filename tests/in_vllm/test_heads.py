"""Rules with the draft heads that vLLM serves: EAGLE, EAGLE-3 with its own vocabulary, MTP."""

import pytest
import torch
from in_vllm.emitted import p_values
from in_vllm.heads import DRAFT_VOCAB, VOCAB, make
from in_vllm.observed import PROMPTS, decode, sampled, verifications
from in_vllm.test_engine import check_penalties

from easd.config import parse_rule
from easd.core.rules import EASD

RULE = EASD(tau_h=1.0, tau_o=0.2)
POOL = {"name": "pool", "tau_h": 0, "tau_o": 0, "a": 1.4, "b": 0.5, "pick": "sample"}
# With random heads EASD's law is close to the target; its penalties are tested one by one.
DRAWN = {"pool": POOL, "typical-acceptance": {"name": "typical-acceptance"}}


@pytest.fixture(scope="module", params=["eagle", "eagle3", "mtp"])
def engine(request, start, tmp_path_factory):
    target, speculation = make(request.param, tmp_path_factory.mktemp(request.param))
    made = start(
        {"tau_h": RULE.tau_h, "tau_o": RULE.tau_o},
        model=str(target),
        speculative_config={**speculation, "draft_sample_method": "probabilistic"},
        skip_tokenizer_init=True,
        max_num_seqs=8,
    )
    made.known = DRAFT_VOCAB if request.param == "eagle3" else VOCAB
    return made


def test_penalties_are_those_of_the_core(engine):
    params = [sampled(detokenize=False, max_tokens=48) for _ in PROMPTS]
    check_penalties(engine, PROMPTS, params, [RULE] * len(PROMPTS), least=3)


@pytest.mark.parametrize("temperature", [1.0, 0.0])
def test_laws_take_the_targets_place(engine, temperature):
    """Those of what the head's tokens were drawn from and of the target."""
    rule, asked = parse_rule(POOL), {"easd": POOL}
    params = sampled(detokenize=False, max_tokens=9, temperature=temperature, extra_args=asked)
    with verifications(engine) as seen:
        decode(engine, params)
    assert len(seen) > 3
    for call in seen:
        assert ((call.draft_probs > 0).sum(-1) == engine.known).all()
        step, row, position = call.step()
        law = rule.law(step)[row, position]
        if temperature:
            torch.testing.assert_close(call.judged.softmax(-1), law)
        else:
            assert torch.equal(call.judged.argmax(-1), law.argmax(-1))


@pytest.mark.parametrize("asked", DRAWN.values(), ids=DRAWN)
def test_tokens_are_drawn_from_the_law(engine, asked):
    """By the whole engine, and not from the target."""
    params = sampled(detokenize=False, max_tokens=48, extra_args={"easd": asked})
    with verifications(engine) as seen:
        for seed in range(6):
            decode(engine, params, prompts=PROMPTS * 2, seed=seed)
    law, target = p_values(seen, parse_rule(asked))
    assert law > 0.001
    assert target < 1e-6
