"""What `verify` really emits against the laws, 100,000 rows at a time.

Draft tokens are drawn by the noise as a drafter draws them. Each test is a chi-square test with a
fixed seed that fails below p = 1e-4; on planted bugs the same test must find p < 1e-6.
"""

from dataclasses import dataclass, fields, replace

import pytest
import torch
from scipy.stats import chi2

from easd.core.couplings import COUPLINGS, Maximal, procedure
from easd.core.noise import Noise, race, request_key
from easd.core.rules import EASD, RandomRefusal, Speculative, make_rule
from easd.core.rules.refusal import AsPublished
from easd.core.signals import residual
from easd.core.step import Step
from easd.core.verify import verify

ROWS, V = 100_000, 8
LEAST_P, BUG_P = 1e-4, 1e-6

KEYS = torch.tensor([request_key(7, request) for request in range(ROWS)])

# Gate open, closed (the target is confident), open, open.
TARGET = torch.tensor(
    [
        [0.30, 0.22, 0.16, 0.12, 0.08, 0.06, 0.04, 0.02],
        [0.90, 0.03, 0.02, 0.02, 0.01, 0.01, 0.005, 0.005],
        [0.05, 0.25, 0.25, 0.20, 0.10, 0.10, 0.03, 0.02],
        [0.20, 0.35, 0.15, 0.10, 0.10, 0.05, 0.03, 0.02],
    ]
)
DRAFT = torch.tensor(
    [
        [0.20, 0.30, 0.20, 0.10, 0.10, 0.05, 0.03, 0.02],
        [0.70, 0.10, 0.05, 0.05, 0.04, 0.03, 0.02, 0.01],
        [0.10, 0.20, 0.30, 0.15, 0.15, 0.05, 0.03, 0.02],
        [0.45, 0.20, 0.10, 0.10, 0.05, 0.05, 0.03, 0.02],
    ]
)
GATE = {"tau_h": 1.2, "tau_o": 0.8}

RULES_UNDER_TEST = {
    "speculative": Speculative(),
    "easd": EASD(**GATE),
    "easd accepted": EASD(**GATE, gate_on="accepted"),
    "easd draft_top": EASD(**GATE, penalise="draft_top"),
    "easd bonus": EASD(**GATE, draft_at_bonus=True),
    "easd accepted bonus": EASD(**GATE, draft_at_bonus=True, gate_on="accepted"),
    "without overlap": make_rule("easd-without-overlap", **GATE),
    "random refusal": RandomRefusal(rate=0.3, draft_at_bonus=True),
}


def block(rule, first, length, coupling):
    """A step over positions first..first+length of the table, drafted by the noise itself."""
    fresh = torch.ones(ROWS, dtype=torch.bool) if coupling == "block" else None
    start = torch.full((ROWS,), 40 + first)
    noise = Noise(keys=KEYS, start=start, shared=coupling == "shared", fresh=fresh)
    at = torch.arange(length).expand(ROWS, -1)
    target, draft = (t[first : first + length + 1].clone() for t in (TARGET, DRAFT))
    tokens = race(draft[:length], noise.draft(at, V))
    if not rule.draft_at_bonus:
        draft[length] = 0
    step = Step(
        draft_tokens=tokens,
        num_draft_tokens=torch.full((ROWS,), length),
        draft_probs=draft.expand(ROWS, -1, -1),
        target_probs=target.expand(ROWS, -1, -1),
    )
    return step, noise


def token_at(step, decision, position):
    """The token emitted at a position, and whether one was."""
    length = step.draft_tokens.shape[1]
    accepted = decision.num_accepted > position
    if position == length:
        return decision.next_token, decision.num_accepted == length
    drafted = step.draft_tokens[:, position]
    token = torch.where(accepted, drafted, decision.next_token)
    return token, decision.num_accepted >= position


def p_value(tokens, law):
    counts = torch.bincount(tokens, minlength=V).double()
    expected = law.double() * len(tokens)
    assert not counts[expected == 0].any()
    possible = expected > 0
    statistic = ((counts - expected)[possible] ** 2 / expected[possible]).sum().item()
    return chi2.sf(statistic, int(possible.sum()) - 1)


