"""Whole short sequences of the engine against the exact law of the slow reference sampler.

Every test is a chi-square test on fixed seeds: p > 1e-3 passes, and the planted bugs below must
come out with p < 1e-6 under the same test.
"""

from collections import Counter
from dataclasses import dataclass, replace
from functools import cache

import pytest
import torch
from models import build, gpt2_config, near, requests, texts
from reference import Reference
from scipy.stats import chi2

from easd.core.couplings import Maximal
from easd.core.noise import Noise
from easd.core.rules import EASD, DraftOnly, RandomRefusal, Speculative, TargetOnly
from easd.core.rules.pool import Pool
from easd.core.rules.pool_everywhere import PoolEverywhere
from easd.core.signals import entropy
from easd.engine.batch import Batch
from easd.engine.drafters import ModelDrafter
from easd.engine.engine import Engine
from easd.engine.generate import decode
from easd.engine.pair import Pair
from easd.engine.settings import Settings

PASS, FAIL = 1e-3, 1e-6
VOCAB, PROMPT, LENGTH, COUNT = 6, (1, 2), 3, 2000
SAMPLING = ("temperature", "draft_temperature", "top_k", "top_p", "min_p")
GATED = EASD(tau_h=0.5, tau_o=1.0, top_n=3)
NO_PROCESSING = Settings()


TARGET, NEAR, FAR = range(3)


@cache
def models():
    """A target, a draft like it, and one unlike it that is refused all the time."""
    target = build(gpt2_config(VOCAB), spread=24.0)
    return target, near(target, noise=0.15), build(gpt2_config(VOCAB), spread=8.0, seed=5)


@cache
def distribution(which, prefix, settings=NO_PROCESSING):
    """Probabilities from a plain forward without a cache, processed by transformers' warpers."""
    ids = torch.tensor([prefix])
    with torch.no_grad():
        given = ids.to(models()[which].device)
        scores = models()[which](input_ids=given, use_cache=False).logits[:, -1].cpu()
    for warper in settings.processing(len(PROMPT), [], []).processors:
        scores = warper(ids, scores)
    return scores[0].softmax(-1)


def reference(rule, settings=NO_PROCESSING, ends=frozenset(), coupling=None):
    raw = replace(settings, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0)
    return Reference(
        target=lambda prefix: distribution(TARGET, prefix, settings),
        draft=lambda prefix: distribution(NEAR, prefix, settings),
        raw_target=lambda prefix: distribution(TARGET, prefix, raw),
        raw_draft=lambda prefix: distribution(NEAR, prefix, raw),
        rule=rule,
        ends=ends,
        coupling=coupling,
    )


def exact_law(rule, gamma, settings=NO_PROCESSING, length=LENGTH, ends=frozenset(), coupling=None):
    """By blocks where the law depends on them, else the product of the tokens' laws."""
    oracle = reference(rule, settings, ends, coupling)
    if isinstance(rule, EASD | RandomRefusal) and not rule.draft_at_bonus:
        return oracle.block_sequence_law(PROMPT, length, gamma)
    return oracle.sequence_law(PROMPT, length)


def p_value(observed, law):
    """Chi-square of texts against their law; texts expected fewer than 5 times share one cell."""
    observed = list(observed)
    counts = Counter(map(tuple, observed))
    impossible = [text for text in counts if law.get(text, 0.0) <= 0]
    assert not impossible, f"emitted texts of probability 0: {impossible[:3]}"
    cells = [(prob * len(observed), counts[text]) for text, prob in law.items() if prob > 0]
    rare = [cell for cell in cells if cell[0] < 5]
    common = [cell for cell in cells if cell[0] >= 5]
    if rare:
        common.append((sum(e for e, _ in rare), sum(o for _, o in rare)))
    statistic = sum((o - e) ** 2 / e for e, o in common if e > 0)
    return chi2.sf(statistic, len(common) - 1)


def emitted(rule, *, gamma, draft=NEAR, count=COUNT, length=LENGTH, eos=frozenset(), **settings):
    asked = requests([PROMPT] * count, max_new_tokens=length, eos=eos)
    asked = [
        replace(
            request,
            processing=Settings(
                rule=rule, coupling=settings.get("coupling"), **sampling(settings)
            ).processing(len(PROMPT), [], []),
        )
        for request in asked
    ]
    pair = models()[TARGET], models()[draft]
    return texts(pair, asked, rule=rule, gamma=gamma, **settings)


