"""What holds for every rule, whatever its fields and whatever the distributions.

Examples are steps built from a drawn seed and a drawn shape: mixed batches of smooth, flat,
truncated and one-hot rows, greedy or not, with and without a draft at the bonus position.
"""

from dataclasses import fields, replace
from itertools import product

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from easd.core.couplings import COUPLINGS, procedure
from easd.core.noise import Noise, race, request_key
from easd.core.rules import (
    EASD,
    DraftOnly,
    RandomRefusal,
    Speculative,
    TargetOnly,
    make_rule,
    rule_names,
    rule_type,
)
from easd.core.rules.gated import EntropyGated
from easd.core.step import Step
from easd.core.verify import verify

COMBINATIONS = [
    dict(zip(("redraw", "penalise", "gate_on", "draft_at_bonus"), values, strict=True))
    for values in product(
        ("exclude", "target"),
        ("drafted", "draft_top"),
        ("proposed", "accepted"),
        (False, True),
    )
]
OPEN = {"tau_h": 0.3, "tau_o": 0.4}  # a gate that is open at some rows and closed at others
OWN = {name: OPEN if issubclass(rule_type(name), EntropyGated) else {} for name in rule_names()}
OWN["random-refusal"] = {"rate": 0.4}
OWN["pool"] = OPEN | {"a": 1.3, "b": -0.7, "draft_at_bonus": True}
OWN["fly"] = {"tau_h": 0.3, "window": 0}  # with a window there is no law per position


GATED = [name for name in rule_names() if issubclass(rule_type(name), EASD | RandomRefusal)]

every_rule = pytest.mark.parametrize("name", rule_names())
every_gated_rule = pytest.mark.parametrize("name", GATED)
every_coupling = pytest.mark.parametrize("coupling", COUPLINGS)
in_turn = pytest.mark.parametrize("coupling", ["maximal", "block", "published"])
values = st.sampled_from(COMBINATIONS)


def rule_of(name, values):
    """The rule `name` with its own fields as in `OWN` and those of the gate from `values`."""
    return make_rule(name, **OWN[name], **(values if name in GATED else {}))


def smooth(generator, *shape):
    """Rows from nearly certain to nearly flat."""
    temperature = torch.logspace(-1, 1, shape[0], dtype=torch.float64)[:, None, None]
    return (torch.randn(*shape, generator=generator, dtype=torch.float64) / temperature).softmax(-1)


def truncated(probs, keep):
    kept = probs * (probs >= probs.topk(min(keep, probs.shape[-1]), dim=-1).values[..., -1:])
    return kept / kept.sum(-1, keepdim=True)


def one_hot_of(probs):
    return torch.nn.functional.one_hot(probs.argmax(-1), probs.shape[-1]).to(probs.dtype)


@st.composite
def steps(draw, *, kinds=("smooth", "alike", "truncated", "certain", "greedy", "mixed")):
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    batch = draw(st.integers(1, 5))
    length = draw(st.integers(0, 4))
    vocab = draw(st.sampled_from((2, 3, 5, 8, 700)))
    kind = draw(st.sampled_from(kinds))
    target_probs = smooth(generator, batch, length + 1, vocab)
    draft_probs = smooth(generator, batch, length + 1, vocab)
    if kind == "alike":
        draft_probs = 0.9 * target_probs + 0.1 * draft_probs
    raw = {"raw_target_probs": target_probs, "raw_draft_probs": draft_probs}
    if kind == "truncated":
        target_probs, draft_probs = truncated(target_probs, 3), truncated(draft_probs, 2)
    if kind == "certain":
        target_probs, draft_probs = one_hot_of(target_probs), one_hot_of(draft_probs)
    greedy = None
    if kind in ("greedy", "mixed"):
        greedy = torch.ones(batch, dtype=torch.bool)
        greedy[1:] = kind == "greedy"
        target_probs = one_hot_of(target_probs).where(greedy[:, None, None], target_probs)
        draft_probs = one_hot_of(draft_probs).where(greedy[:, None, None], draft_probs)
    counts = torch.randint(0, length + 1, (batch,), generator=generator)
    if draw(st.booleans()):
        counts[:] = length
    if not draw(st.booleans()):
        blank = torch.arange(length + 1)[None, :, None] >= counts[:, None, None]
        draft_probs = draft_probs.masked_fill(blank, 0)
    # Padding rows of the draft may be blank; a token must come from where it was drafted.
    weights = (draft_probs[:, :length] + 1e-300).flatten(0, 1)
    tokens = torch.zeros(batch, length, dtype=torch.long)
    if length:
        tokens = torch.multinomial(weights, 1, generator=generator).view(batch, length)
    return Step(
        draft_tokens=tokens,
        num_draft_tokens=counts,
        draft_probs=draft_probs,
        target_probs=target_probs,
        greedy=greedy,
        **raw,
    )