def p_at(rule, *, first=0, length=1, position=0, coupling="published", correct=None):
    step, noise = block(rule, first, length, coupling)
    tokens, there = token_at(step, verify(rule, step, noise, coupling), position)
    law = (correct or rule).law(first_row(step))[0, position]
    return p_value(tokens[there], law)


def first_row(step):
    return replace(
        step,
        draft_tokens=step.draft_tokens[:1],
        num_draft_tokens=step.num_draft_tokens[:1],
        draft_probs=step.draft_probs[:1],
        target_probs=step.target_probs[:1],
    )


def test_the_table_opens_and_closes_the_gate():
    step, _ = block(EASD(draft_at_bonus=True), 0, 3, "published")
    gate = EASD(**GATE, draft_at_bonus=True).signals(step)["gate"][0]
    assert gate.tolist() == [1, 0, 1, 1]


@pytest.mark.parametrize("coupling", COUPLINGS)
@pytest.mark.parametrize("name", RULES_UNDER_TEST)
def test_first_token_follows_the_law(name, coupling):
    rule = RULES_UNDER_TEST[name]
    for first in (0, 1):  # at an open gate, at a closed one
        assert p_at(rule, first=first, length=1, coupling=coupling) > LEAST_P


@pytest.mark.parametrize("coupling", COUPLINGS)
@pytest.mark.parametrize("name", RULES_UNDER_TEST)
def test_later_tokens_follow_the_law(name, coupling):
    """The second token, wherever the first was kept."""
    rule = RULES_UNDER_TEST[name]
    assert p_at(rule, first=1, length=2, position=1, coupling=coupling) > LEAST_P


@pytest.mark.parametrize("coupling", COUPLINGS)
@pytest.mark.parametrize("name", RULES_UNDER_TEST)
def test_bonus_token_follows_the_law(name, coupling):
    """Alone (nothing drafted), and after a whole block was accepted."""
    rule = RULES_UNDER_TEST[name]
    assert p_at(rule, first=3, length=0, coupling=coupling) > LEAST_P
    assert p_at(rule, first=1, length=1, position=1, coupling=coupling) > LEAST_P


class ResidualReplacedByTarget(Maximal):
    def replacement(self, step, judgement, at, penalised):
        return step.row(at).target_probs[:, 0]


class BonusDrawnFromResidual(Maximal):
    def replacement(self, step, judgement, at, penalised):
        before = (at - 1).clamp_min(0)
        return residual(step.row(at).target_probs[:, 0], step.row(before).draft_probs[:, 0])


class ResidualOfTheTarget(Maximal):
    """Accepts towards the law, replaces towards p."""

    def replacement(self, step, judgement, at, penalised):
        return Maximal(Speculative()).replacement(step, judgement, at, penalised)


class AcceptsTowardsTheTarget(Maximal):
    """Accepts towards p, replaces towards the law."""

    def judge(self, step):
        accept_prob = Maximal(Speculative()).judge(step).accept_prob
        return replace(Maximal.judge(self, step), accept_prob=accept_prob)


class ReplacedWithoutExclusion(AsPublished):
    def replacement(self, step, judgement, at, penalised):
        other = EASD(**GATE, redraw="target")
        return other.published().replacement(step, judgement, at, penalised)


class BonusUngated(AsPublished):
    def replacement(self, step, judgement, at, penalised):
        return EASD(**GATE).published().replacement(step, judgement, at, penalised)


class PenaltyTakenForRejection(AsPublished):
    def replacement(self, step, judgement, at, penalised):
        never = torch.zeros_like(penalised)
        return AsPublished.replacement(self, step, judgement, at, never)


@dataclass(frozen=True, slots=True, kw_only=True)
class GateOffByOne(EASD):
    def signals(self, step):
        found = EASD.signals(self, step)
        return {**found, "gate": found["gate"].roll(1, dims=1)}