def sampling(settings):
    return {k: v for k, v in settings.items() if k in SAMPLING}


def test_the_gate_of_the_pair_is_worth_testing():
    oracle = reference(GATED)
    prefixes = [(*PROMPT, a, b) for a in range(VOCAB) for b in range(VOCAB)]
    refused = [1 - float(oracle.outcomes(p, bonus=False)[0].sum()) for p in prefixes]
    opened = sum(share == pytest.approx(1) for share in refused) / len(prefixes)
    assert 0.2 < opened < 0.6
    assert min(refused) < 0.5


def test_block_law_is_the_product_where_the_law_knows_no_blocks():
    for rule in (Speculative(), replace(GATED, draft_at_bonus=True)):
        product = reference(rule).sequence_law(PROMPT, 3)
        for gamma in (1, 2, 3):
            blocks = reference(rule).block_sequence_law(PROMPT, 3, gamma)
            assert blocks == pytest.approx(product, abs=1e-12)


def test_block_law_depends_on_gamma_where_the_bonus_token_is_not_gated():
    one, three = (reference(GATED).block_sequence_law(PROMPT, 4, gamma) for gamma in (1, 3))
    assert sum(one.values()) == pytest.approx(1)
    assert max(abs(one[text] - three[text]) for text in one) > 1e-3


LAWS_WITHOUT_BLOCKS = [
    Speculative(),
    replace(GATED, draft_at_bonus=True),
    Pool(tau_h=GATED.tau_h, tau_o=GATED.tau_o, b=0.5, draft_at_bonus=True),
    PoolEverywhere(a=0.8, b=-0.9, plausible=0.02),
]
NAMES = ["speculative", "easd", "pool", "pool-everywhere"]


@pytest.mark.parametrize("draft", [NEAR, FAR], ids=["near", "far"])
@pytest.mark.parametrize("rule", LAWS_WITHOUT_BLOCKS, ids=NAMES)
@pytest.mark.parametrize("coupling", ["maximal", "block", "published"])
def test_blocks_that_end_early_keep_the_law(rule, draft, coupling):
    if draft == FAR and not isinstance(rule, Speculative):
        pytest.skip("what a gate does depends on the draft")
    if coupling == "published" and rule.published() is None:
        pytest.skip("without a procedure of its own it is decoded as maximal")
    observed = emitted(
        rule, gamma=3, draft=draft, length=4, least_block_prob=0.4, coupling=coupling
    )
    assert p_value(observed, exact_law(rule, 3, length=4)) > PASS


def test_a_pool_that_does_not_ask_the_draft_at_the_bonus_would_be_seen():
    asked = replace(LAWS_WITHOUT_BLOCKS[-1], plausible=0.0)
    unasked = replace(asked, draft_at_bonus=False)
    assert p_value(emitted(unasked, gamma=1), exact_law(asked, 1)) < FAIL


def test_a_greedy_pool_writes_the_best_token_of_the_pool():
    rule = LAWS_WITHOUT_BLOCKS[-1]
    text: tuple[int, ...] = ()
    oracle = replace(reference(rule), greedy=True)
    for _ in range(12):
        text += (int(oracle.token_law(PROMPT + text).argmax()),)
    for gamma, coupling in ((1, "maximal"), (4, "block"), (3, "shared")):
        options = {"gamma": gamma, "coupling": coupling, "temperature": 0}
        assert emitted(rule, count=2, length=12, **options) == [list(text)] * 2


def test_a_stop_that_knows_the_undrawn_token_would_be_seen(monkeypatch):
    """Planted: a block that ends before the token that made it improbable, and forgets it."""
    propose = ModelDrafter.propose

    def forgetful(self, rows, counts, noise, *, bonus, raw):
        draft = propose(self, rows, counts, noise, bonus=bonus, raw=raw)
        kept = [max(count - 1, 0) for count in draft.counts]
        return replace(draft, counts=kept)

    monkeypatch.setattr(ModelDrafter, "propose", forgetful)
    observed = emitted(Speculative(), gamma=3, length=4, least_block_prob=0.4)
    assert p_value(observed, exact_law(Speculative(), 3, length=4)) < FAIL


