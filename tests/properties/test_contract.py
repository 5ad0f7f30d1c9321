"""What holds for every rule, whatever its fields and whatever the distributions."""

from dataclasses import replace

import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from rule_steps import (
    assert_distribution,
    decide,
    every_coupling,
    every_gated_rule,
    every_rule,
    in_turn,
    judge,
    looks,
    mapped,
    noise_for,
    replacements,
    rows,
    rule_of,
    smooth,
    steps,
    values,
    without_draft,
)

from easd.core.noise import race
from easd.core.rules import DraftOnly, Speculative
from easd.core.rules.fly import FLy
from easd.core.verify import verify


@in_turn
@every_rule
@given(values=values, looks=looks, step=steps())
def test_answers_are_probabilities(name, values, looks, step, coupling):
    rule = rule_of(name, values, looks)
    judgement = judge(rule, step, coupling)
    length = step.draft_tokens.shape[1]
    accept, penalty = judgement.accept_prob, judgement.penalty_prob
    for probs in (accept, penalty):
        assert probs.shape == step.draft_tokens.shape
        assert torch.isfinite(probs).all()
        assert (probs >= 0).all()
        assert (probs <= 1).all()
    assert (accept + penalty <= 1 + 1e-12).all()
    for signal in judgement.signals.values():
        assert signal.shape == (len(accept), length + 1)
        assert torch.isfinite(signal.double()).all()
    assert_distribution(rule.law(step))
    for _, _, probs in replacements(rule, step, coupling):
        assert_distribution(probs)


@every_gated_rule
@given(values=values, step=steps())
def test_a_penalised_token_is_never_drawn_again(name, values, step):
    rule = rule_of(name, values)
    if rule.redraw == "target" or not step.draft_tokens.shape[1]:
        return
    for at, penalised, probs in replacements(rule, step, "published"):
        at = at.clamp_max(step.draft_tokens.shape[1] - 1)
        token = step.draft_tokens.gather(1, at[:, None])
        if rule.penalise == "draft_top":
            token = step.row(at).draft_probs.argmax(-1)
        alone = step.row(at).target_probs[:, 0].gather(1, token) == 1
        if step.greedy is not None:
            alone &= ~step.greedy[:, None]  # greedy rows turn to the second best
        assert not (probs.gather(1, token)[:, 0] > 0)[penalised & ~alone[:, 0]].any()


@in_turn
@every_rule
@given(values=values, step=steps(), seed=st.integers(0, 1000))
def test_vocabulary_order_does_not_matter(name, values, step, seed, coupling):
    rule = rule_of(name, values)
    vocab = step.target_probs.shape[-1]
    order = torch.randperm(vocab, generator=torch.Generator().manual_seed(seed))
    place = order.argsort()

    def permute(name, tensor):
        if name == "draft_tokens":
            return place[tensor]
        return tensor[..., order] if name.endswith("probs") else tensor

    other = mapped(step, permute)
    same = {"atol": 1e-9, "rtol": 1e-9}
    torch.testing.assert_close(rule.law(other), rule.law(step)[..., order], **same)
    there, here = judge(rule, other, coupling), judge(rule, step, coupling)
    torch.testing.assert_close(there.accept_prob, here.accept_prob, **same)
    torch.testing.assert_close(there.penalty_prob, here.penalty_prob, **same)
    for (_, _, a), (_, _, b) in zip(
        replacements(rule, other, coupling), replacements(rule, step, coupling), strict=True
    ):
        torch.testing.assert_close(a, b[:, order], **same)


@every_coupling
@every_rule
@given(values=values, looks=looks, step=steps())
def test_a_row_alone_is_the_row_in_its_batch(name, values, looks, step, coupling):
    rule = rule_of(name, values, looks)
    together = decide(rule, step, coupling)
    for row in range(len(step.num_draft_tokens)):
        one = rows(step, slice(row, row + 1))
        alone = decide(rule, one, coupling, requests=[row])
        for field in ("num_accepted", "next_token", "penalised"):
            assert torch.equal(getattr(alone, field), getattr(together, field)[row : row + 1])


@every_coupling
@every_rule
@given(values=values, step=steps(), seed=st.integers(0, 1000))
def test_padding_does_not_matter(name, values, step, coupling, seed):
    """A row's padding positions may hold anything, and its block may be cut to its own length."""
    rule = rule_of(name, values)
    generator = torch.Generator().manual_seed(seed)
    counts = step.num_draft_tokens
    length = step.draft_tokens.shape[1]
    padding = torch.arange(length + 1) > counts[:, None]
    vocab = step.target_probs.shape[-1]

    def scramble(name, tensor):
        if name == "draft_tokens":
            junk = torch.randint(0, vocab, tensor.shape, generator=generator)
            return tensor.where(torch.arange(length) < counts[:, None], junk)
        if name.endswith("probs"):
            junk = smooth(generator, *tensor.shape)
            return tensor.where(~padding[..., None], junk)
        return tensor

    before = decide(rule, step, coupling)
    after = decide(rule, mapped(step, scramble), coupling)
    for field in ("num_accepted", "next_token", "penalised"):
        assert torch.equal(getattr(after, field), getattr(before, field))
    assert (before.num_accepted <= counts).all()

    def cut(name, tensor):
        n = int(counts[0])
        if name == "draft_tokens":
            return tensor[:1, :n]
        return tensor[:1, : n + 1] if name.endswith("probs") else tensor[:1]

    own = decide(rule, mapped(step, cut), coupling, [0])
    for field in ("num_accepted", "next_token", "penalised"):
        assert torch.equal(getattr(own, field), getattr(before, field)[:1])