def planted(rule, wrong):
    """`rule`, which publishes the procedure that `wrong` makes of it."""

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Planted(type(rule)):
        def published(self):
            return wrong(self)

    return Planted(**{field.name: getattr(rule, field.name) for field in fields(rule)})


GATED, GATED_BONUS = EASD(**GATE), EASD(**GATE, draft_at_bonus=True)
BUGS = {
    "residual replaced by target": (
        planted(Speculative(), ResidualReplacedByTarget),
        Speculative(),
        {},
    ),
    "bonus drawn from the residual": (
        planted(Speculative(), BonusDrawnFromResidual),
        Speculative(),
        {"first": 1, "position": 1},
    ),
    "gate off by one position, closed": (GateOffByOne(**GATE), GATED, {"length": 2}),
    "gate off by one position, opened": (
        GateOffByOne(**GATE),
        GATED,
        {"length": 2, "position": 1, "coupling": "maximal"},
    ),
    "replaced without exclusion": (planted(GATED, ReplacedWithoutExclusion), GATED, {}),
    "penalty taken for a rejection": (planted(GATED, PenaltyTakenForRejection), GATED, {}),
    "bonus ungated": (
        planted(GATED_BONUS, BonusUngated),
        GATED_BONUS,
        {"first": 3, "length": 0},
    ),
    "accepts towards the target": (planted(GATED, AcceptsTowardsTheTarget), GATED, {}),
    "replaces towards the target": (planted(GATED, ResidualOfTheTarget), GATED, {}),
}


@pytest.mark.parametrize("name", BUGS)
def test_planted_bugs_are_found(name):
    bug, correct, where = BUGS[name]
    assert p_at(correct, **where) > LEAST_P
    assert p_at(bug, correct=correct, **where) < BUG_P


def test_draft_tokens_not_drawn_from_the_draft_are_found():
    """The premise of every law: a drafter that samples colder than it says breaks it."""
    step, noise = block(Speculative(), 0, 1, "published")
    cold = step.draft_probs[:, :1] ** 1.3
    tokens = race(cold, noise.draft(torch.zeros(ROWS, 1, dtype=torch.long), V))
    decision = verify(Speculative(), replace(step, draft_tokens=tokens), noise)
    emitted = torch.where(decision.num_accepted > 0, tokens[:, 0], decision.next_token)
    assert p_value(emitted, TARGET[0]) < BUG_P


@pytest.mark.parametrize("coupling", ["maximal", "published"])
@pytest.mark.parametrize("name", RULES_UNDER_TEST)
def test_refusals_happen_as_often_as_judged(name, coupling):
    """Shares of accepted and penalised first tokens within five standard errors."""
    rule = RULES_UNDER_TEST[name]
    step, noise = block(rule, 0, 1, coupling)
    judgement = procedure(rule, coupling).judge(step)
    decision = verify(rule, step, noise, coupling)
    for share, probability in (
        ((decision.num_accepted > 0).double().mean(), judgement.accept_prob.double().mean()),
        (decision.penalised.double().mean(), judgement.penalty_prob.double().mean()),
    ):
        error = (probability * (1 - probability) / ROWS).sqrt()
        assert abs(share - probability) <= 5 * error + 1e-7


@pytest.mark.parametrize("name", RULES_UNDER_TEST)
def test_shared_noise_penalises_only_refused_tokens_at_open_gates(name):
    rule = RULES_UNDER_TEST[name]
    step, noise = block(rule, 0, 3, "shared")
    decision = verify(rule, step, noise, "shared")
    gate = decision.judgement.signals.get("gate", torch.zeros(ROWS, 4))
    stopped = gate.gather(1, decision.num_accepted[:, None])[:, 0]
    assert not decision.penalised[stopped == 0].any()
    assert not decision.penalised[decision.num_accepted == 3].any()
    if isinstance(rule, EASD) and rule.gate_on == "proposed":
        # A gate that is asked first explains every refusal where it is open.
        assert decision.penalised[(stopped > 0) & (decision.num_accepted < 3)].all()