def chosen_by_what_was_discarded(monkeypatch, count=9000):
    """p of the first two tokens where a row drafts none if its last block discarded some token."""
    discarded = {}

    def block_lengths(batch, gamma):
        asked = [0 if discarded.get(row.request.number) in (0, 1, 2) else 2 for row in batch.rows]
        return [
            min(length, row.remaining - 1) for length, row in zip(asked, batch.rows, strict=True)
        ]

    monkeypatch.setattr(Batch, "block_lengths", block_lengths)
    asked = requests([PROMPT] * count, max_new_tokens=4)
    settings = Settings(rule=Speculative(), gamma="auto", batch_size=count)
    found = {}
    for record in decode(Pair.of(models()[TARGET], models()[FAR]), asked, settings):
        drafted = record.step.draft_tokens.tolist()
        for place, row in enumerate(record.rows):
            after = int(record.decision.num_accepted[place]) + 1
            discarded[row.request.number] = next(iter(drafted[place][after:]), None)
            found[row.request.number] = row.new_ids[:2]
    return p_value(found.values(), exact_law(Speculative(), 2, length=2))


def test_the_law_survives_a_choice_of_gamma_that_knows_discarded_tokens(monkeypatch):
    assert chosen_by_what_was_discarded(monkeypatch) > PASS


def test_a_choice_that_knows_numbers_to_come_would_be_seen(monkeypatch):
    """Planted: the numbers of discarded tokens are used again."""
    noise = Engine._noise
    monkeypatch.setattr(Engine, "_noise", lambda *given: replace(noise(*given), fresh=None))
    assert chosen_by_what_was_discarded(monkeypatch) < FAIL


@pytest.mark.parametrize("gamma", [None, 2])
def test_reference_samples_follow_its_own_law(gamma):
    oracle = reference(GATED if gamma else replace(GATED, draft_at_bonus=True))
    generator = torch.Generator().manual_seed(0)
    if gamma:
        drawn = [oracle.sample_blocks(PROMPT, 2, gamma, generator) for _ in range(500)]
        law = oracle.block_sequence_law(PROMPT, 2, gamma)
    else:
        drawn = [oracle.sample(PROMPT, 2, generator) for _ in range(500)]
        law = oracle.sequence_law(PROMPT, 2)
    assert p_value(drawn, law) > PASS


BONUS = {"draft_at_bonus": True}


@pytest.mark.parametrize(
    ("rule", "gamma", "coupling"),
    [
        (Speculative(), 4, None),
        (TargetOnly(), 1, None),
        (DraftOnly(), 2, None),
        (GATED, 1, None),
        (GATED, 2, None),
        (GATED, 4, None),
        (replace(GATED, **BONUS), 2, None),
        (replace(GATED, gate_on="accepted"), 2, None),
        (replace(GATED, penalise="draft_top"), 3, None),
        (replace(GATED, redraw="target"), 2, None),
        (GATED, 2, "maximal"),
        (replace(GATED, **BONUS), 3, "maximal"),
        (RandomRefusal(rate=0.3), 2, None),
    ],
    ids=str,
)
def test_sequences_follow_the_law(rule, gamma, coupling):
    # A batch far smaller than the requests: rows end, move and are refilled all the time.
    observed = emitted(rule, gamma=gamma, batch_size=1024, coupling=coupling)
    law = (
        reference(Speculative()).sequence_law(PROMPT, LENGTH)
        if isinstance(rule, TargetOnly)
        else draft_law()
        if isinstance(rule, DraftOnly)
        else exact_law(rule, gamma, coupling=coupling)
    )
    assert p_value(observed, law) > PASS


def draft_law():
    oracle = replace(reference(Speculative()), target=lambda prefix: distribution(NEAR, prefix))
    return oracle.sequence_law(PROMPT, LENGTH)


@pytest.mark.parametrize("gamma", [1, 3])
def test_speculation_from_an_unlike_draft_follows_the_law(gamma):
    observed = emitted(Speculative(), draft=FAR, gamma=gamma)
    assert p_value(observed, exact_law(Speculative(), gamma)) > PASS


@pytest.mark.parametrize("rule", [Speculative(), replace(GATED, **BONUS)], ids=str)
def test_sequences_under_shared_noise_follow_the_law(rule):
    observed = emitted(rule, gamma=2, coupling="shared")
    assert p_value(observed, exact_law(rule, 2)) > PASS


