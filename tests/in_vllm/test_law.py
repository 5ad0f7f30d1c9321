"""The law of emitted tokens, by chi-square against the closed form; judged at p = 0.001."""

import pytest
import torch
from scipy.stats import chi2
from vllm.v1.sample import rejection_sampler
from vllm.v1.sample.logits_processor import LogitsProcessors
from vllm.v1.sample.metadata import SamplingMetadata

from easd.core.rules import EASD
from easd.core.step import Step
from easd.integrations.vllm import worker
from easd.integrations.vllm.gate import Tally

SAMPLES = 1_000_000
VOCAB = 12
RULE = EASD(tau_h=1.0, tau_o=0.6)


def pair(kind):
    """Draft and target distributions [V]: where the gate is open, and where it is closed."""
    generator = torch.Generator().manual_seed(3)
    target_logits = torch.randn(VOCAB, generator=generator) * 0.7
    draft_logits = target_logits + torch.randn(VOCAB, generator=generator) * 0.5
    if kind == "closed":
        draft_logits = -draft_logits  # little overlap
    return draft_logits.softmax(-1), target_logits.softmax(-1)


def law(kind, rule=RULE):
    draft_probs, target_probs = pair(kind)
    step = Step(
        draft_tokens=torch.zeros(1, 1, dtype=torch.int64),
        num_draft_tokens=torch.ones(1, dtype=torch.int64),
        draft_probs=torch.stack([draft_probs, torch.zeros(VOCAB)])[None].double(),
        target_probs=torch.stack([target_probs, target_probs])[None].double(),
    )
    assert rule.signals(step)["gate"][0, 0] == float(kind == "open")
    return rule.law(step)[0, 0]


def emitted(kind, seed=5):
    """Counts [V] of the first token that vLLM's sampler emits, drafts drawn from the draft."""
    torch.manual_seed(seed)
    draft_probs, target_probs = pair(kind)
    counts = torch.zeros(VOCAB, dtype=torch.int64)
    rows, unused = 10_000, torch.zeros(0)
    sampling = SamplingMetadata(
        temperature=torch.ones(rows),
        all_greedy=False,
        all_random=True,
        top_p=None,
        top_k=None,
        generators={},
        max_num_logprobs=None,
        no_penalties=True,
        prompt_token_ids=None,
        frequency_penalties=unused,
        presence_penalties=unused,
        repetition_penalties=unused,
        output_token_ids=[],
        allowed_token_ids_mask=None,
        bad_words_token_ids={},
        logitsprocs=LogitsProcessors(),
    )
    rule_of = torch.zeros(rows, dtype=torch.int64)
    batch = worker.Batch(rules=(RULE,), rule_of=rule_of, tally=Tally(torch.device("cpu")))
    token = worker._batch.set(batch)
    try:
        for _ in range(SAMPLES // rows):
            output = rejection_sampler.rejection_sample(
                draft_probs.multinomial(rows, replacement=True).int(),
                [1] * rows,
                1,
                torch.arange(1, rows + 1, dtype=torch.int32),
                draft_probs.repeat(rows, 1),
                target_probs.log().repeat(rows, 1),
                torch.zeros(rows, 1, dtype=torch.int32),
                sampling,
            )
            counts += torch.bincount(output[:, 0].long(), minlength=VOCAB)
    finally:
        worker._batch.reset(token)
    return counts


def p_value(counts, law):
    expected = law * counts.sum()
    assert expected.min() > 5
    statistic = ((counts - expected) ** 2 / expected).sum()
    return chi2.sf(float(statistic), len(law) - 1)


@pytest.mark.parametrize("kind", ["open", "closed"])
def test_the_emitted_law_is_the_closed_form(gated, kind):
    assert p_value(emitted(kind), law(kind)) > 0.001


def test_the_open_law_is_not_the_targets(gated):
    assert p_value(emitted("open"), pair("open")[1].double()) < 1e-6


@pytest.mark.parametrize("bug", ["draft row not zeroed", "token not excluded", "gate ignored"])
def test_a_planted_bug_is_found(gated, monkeypatch, bug):
    def buggy(gate, draft_tokens, draft_probs, target_logits):
        if bug == "draft row not zeroed":
            penalise_(gate, draft_tokens, draft_probs.clone(), target_logits)
        elif bug == "token not excluded":
            penalise_(gate, draft_tokens, draft_probs, target_logits.clone())

    penalise_ = worker.penalise_
    monkeypatch.setattr(worker, "penalise_", buggy)
    assert p_value(emitted("open"), law("open")) < 1e-6
