"""The law of emitted tokens, by chi-square against the closed form; judged at p = 0.001."""

import pytest
import torch
from scipy.stats import chi2
from vllm.v1.sample import rejection_sampler
from vllm.v1.sample.logits_processor import LogitsProcessors
from vllm.v1.sample.metadata import SamplingMetadata

from easd.core.gate import ALL_CONDITIONS
from easd.core.rules import EASD, make_rule
from easd.core.step import Step
from easd.integrations.vllm import worker
from easd.integrations.vllm.batch import Batch
from easd.integrations.vllm.gate import Tally
from easd.integrations.vllm.serving import Serving

SAMPLES = 1_000_000
ROWS = 10_000
VOCAB = 12
GATE = {"tau_h": 1.0, "tau_o": 0.6}
RULE = EASD(**GATE)
# What is drawn from its law, which takes the target's place.
DRAWN = {
    "easd": EASD(**GATE, draft_at_bonus=True),
    "pool": make_rule("pool", **GATE, a=1.3, b=-0.7, pick="sample", draft_at_bonus=True),
    "typical-acceptance": make_rule("typical-acceptance"),
    "cascade": make_rule("cascade", deferral="token"),
}


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
    if "gate" in rule.signals(step) and rule.name != "typical-acceptance":
        assert rule.signals(step)["gate"][0, 0] == float(kind == "open")
    return rule.law(step)[0, 0]


def emitted(kind, seed=5, rule=RULE, coupling=None):
    """Counts [V] of the first token that vLLM's sampler emits, drafts drawn from the draft.

    A rule that gates the bonus position never has a token of the target's there.
    """
    torch.manual_seed(seed)
    draft_probs, target_probs = pair(kind)
    counts = torch.zeros(VOCAB, dtype=torch.int64)
    unused = torch.zeros(0)
    sampling = SamplingMetadata(
        temperature=torch.ones(ROWS),
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
    serving = Serving(rule=rule, coupling=coupling)
    batch = Batch.of([rule] * ROWS, serving, Tally(torch.device("cpu")), torch.device("cpu"))
    token = worker._batch.set(batch)
    try:
        for _ in range(SAMPLES // ROWS):
            output = rejection_sampler.rejection_sample(
                draft_probs.multinomial(ROWS, replacement=True).int(),
                [1] * ROWS,
                1,
                torch.arange(1, ROWS + 1, dtype=torch.int32),
                draft_probs.repeat(ROWS, 1),
                target_probs.log().repeat(ROWS, 1),
                torch.zeros(ROWS, 1, dtype=torch.int32),
                sampling,
            )
            counts += torch.bincount(output[:, 0].long(), minlength=VOCAB)
            if rule.draft_at_bonus:
                assert (output[:, 1] == -1).all()  # no token of the target's behind the block
    finally:
        worker._batch.reset(token)
    return counts


def p_value(counts, law):
    assert counts[law == 0].sum() == 0
    counts, law = counts[law > 0], law[law > 0]
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


@pytest.mark.parametrize("kind", ["open", "closed"])
@pytest.mark.parametrize("rule", DRAWN.values(), ids=DRAWN)
def test_any_law_is_drawn_from(gated, rule, kind):
    assert p_value(emitted(kind, rule=rule, coupling="maximal"), law(kind, rule)) > 0.001


def test_laws_that_are_not_put_are_found(gated, monkeypatch):
    monkeypatch.setattr(worker, "log_laws", lambda *args: (args[4], asked(args[2])))
    counts = emitted("open", rule=DRAWN["easd"], coupling="maximal")
    assert p_value(counts, law("open", DRAWN["easd"])) < 1e-6


def asked(rule_of):
    """A gate that never opens."""
    closed = torch.zeros_like(rule_of, dtype=torch.bool).numpy()
    return worker.Gates(asked=~closed, met=dict.fromkeys(ALL_CONDITIONS, closed), open=closed)