@pytest.mark.parametrize("quality", [0.0, 0.5, 1.0])
def test_shared_noise_makes_the_text_independent_of_the_draft(quality):
    """Block after block, any draft yields the tokens that target-only sampling yields."""
    rows, length, vocab = 2000, 6, 50
    generator = torch.Generator().manual_seed(3)
    target = torch.randn(length, vocab, generator=generator).mul(2).softmax(-1).expand(rows, -1, -1)
    other = torch.randn(length, vocab, generator=generator).mul(2).softmax(-1).expand(rows, -1, -1)
    draft = quality * target + (1 - quality) * other
    at = torch.arange(length).expand(rows, -1)

    def noise(start):
        return Noise(keys=KEYS[:rows], start=start, shared=True)

    zero = torch.zeros(rows, dtype=torch.long)
    wanted = race(target, noise(zero).emit(at, vocab))
    tokens = race(draft, noise(zero).draft(at, vocab))
    text = torch.full((rows, length + 1), -1)
    done = zero.clone()
    forwards = 0
    while (done < length).any():
        # Every row starts at its own position: roll its tokens and rows to the front.
        place = (done[:, None] + torch.arange(length)).clamp_max(length - 1)
        rolled = place[..., None].expand(-1, -1, vocab)
        left = length - done
        pad = torch.zeros(rows, 1, vocab)
        step = Step(
            draft_tokens=tokens.gather(1, place),
            num_draft_tokens=(left - 1).clamp_min(0),
            draft_probs=torch.cat([draft.gather(1, rolled), pad], 1),
            target_probs=torch.cat([target.gather(1, rolled), target[:, :1]], 1),
        )
        decision = verify(Speculative(), step, noise(done), "shared")
        for offset in range(length):
            token = torch.where(
                decision.num_accepted > offset,
                step.draft_tokens[:, offset],
                decision.next_token,
            )
            write = (decision.num_accepted >= offset) & (offset < left)
            text[write, (done + offset)[write]] = token[write]
        done = (done + decision.num_accepted + 1).clamp_max(length)
        forwards += 1
    assert torch.equal(text[:, :length], wanted)
    assert forwards == 1 if quality == 1 else forwards > 1


def test_coupling_keeps_acceptance_at_open_gates():
    """Dirichlet(1) pairs at V = 50 with q = 0.79 p + 0.21 r: 0.896 for lossless, 0.899 for coupled.

    The gate is open everywhere; drafts enter with weight q(x), so means are exact per pair.
    """
    torch.manual_seed(0)
    pairs, vocab = 400, 50
    dirichlet = torch.distributions.Dirichlet(torch.ones(vocab, dtype=torch.float64))
    target, other = dirichlet.sample((pairs, 2)), dirichlet.sample((pairs, 2))
    draft = 0.79 * target + 0.21 * other
    step = Step(
        draft_tokens=torch.arange(vocab).repeat(pairs)[:, None],
        num_draft_tokens=torch.ones(pairs * vocab, dtype=torch.long),
        draft_probs=draft.repeat_interleave(vocab, 0),
        target_probs=target.repeat_interleave(vocab, 0),
    )

    def kept(rule, coupling="maximal"):
        accept = procedure(rule, coupling).judge(step).accept_prob.view(pairs, vocab)
        return (accept * draft[:, 0]).sum(-1)

    always = {"tau_h": 0, "tau_o": 0}
    coupled = EASD(**always)
    overlap = torch.minimum(draft[:, 0], coupled.law(step)[::vocab, 0]).sum(-1)
    torch.testing.assert_close(kept(coupled), overlap, atol=1e-12, rtol=0)
    assert kept(Speculative()).mean().item() == pytest.approx(0.896, abs=0.004)
    assert kept(coupled).mean().item() == pytest.approx(0.899, abs=0.004)
    assert (kept(coupled) - kept(Speculative())).mean().item() == pytest.approx(0.003, abs=0.001)
    assert not kept(coupled, "published").any()
