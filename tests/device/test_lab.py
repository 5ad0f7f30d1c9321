"""A trained pair writes on a device what it writes on the CPU, whatever the rule."""

from functools import cache

import pytest
import torch
from models import DEVICE

from easd import EASD, RULES, Speculative, generate, load_pair
from easd.core.couplings import COUPLINGS
from easd.pairs import lab

RULES_AND_FIELDS = {
    "speculative": Speculative(),
    "easd": EASD(tau_h=0.34),
    "easd-bonus": EASD(tau_h=0.34, draft_at_bonus=True),
    "pool": RULES["pool"](tau_h=0.34, b=0.5),
}


@cache
def pair(device):
    return load_pair("lab-a", dtype=torch.float64, device=device)


@pytest.mark.parametrize("batch_size", [1, 32])
@pytest.mark.parametrize("coupling", COUPLINGS)
@pytest.mark.parametrize("rule", RULES_AND_FIELDS.values(), ids=RULES_AND_FIELDS)
def test_texts_are_those_of_the_cpu(rule, coupling, batch_size):
    prompts = [problem.prompt for problem in lab.problems("lab-a", 64 if batch_size > 1 else 8, 0)]
    texts = [
        [
            text.token_ids
            for text in generate(
                pair(device).target,
                pair(device).draft,
                prompts,
                tokenizer=pair(device).tokenizer,
                rule=rule,
                coupling=coupling,
                max_new_tokens=24,
                batch_size=batch_size,
            )
        ]
        for device in (DEVICE, "cpu")
    ]
    assert texts[0] == texts[1]
