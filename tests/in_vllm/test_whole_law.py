"""The law of what requests get, through the whole engine: drafts, verification, bookkeeping."""

import torch
from in_vllm.conftest import LAB
from in_vllm.observed import decode
from scipy.stats import chi2
from transformers import AutoModelForCausalLM
from vllm import SamplingParams

from easd.core.rules import EASD
from easd.core.step import Step

SAMPLES = 10_000
PROMPT = [78, 26, 91, 50]  # of many tried the one after which the gate matters most
RULE = EASD(tau_h=0.05, tau_o=0.4)


def laws(vocab=109, rule=RULE):
    """Law of the second new token after each first one, and the target's own, [V, V]."""
    texts = torch.tensor([[*PROMPT, first] for first in range(vocab)])

    def probs(model):
        model = AutoModelForCausalLM.from_pretrained(LAB / model).float().eval()
        with torch.no_grad():
            return model(texts).logits[:, -1].double().softmax(-1)

    target, draft = probs("target"), probs("draft")
    step = Step(
        draft_tokens=torch.zeros(vocab, 1, dtype=torch.int64),
        num_draft_tokens=torch.ones(vocab, dtype=torch.int64),
        draft_probs=torch.stack([draft, torch.zeros_like(draft)], 1),
        target_probs=torch.stack([target, target], 1),
    )
    return rule.law(step)[:, 0], target


def p_value(counts, law):
    """Homogeneity of [V, V] counts with each row's law; rare cells of a row are one cell."""
    expected = counts.sum(-1, keepdim=True) * law
    statistic, freedom = 0.0, 0
    for seen, wanted in zip(counts, expected, strict=True):
        often = wanted >= 5
        cells = torch.stack([seen, wanted])
        cells = torch.cat([cells[:, often], cells[:, ~often].sum(-1, keepdim=True)], -1)
        cells = cells[:, cells[1] >= 1]
        if cells.shape[1] > 1:
            statistic += float(((cells[0] - cells[1]) ** 2 / cells[1]).sum())
            freedom += cells.shape[1] - 1
    return chi2.sf(statistic, freedom)


def test_second_tokens_follow_the_closed_form(gated):
    params = SamplingParams(temperature=1.0, max_tokens=2, ignore_eos=True)
    texts = decode(gated, params, prompts=[PROMPT] * SAMPLES)
    counts = torch.zeros(109, 109, dtype=torch.float64)
    for first, second in texts:
        counts[first, second] += 1
    law, target = laws()
    assert p_value(counts, law) > 0.001
    assert p_value(counts, target) < 1e-6