@every_rule
@given(values=values, step=steps())
def test_laws_at_padding_are_the_targets(name, values, step):
    """Where the draft was not asked, the law cannot have a draft in it (but for draft-only)."""
    rule = rule_of(name, values)
    if isinstance(rule, DraftOnly):
        return
    padding = torch.arange(step.target_probs.shape[1]) > step.num_draft_tokens[:, None]
    torch.testing.assert_close(rule.law(step)[padding], step.target_probs[padding])


@every_coupling
@every_rule
@given(values=values, step=steps())
def test_without_drafted_tokens_one_token_of_the_law_comes_out(name, values, step, coupling):
    rule = rule_of(name, values)

    bare = mapped(step, without_draft)
    noise = noise_for(bare, coupling)
    decision = verify(rule, bare, noise, coupling)
    assert not decision.num_accepted.any()
    assert not decision.penalised.any()
    law = rule.law(bare)[:, 0]
    clocks = noise.emit(torch.zeros_like(bare.num_draft_tokens), law.shape[-1])
    assert torch.equal(decision.next_token, race(law, clocks))


@every_coupling
@every_rule
@given(values=values, looks=looks, step=steps())
def test_decisions_are_possible(name, values, looks, step, coupling):
    rule = rule_of(name, values, looks)
    decision = decide(rule, step, coupling)
    accepted = decision.num_accepted
    assert (accepted >= 0).all()
    assert (accepted <= step.num_draft_tokens).all()
    law = rule.law(step)
    at = torch.arange(step.draft_tokens.shape[1]) < accepted[:, None]
    drafted = law[:, : at.shape[1]].gather(-1, step.draft_tokens[..., None])[..., 0]
    assert (drafted[at] > 0).all()
    last = law.gather(1, accepted[:, None, None].expand(-1, 1, law.shape[-1]))[:, 0]
    assert (last.gather(1, decision.next_token[:, None]) > 0).all()
    assert not decision.penalised[accepted == step.num_draft_tokens].any()


@in_turn
@every_rule
@given(values=values, step=steps())
def test_single_precision_is_close_to_double(name, values, step, coupling):
    rule = rule_of(name, values)
    best, second = (step.raw_target_probs + step.raw_draft_probs).topk(2).values.unbind(-1)
    assume((best - second).min() > 1e-6)  # or rounding decides which is an ensemble's best token

    def halve(name, tensor):
        return tensor.float() if name.endswith("probs") else tensor

    single = mapped(step, halve)
    close, far = judge(rule, single, coupling), judge(rule, step, coupling)
    if "gate" in close.signals and not torch.equal(
        close.signals["gate"].double() > 0.5, far.signals["gate"] > 0.5
    ):
        return  # an entropy so near its threshold that rounding decides
    tolerance = {"atol": 2e-4, "rtol": 0}
    torch.testing.assert_close(close.accept_prob.double(), far.accept_prob, **tolerance)
    torch.testing.assert_close(close.penalty_prob.double(), far.penalty_prob, **tolerance)
    law = rule.law(single)
    assert law.dtype == torch.float32
    assert_distribution(law, atol=1e-5)
    torch.testing.assert_close(law.double(), rule.law(step), atol=1e-5, rtol=0)


@every_gated_rule
@given(values=values, looks=looks, step=steps(), seed=st.integers(0, 1000))
def test_the_gate_never_looks_at_the_token(name, values, looks, step, seed):
    rule = rule_of(name, values, looks)
    generator = torch.Generator().manual_seed(seed)
    vocab = step.target_probs.shape[-1]
    tokens = torch.randint(0, vocab, step.draft_tokens.shape, generator=generator)
    other = replace(step, draft_tokens=tokens)
    here, there = rule.signals(step), rule.signals(other)
    assert all(torch.equal(here[name], there[name]) for name in here)
    assert torch.equal(rule.law(step), rule.law(other))


@every_gated_rule
@given(values=values, step=steps())
def test_a_gate_opens_only_where_the_draft_spoke(name, values, step):
    rule = rule_of(name, values)
    gate = rule.signals(step)["gate"]
    position = torch.arange(gate.shape[1])
    last = step.num_draft_tokens[:, None]
    spoke = (position < last) | ((position == last) & (step.draft_probs.amax(-1) > 0))
    drafted = position < last
    assert not gate[~(spoke if rule.draft_at_bonus else drafted)].any()


@given(step=steps(), window=st.integers(1, 6))
def test_a_deferred_window_keeps_no_less_and_looks_at_its_own_row_only(step, window):
    """FLy with a window has no law; its procedure still answers with probabilities."""
    rule = FLy(tau_h=0.3, window=window)
    judged, plain = judge(rule, step, "published"), judge(Speculative(), step, "published")
    shorter = judge(FLy(tau_h=0.3, window=window - 1), step, "published")
    accept = judged.accept_prob
    there = torch.arange(accept.shape[1]) < step.num_draft_tokens[:, None]
    assert (accept <= 1 + 1e-12).all()
    assert (accept >= plain.accept_prob - 1e-12)[there].all()
    assert (accept <= shorter.accept_prob + 1e-12)[there].all()
    assert not judged.penalty_prob.any()
    # The last `window` tokens of a block have no window behind them.
    late = there & (torch.arange(accept.shape[1]) + window >= step.num_draft_tokens[:, None])
    torch.testing.assert_close(accept[late], plain.accept_prob[late])
    together = decide(rule, step, "published")
    for row in range(len(step.num_draft_tokens)):
        alone = decide(rule, rows(step, slice(row, row + 1)), "published", requests=[row])
        assert torch.equal(alone.num_accepted, together.num_accepted[row : row + 1])
        assert torch.equal(alone.next_token, together.next_token[row : row + 1])