@pytest.mark.parametrize("draft", [NEAR, FAR], ids=["near", "far"])
@pytest.mark.parametrize("rule", LAWS_WITHOUT_BLOCKS, ids=NAMES)
@pytest.mark.parametrize("draft_temperature", [None, 0, 0.6])
def test_blocks_verified_jointly_follow_the_law(rule, draft, draft_temperature):
    if draft == FAR and not isinstance(rule, Speculative):
        pytest.skip("what a gate does depends on the draft")
    observed = emitted(
        rule,
        gamma=3,
        draft=draft,
        length=4,
        batch_size=512,
        coupling="block",
        draft_temperature=draft_temperature,
    )
    assert p_value(observed, exact_law(rule, 3, length=4)) > PASS


@pytest.mark.parametrize("rule", LAWS_WITHOUT_BLOCKS, ids=NAMES)
@pytest.mark.parametrize("draft_temperature", [0, 0.6, 1.7])
@pytest.mark.parametrize("coupling", ["maximal", "shared"])
def test_the_draft_temperature_does_not_change_the_law(rule, draft_temperature, coupling):
    options = {"temperature": 0.8, "top_k": 4}
    observed = emitted(
        rule, gamma=2, coupling=coupling, draft_temperature=draft_temperature, **options
    )
    assert p_value(observed, exact_law(rule, 2, Settings(**options))) > PASS


def test_blocks_that_share_numbers_with_the_next_are_caught(monkeypatch):
    """Planted: tests that decided where a block ends decide again in the block behind it."""
    monkeypatch.setattr(Noise, "_block_keys", property(lambda noise: noise.keys))
    observed = emitted(Speculative(), gamma=3, length=4, coupling="block", count=5000)
    assert p_value(observed, exact_law(Speculative(), 3, length=4)) < FAIL


def test_tokens_drawn_colder_than_proposed_are_caught(monkeypatch):
    """Planted: the draft samples at its own temperature and says that it did not."""
    propose = ModelDrafter.propose

    def silent(self, *args, **options):
        return replace(propose(self, *args, **options), proposals=None)

    monkeypatch.setattr(ModelDrafter, "propose", silent)
    for coupling in ("maximal", "block"):
        observed = emitted(Speculative(), gamma=2, coupling=coupling, draft_temperature=0.6)
        assert p_value(observed, exact_law(Speculative(), 2)) < FAIL


@pytest.mark.parametrize("rule", [Speculative(), GATED, replace(GATED, entropy_of="raw")], ids=str)
@pytest.mark.parametrize("options", [{"temperature": 0.7}, {"top_k": 3, "top_p": 0.9}], ids=str)
def test_sequences_follow_the_law_of_processed_distributions(rule, options):
    rule = replace(rule, tau_h=0.3) if isinstance(rule, EASD) else rule
    observed = emitted(rule, gamma=2, **options)
    assert p_value(observed, exact_law(rule, 2, Settings(**options))) > PASS


@pytest.mark.parametrize("rule", [Speculative(), GATED], ids=str)
def test_sequences_that_may_end_early_follow_the_law(rule):
    ends = frozenset({3})
    observed = emitted(rule, gamma=3, length=4, eos=ends)
    assert {len(text) for text in observed} >= {1, 2, 3, 4}
    assert p_value(observed, exact_law(rule, 3, length=4, ends=ends)) > PASS


@pytest.mark.parametrize("batch_size", [1, 3])
def test_small_batches_follow_the_law(batch_size):
    observed = emitted(GATED, gamma=2, count=200, length=2, batch_size=batch_size)
    assert p_value(observed, exact_law(GATED, 2, length=2)) > PASS


# Planted bugs. Each must be caught by the test above that it breaks.


@dataclass(frozen=True, slots=True, kw_only=True)
class ResidualIsTarget(Speculative):
    """A refused token is redrawn from the target itself."""

    default_coupling = "published"

    def published(self):
        return RedrawnFromTarget(self)


class RedrawnFromTarget(Maximal):
    def replacement(self, step, judgement, at, penalised):
        return step.row(at).target_probs[:, 0]


@dataclass(frozen=True, slots=True, kw_only=True)
class GateOffByOne(EASD):
    """The gate of a position is read one position further on."""

    def signals(self, step):
        signals = EASD.signals(self, step)
        return {**signals, "gate": signals["gate"].roll(1, dims=1)}


