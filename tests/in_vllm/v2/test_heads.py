"""The law of what a V2 engine emits with the draft heads that vLLM serves."""

import pytest
from in_vllm.emitted import p_values
from in_vllm.heads import make
from in_vllm.observed import PROMPTS, sampled
from in_vllm.v2.observed import verifications
from in_vllm.v2.test_engine import answers

from easd.config import parse_rule

# Far from the target, since the interpreter draws few tokens.
POOL = {"name": "pool", "tau_h": 0, "tau_o": 0, "a": 2.5, "b": 1.0, "pick": "sample"}


# Another vocabulary than the target's, and the target's own; the V1 tests have EAGLE too.
@pytest.mark.parametrize("method", ["eagle3", "mtp"])
def test_tokens_are_drawn_from_the_law(method, start, tmp_path):
    target, speculation = make(method, tmp_path)
    engine = start(
        POOL,
        model=str(target),
        speculative_config={**speculation, "draft_sample_method": "probabilistic"},
        skip_tokenizer_init=True,
    )
    prompts = [*PROMPTS, *PROMPTS]
    params = [sampled(detokenize=False, max_tokens=20, seed=seed) for seed in range(len(prompts))]
    with verifications(engine) as seen:
        answers(engine, params, prompts)
    law, target = p_values(seen, parse_rule(POOL))
    assert law > 0.001
    assert target < 1e-6