def noise_for(step, coupling="maximal", requests=None):
    requests = range(len(step.num_draft_tokens)) if requests is None else requests
    keys = torch.tensor([request_key(0, request) for request in requests])
    fresh = torch.ones_like(keys, dtype=torch.bool) if coupling == "block" else None
    start = torch.full_like(keys, 11)
    return Noise(keys=keys, start=start, shared=coupling == "shared", fresh=fresh)


def decide(rule, step, coupling, requests=None):
    return verify(rule, step, noise_for(step, coupling, requests), coupling)


def mapped(step, change):
    """The step with every tensor it has changed by `change(name, tensor)`."""
    values = {field.name: getattr(step, field.name) for field in fields(step)}
    return Step(**{k: None if v is None else change(k, v) for k, v in values.items()})


def without_draft(name, tensor):
    """For `mapped`: the first position alone, as a bonus position."""
    if name == "draft_tokens":
        return tensor[:, :0]
    if name == "num_draft_tokens":
        return torch.zeros_like(tensor)
    return tensor[:, :1] if name.endswith("probs") else tensor


def rows(step, chosen):
    return mapped(step, lambda _, tensor: tensor[chosen])


def positions(step):
    """Each column of positions as `at` [B], and the bonus positions of ragged rows."""
    batch, length = step.draft_tokens.shape
    return [*(torch.full((batch,), k) for k in range(length + 1)), step.num_draft_tokens]


def judge(rule, step, coupling="maximal"):
    return procedure(rule, coupling).judge(step)


def replacements(rule, step, coupling="maximal"):
    chosen = procedure(rule, coupling)
    judgement = chosen.judge(step)
    for at in positions(step):
        at = at.minimum(step.num_draft_tokens)
        for flag in (False, True):
            penalised = torch.full_like(at, flag, dtype=torch.bool) & ~step.is_bonus(at)
            yield at, penalised, chosen.replacement(step, judgement, at, penalised)


def assert_distribution(probs, *, atol=1e-9):
    assert torch.isfinite(probs).all()
    assert (probs >= 0).all()
    torch.testing.assert_close(probs.sum(-1), torch.ones_like(probs[..., 0]), atol=atol, rtol=0)


@in_turn
@every_rule
@given(values=values, step=steps())
def test_answers_are_probabilities(name, values, step, coupling):
    rule = rule_of(name, values)
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
@given(values=values, step=steps())
def test_a_row_alone_is_the_row_in_its_batch(name, values, step, coupling):
    rule = rule_of(name, values)
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
@given(values=values, step=steps())
def test_decisions_are_possible(name, values, step, coupling):
    rule = rule_of(name, values)
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
@given(values=values, step=steps(), seed=st.integers(0, 1000))
def test_the_gate_never_looks_at_the_token(name, values, step, seed):
    rule = rule_of(name, values)
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


@pytest.mark.parametrize("gate_on", ["proposed", "accepted"])
@pytest.mark.parametrize("vocab", [2, 5, 300])
def test_two_uniform_models_cannot_tilt_each_other(vocab, gate_on):
    """The law is p where q = p = uniform, with the gate wide open."""
    flat = torch.full((2, 3, vocab), 1 / vocab, dtype=torch.float64)
    step = Step(
        draft_tokens=torch.zeros(2, 2, dtype=torch.long),
        num_draft_tokens=torch.tensor([2, 2]),
        draft_probs=flat,
        target_probs=flat,
    )
    for values in ({"draft_at_bonus": False}, {"draft_at_bonus": True}):
        law = EASD(tau_h=0, tau_o=0, gate_on=gate_on, **values).law(step)
        torch.testing.assert_close(law, flat, atol=1e-12, rtol=0)


def test_with_two_candidates_the_law_is_the_draft_inverted():
    generator = torch.Generator().manual_seed(0)
    p, q = (smooth(generator, 6, 2, 2) for _ in range(2))
    step = Step(
        draft_tokens=torch.zeros(6, 1, dtype=torch.long),
        num_draft_tokens=torch.ones(6, dtype=torch.long),
        draft_probs=q,
        target_probs=p,
    )
    law = EASD(tau_h=0, tau_o=0, draft_at_bonus=True).law(step)
    torch.testing.assert_close(law, 1 - q, atol=1e-9, rtol=0)


def test_excluding_the_drafted_token_is_the_contrastive_tilt():
    """law(y) = p(y) (A - q(y) / (1 - p(y))) with A = sum of q / (1 - p): METHOD section 4."""
    generator = torch.Generator().manual_seed(1)
    p, q = (smooth(generator, 8, 1, 30) for _ in range(2))
    step = Step(
        draft_tokens=torch.zeros(8, 0, dtype=torch.long),
        num_draft_tokens=torch.zeros(8, dtype=torch.long),
        draft_probs=q,
        target_probs=p,
    )
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
