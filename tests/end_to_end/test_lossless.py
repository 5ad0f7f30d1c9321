"""Shared-noise speculative decoding of a real pair writes what its target alone writes.

In exact arithmetic the texts are equal. In floating point a forward over n tokens rounds
differently from one over a single token, so two tokens whose exponential clocks nearly tie can
swap: in float32 a text may differ from such a tie on, in float64 none does.
"""

import pytest
import torch

from easd import Speculative, generate, load_pair
from easd.core.noise import Noise, request_key
from easd.core.rules import TargetOnly
from easd.engine.chat import encode

pytestmark = pytest.mark.slow
PROMPTS = [
    f"A shop sells {n} pens a day for {n % 7 + 2} euros each. What does it earn?"
    for n in range(11, 17)
]
TIE = 1e-3  # Relative; other margins are of the order of 1.


def margin(target, ids, number):
    """Returns the relative lead of the first clock over the second at the position after `ids`."""
    with torch.inference_mode():
        logits = target(torch.tensor([ids])).logits[0, -1]
    keys, start = torch.tensor([request_key(0, number)]), torch.tensor([len(ids)])
    noise = Noise(keys=keys, start=start, shared=True)
    clocks = noise.emit(torch.zeros(1, dtype=torch.long), logits.shape[-1])[0]
    first, second = (logits.double().softmax(-1) / clocks).topk(2).values.tolist()
    return first / second - 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_texts_are_the_targets(dtype):
    pair = load_pair("smollm2", dtype=dtype, device="cpu")
    prompts = [encode(prompt, pair.tokenizer) for prompt in PROMPTS]
    alone, ours = (
        generate(
            *(pair.target, draft, prompts),
            tokenizer=pair.tokenizer,
            rule=rule,
            coupling="shared",
            gamma=4,
            max_new_tokens=64,
            batch_size=10,
        )
        for draft, rule in ((None, TargetOnly()), (pair.draft, Speculative()))
    )
    assert sum(text.counts.accepted for text in ours) > 100
    for a, b in zip(alone, ours, strict=True):
        if a.token_ids != b.token_ids:
            assert dtype is torch.float32
            pairs = zip(a.token_ids, b.token_ids, strict=False)
            first = next(i for i, (x, y) in enumerate(pairs) if x != y)
            assert margin(pair.target, [*a.prompt_ids, *a.token_ids[:first]], a.number) < TIE