@dataclass(frozen=True, slots=True, kw_only=True)
class BonusUngated(EASD):
    """Promises a gate at the bonus position and does not ask it."""

    def signals(self, step):
        signals = EASD.signals(self, step)
        return {**signals, "gate": signals["gate"] * step.has_draft()}


@dataclass(frozen=True, slots=True, kw_only=True)
class EntropyOfDraftOnly(EASD):
    """The target's entropy is never asked."""

    def signals(self, step):
        signals = EASD.signals(self, step)
        gate = signals["gate"] * 0 + (entropy(step.draft_probs) > self.tau_h)
        return {**signals, "gate": gate}


PLANTED = {"tau_h": GATED.tau_h, "tau_o": GATED.tau_o, "top_n": GATED.top_n}


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        (ResidualIsTarget(), Speculative()),
        (GateOffByOne(**PLANTED), GATED),
        (BonusUngated(**PLANTED, draft_at_bonus=True), replace(GATED, draft_at_bonus=True)),
        (EntropyOfDraftOnly(**PLANTED), GATED),
    ],
    ids=lambda rule: type(rule).__name__,
)
def test_planted_rules_are_caught(wrong, right):
    observed = emitted(wrong, gamma=2)
    assert p_value(observed, exact_law(right, 2)) < FAIL


def test_draft_noise_reused_for_acceptance_is_caught(monkeypatch):
    def accept(self, length):
        at = torch.arange(length, device=self.keys.device).expand(len(self.keys), -1)
        return 1 - torch.exp(-self.draft(at, VOCAB)[..., 0])

    monkeypatch.setattr(Noise, "accept", accept)
    observed = emitted(Speculative(), draft=FAR, gamma=2)
    assert p_value(observed, exact_law(Speculative(), 2)) < FAIL


def test_a_cache_that_keeps_refused_tokens_is_caught(monkeypatch):
    from easd.engine.engine import Engine

    commit = Engine._commit

    def forgetful(self, draft, *rest):
        lengths = list(self.target.lengths)
        committed = commit(self, draft, *rest)
        for place in range(min(len(self._rows), len(lengths))):
            self.target.lengths[place] = min(self.target.lengths[place], lengths[place] + 1)
        return committed

    monkeypatch.setattr(Engine, "_commit", forgetful)
    observed = emitted(Speculative(), draft=FAR, gamma=3, length=4)
    assert p_value(observed, exact_law(Speculative(), 3, length=4)) < FAIL


def scoped_law(rule, length, holds):
    """Probability of every text where the rule holds behind `holds(text)` only."""
    inside, outside = reference(rule), reference(Speculative())
    texts = {(): 1.0}
    for _ in range(length):
        longer = {}
        for text, mass in texts.items():
            law = (inside if holds(text) else outside).token_law(PROMPT + text)
            longer |= {(*text, token): mass * prob for token, prob in enumerate(law.tolist())}
        texts = longer
    return texts


BEGIN, END = 3, 4


def reasons(text):
    marks = [token for token in text if token in (BEGIN, END)]
    return bool(marks) and marks[-1] == BEGIN


SCOPES = {
    "first tokens": ({"exact_first": 2}, lambda text: len(text) >= 2),
    "reasoning": ({"markers": (BEGIN, END)}, reasons),
    "both": (
        {"exact_first": 1, "markers": (BEGIN, END)},
        lambda text: len(text) >= 1 and reasons(text),
    ),
}


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("coupling", ["maximal", "block", "published", "shared"])
def test_rules_hold_in_their_scope_only(scope, coupling):
    rule = Pool(tau_h=0, tau_o=0, a=0.5, b=1.0, plausible=0.0, pick="sample", **BONUS)
    if coupling == "published":
        rule = EASD(tau_h=0.3, tau_o=0.3, top_n=3, **BONUS)
    values, holds = SCOPES[scope]
    asked = [replace(request, **values) for request in requests([PROMPT] * COUNT, max_new_tokens=3)]
    pair = models()[TARGET], models()[NEAR]
    observed = texts(pair, asked, rule=rule, gamma=2, coupling=coupling, batch_size=700)
    assert p_value(observed, scoped_law(rule, 3, holds)) > PASS
    everywhere = reference(rule).sequence_law(PROMPT, 3)
    nowhere = reference(Speculative()).sequence_law(PROMPT, 3)
    assert min(p_value(observed, everywhere), p_value(observed, nowhere)) < PASS
