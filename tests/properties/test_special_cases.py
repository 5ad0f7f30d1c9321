"""Rules whose law is known in closed form, or is another rule's."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rule_steps import (
    OPEN,
    decide,
    every_rule,
    judge,
    mapped,
    noise_for,
    rule_of,
    smooth,
    steps,
    values,
    without_draft,
)

from easd.core.couplings import COUPLINGS
from easd.core.noise import race
from easd.core.rules import EASD, DraftOnly, RandomRefusal, Speculative, TargetOnly, rule_type
from easd.core.step import Step
from easd.core.verify import verify


@given(values=values, step=steps())
def test_an_entropy_threshold_out_of_reach_is_speculative_sampling(values, step):
    rule = EASD(**values, tau_h=float("inf"), tau_o=0.0)
    same_decisions(rule, Speculative(), step)
    assert torch.equal(rule.law(step), step.target_probs)


@given(values=values, step=steps())
def test_refusing_at_rate_zero_is_speculative_sampling(values, step):
    same_decisions(RandomRefusal(**values, rate=0), Speculative(), step)


def same_decisions(rule, other, step):
    for coupling in ("maximal", "published"):
        a, b = judge(rule, step, coupling), judge(other, step, coupling)
        assert torch.equal(a.accept_prob, b.accept_prob)
        assert torch.equal(a.penalty_prob, b.penalty_prob)
    for coupling in COUPLINGS:
        a, b = decide(rule, step, coupling), decide(other, step, coupling)
        for field in ("num_accepted", "next_token", "penalised"):
            assert torch.equal(getattr(a, field), getattr(b, field))


@pytest.mark.parametrize("bonus", [False, True])
@pytest.mark.parametrize("gate_on", ["proposed", "accepted"])
@given(step=steps(), rate=st.sampled_from([0.3, 1.0]))
def test_redrawing_from_the_target_is_lossless_as_declared(bonus, gate_on, step, rate):
    """Asked of accepted tokens only, it takes from tokens that the draft favours."""
    fields = {"redraw": "target", "draft_at_bonus": bonus, "gate_on": gate_on}
    for rule in (EASD(**fields, **OPEN), RandomRefusal(**fields, rate=rate)):
        assert rule.lossless == (gate_on == "proposed")
        change = (rule.law(step) - step.target_probs).abs().max()
        if rule.lossless:
            assert change < 1e-12


@every_rule
@given(step=steps())
def test_rules_that_say_so_are_lossless(name, step):
    rule = rule_type(name).example()
    if rule.lossless:
        assert torch.equal(rule.law(step), step.target_probs)


def step_of(draft_probs, target_probs):
    """A step with a token proposed at every position but the last."""
    batch, positions, _ = target_probs.shape
    return Step(
        draft_tokens=torch.zeros(batch, positions - 1, dtype=torch.long),
        num_draft_tokens=torch.full((batch,), positions - 1),
        draft_probs=draft_probs,
        target_probs=target_probs,
    )


@pytest.mark.parametrize("gate_on", ["proposed", "accepted"])
@pytest.mark.parametrize("vocab", [2, 5, 300])
def test_two_uniform_models_cannot_tilt_each_other(vocab, gate_on):
    """The law is p where q = p = uniform, with the gate wide open."""
    flat = torch.full((2, 3, vocab), 1 / vocab, dtype=torch.float64)
    step = step_of(flat, flat)
    for bonus in (False, True):
        law = EASD(tau_h=0, tau_o=0, gate_on=gate_on, draft_at_bonus=bonus).law(step)
        torch.testing.assert_close(law, flat, atol=1e-12, rtol=0)


def test_with_two_candidates_the_law_is_the_draft_inverted():
    generator = torch.Generator().manual_seed(0)
    p, q = (smooth(generator, 6, 2, 2) for _ in range(2))
    step = step_of(q, p)
    law = EASD(tau_h=0, tau_o=0, draft_at_bonus=True).law(step)
    torch.testing.assert_close(law, 1 - q, atol=1e-9, rtol=0)


def test_excluding_the_drafted_token_is_the_contrastive_tilt():
    """law(y) = p(y) (A - q(y) / (1 - p(y))) with A = sum of q / (1 - p)."""
    generator = torch.Generator().manual_seed(1)
    p, q = (smooth(generator, 8, 1, 30) for _ in range(2))
    step = step_of(q, p)
    odds = q / (1 - p)
    law = RandomRefusal(rate=1, draft_at_bonus=True).law(step)
    torch.testing.assert_close(law, p * (odds.sum(-1, keepdim=True) - odds), atol=1e-9, rtol=0)


@given(values=values, step=steps(kinds=("greedy",)))
def test_greedy_drafts_are_their_own_top_token(values, step):
    """The two readings of "candidate token" coincide where the draft is greedy."""
    if values["penalise"] == "draft_top":
        return
    first, second = (
        EASD(**values | {"penalise": penalise}, **OPEN) for penalise in ("drafted", "draft_top")
    )
    torch.testing.assert_close(first.law(step), second.law(step))
    a, b = (verify(rule, step, noise_for(step)) for rule in (first, second))
    for field in ("num_accepted", "next_token", "penalised"):
        assert torch.equal(getattr(a, field), getattr(b, field))


@every_rule
@given(values=values, step=steps(kinds=("greedy",)))
def test_greedy_rows_are_deterministic(name, values, step):
    """Whatever the noise, unless the rule itself is random."""
    rule = rule_of(name, values)
    if isinstance(rule, RandomRefusal):
        return
    texts = []
    for requests in (
        range(len(step.num_draft_tokens)),
        range(100, 100 + len(step.num_draft_tokens)),
    ):
        decision = verify(rule, step, noise_for(step, requests=requests))
        texts.append((decision.num_accepted.tolist(), decision.next_token.tolist()))
    assert texts[0] == texts[1]


@given(step=steps(kinds=("greedy",)))
def test_an_open_gate_on_greedy_rows_emits_the_second_best(step):
    length = step.draft_tokens.shape[1]
    rule = EASD(tau_h=0, tau_o=0)
    decision = verify(rule, step, noise_for(step))
    for row, count in enumerate(step.num_draft_tokens.tolist()):
        if not count or not length:
            continue
        assert decision.num_accepted[row] == 0
        assert decision.penalised[row]
        best = step.raw_target_probs[row, 0].topk(2).indices.tolist()
        token = step.draft_tokens[row, 0].item()
        assert decision.next_token[row] == next(t for t in best if t != token)


@given(step=steps())
def test_single_models(step):
    alone = mapped(step, without_draft)
    target = verify(TargetOnly(), alone, noise_for(alone))
    assert not target.num_accepted.any()
    clocks = noise_for(step, "shared").emit(target.num_accepted, step.target_probs.shape[-1])
    assert torch.equal(target.next_token, race(step.target_probs[:, 0], clocks))
    draft = verify(DraftOnly(), step, noise_for(step))
    assert torch.equal(draft.num_accepted, step.num_draft_tokens)


@given(step=steps(kinds=("smooth", "alike", "truncated")))
def test_coupling_accepts_the_overlap_of_draft_and_law(step):
    """Under `maximal`, the mean acceptance over the draft is the sum of min(q, law)."""
    length = step.draft_tokens.shape[1]
    if not length or step.target_probs.shape[-1] > 10:
        return
    for rule, coupling in (
        (Speculative(), "maximal"),
        (EASD(**OPEN), "maximal"),
        (EASD(**OPEN), "published"),
    ):
        mean = torch.zeros(step.draft_tokens.shape, dtype=torch.float64)
        for token in range(step.target_probs.shape[-1]):
            chosen = replace(step, draft_tokens=torch.full_like(step.draft_tokens, token))
            mean += judge(rule, chosen, coupling).accept_prob * step.draft_probs[:, :length, token]
        expected = torch.minimum(step.draft_probs, rule.law(step)).sum(-1)[:, :length]
        if coupling == "published":
            assert (mean <= expected + 1e-9).all()  # no coupling keeps more than the overlap
        else:
            torch.testing.assert_close(mean, expected, atol=1e-9, rtol=0)
