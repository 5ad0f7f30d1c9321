"""Rules as configuration: their fields, names, limits and messages."""

import copy
import dataclasses
import math
import pickle
import re

import pytest
import torch

from easd.config import parse_rule
from easd.core.gate import Gate
from easd.core.noise import Noise, race, request_key
from easd.core.rules import (
    EASD,
    PRESETS,
    RULES,
    RandomRefusal,
    Rule,
    Speculative,
    as_rule,
    field_names,
    make_rule,
    rule_name,
    rule_names,
    summary_of,
)
from easd.core.rules.fly import FLy
from easd.core.rules.keep_near_top import KeepNearTop
from easd.core.rules.pool import Pool
from easd.core.step import Step
from easd.core.verify import verify
from easd.engine.request import Request
from easd.engine.settings import Settings
from easd.errors import EasdError, RuleError, one_line, shown
from easd.fields import described

ALL = [pytest.param(kind, id=name) for name, kind in RULES.items()]


@pytest.mark.parametrize("kind", ALL)
def test_rules_are_frozen_hashable_values(kind):
    rule = kind()
    assert isinstance(rule, Rule)
    assert rule == kind()
    assert hash(rule) == hash(kind())
    assert len({rule, kind()}) == 1
    assert pickle.loads(pickle.dumps(rule)) == rule
    for field in dataclasses.fields(rule):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(rule, field.name, getattr(rule, field.name))
    with pytest.raises((AttributeError, TypeError)):
        rule.something_else = 1


@pytest.mark.parametrize("kind", ALL)
def test_repr_reads_back(kind):
    names = {c.__name__: c for c in RULES.values()} | {"inf": math.inf}
    rule = kind()
    assert eval(repr(rule), names) == rule
    changed = {"rate": 0.25, "tau_h": math.inf, "draft_at_bonus": True}
    changed |= {"alpha": 0.25, "beta": 0.25, "least_ratio": 0.25, "relaxed_delta": 0.25}
    changed |= {"lenience": 0.25, "weight": 0.25, "epsilon": 0.25, "b": 0.25}
    own = {f.name for f in dataclasses.fields(rule)}
    other = dataclasses.replace(rule, **{k: v for k, v in changed.items() if k in own})
    assert eval(repr(other), names) == other
    assert (other == rule) == (not own)


@pytest.mark.parametrize("name", rule_names())
def test_rules_by_name(name):
    rule = make_rule(name)
    assert type(rule) is (PRESETS[name].rule if name in PRESETS else RULES[name])
    assert rule_name(rule) == name
    assert summary_of(name).endswith(".")


def test_an_unnamed_variant_keeps_the_name_of_its_rule():
    @dataclasses.dataclass(frozen=True)
    class Mine(Speculative):
        pass

    assert rule_name(Mine()) == "speculative"
    assert RULES["speculative"] is Speculative


def test_ablations_differ_from_the_method_only_in_their_conditions():
    whole = make_rule("easd", tau_h=2.0, tau_o=0.6)
    expected = {
        "easd-without-overlap": ("draft_entropy", "target_entropy"),
        "easd-without-draft-entropy": ("target_entropy", "overlap"),
        "easd-without-both": ("target_entropy",),
        "overlap-only": ("overlap",),
    }
    for name, conditions in expected.items():
        rule = make_rule(name, tau_h=2.0, tau_o=0.6)
        values = dataclasses.asdict(rule)
        assert values == dataclasses.asdict(whole) | {"conditions": conditions}
        assert rule == dataclasses.replace(whole, conditions=conditions)
        assert rule_name(rule) == name


@pytest.mark.parametrize(
    ("name", "values", "says"),
    [
        ("easd", {"tau_h": -0.5}, ["tau_h", "-0.5", "nats", "0 or more"]),
        ("easd", {"tau_h": math.nan}, ["tau_h", "nan", "0 or more"]),
        ("easd", {"tau_o": 1.01}, ["tau_o", "1.01", "[0, 1]"]),
        ("easd", {"tau_o": -0.1}, ["tau_o", "-0.1", "[0, 1]"]),
        ("easd", {"tau_o": math.nan}, ["tau_o", "nan", "[0, 1]"]),
        ("easd", {"top_n": 0}, ["top_n", "0", "1 to 1024"]),
        ("easd", {"redraw": "draft"}, ["redraw", "'draft'", "exclude, target"]),
        ("easd", {"penalise": "all"}, ["penalise", "'all'", "drafted, draft_top"]),
        ("easd", {"gate_on": "never"}, ["gate_on", "'never'", "proposed, accepted"]),
        ("easd", {"top_n": 1025}, ["top_n", "1025", "1 to 1024"]),
        ("fly", {"window": 1025}, ["window", "1025", "0 to 1024"]),
        ("easd", {"entropy_of": "bits"}, ["entropy_of", "'bits'", "sampling, raw"]),
        ("easd", {"conditions": ()}, ["conditions", "()", "draft_entropy"]),
        ("easd", {"conditions": ("overlap", "x")}, ["conditions", "'x'", "target_entropy"]),
        ("overlap-only", {"tau_o": 2}, ["tau_o", "2", "[0, 1]"]),
        ("random-refusal", {"rate": 1.5}, ["rate", "1.5", "[0, 1]"]),
        ("random-refusal", {"rate": -0.1}, ["rate", "-0.1", "[0, 1]"]),
        ("random-refusal", {"rate": math.nan}, ["rate", "nan", "[0, 1]"]),
        ("random-refusal", {"redraw": "x"}, ["redraw", "'x'", "exclude, target"]),
        ("random-refusal", {"tau_h": 1.0}, ["random-refusal", "tau_h", "rate"]),
        ("speculative", {"tau_h": 1.0}, ["speculative", "tau_h", "no fields"]),
        ("easd", {"tau": 1.0}, ["easd", "'tau'", "tau_h", "draft_at_bonus"]),
        ("eads", {}, ["'eads'", *rule_names()]),
    ],
)
def test_errors_name_value_limit_and_way_out(name, values, says):
    with pytest.raises(RuleError) as error:
        make_rule(name, **values)
    message = str(error.value)
    assert all(part in message for part in says), message
    assert "\n" not in message
    assert isinstance(error.value, EasdError)


@pytest.mark.parametrize(
    "values",
    [
        {"tau_h": 0.0},
        {"tau_h": math.inf},
        {"tau_o": 0.0},
        {"tau_o": 1.0},
        {"top_n": 1},
        {"top_n": 1024},
        {"conditions": ("overlap",)},
    ],
)
def test_limits_themselves_are_allowed(values):
    assert make_rule("easd", **values) == EASD(**values)


# Of every field of rules that is a number: what is just allowed, and what no longer is.
LIMITS = {
    ("easd", "tau_h"): ([0, math.inf], [-1e-9, math.nan]),
    ("easd", "tau_o"): ([0, 1], [-1e-9, 1 + 1e-9]),
    ("easd", "top_n"): ([1, 1024], [0, 1025]),
    ("random-refusal", "rate"): ([0, 1], [-1e-9, 1 + 1e-9]),
    ("pool", "plausible"): ([0, 1], [-1e-9, 1 + 1e-9]),
    ("pool", "a"): ([-100, 100], [-100.1, 100.1]),
    ("pool", "b"): ([-100, 100], [-100.1, 100.1]),
    ("keep-near-top", "mu"): ([0, 1], [-1e-9, 1 + 1e-9]),
    ("contrast", "beta"): ([0, 99], [-1e-9, 99.1]),
    ("sharpened", "power"): ([1e-9, 100], [0, 100.1]),
    ("lenience", "lenience"): ([1e-9, 1], [0, 1 + 1e-9]),
    ("relaxed-pool", "lenience"): ([1e-9, 1], [0, 1 + 1e-9]),
    ("ensemble", "weight"): ([1e-9, 1], [0, 1 + 1e-9]),
    ("typical-acceptance", "epsilon"): ([0, 1], [-1e-9, 1 + 1e-9]),
    ("typical-acceptance", "delta"): ([0, 1], [-1e-9, 1 + 1e-9]),
    ("cascade", "alpha"): ([0, 1], [-1e-9, 1 + 1e-9]),
    ("ears", "beta"): ([0, 100], [-1e-9, 100.1]),
    ("relaxed-top-k", "relaxed_top_k"): ([1, 1024], [0, 1025]),
    ("relaxed-top-k", "relaxed_delta"): ([0, 1], [-1e-9, 1 + 1e-9]),
    ("mars", "least_ratio"): ([0, 1], [-1e-9, 1 + 1e-9]),
    ("fly", "tau_h"): ([0, math.inf], [-1e-9, math.nan]),
    ("fly", "window"): ([0, 1024], [-1, 1025]),
}


@pytest.mark.parametrize(("name", "field"), LIMITS)
def test_limits_are_allowed_and_what_is_past_them_is_not(name, field):
    allowed, refused = LIMITS[name, field]
    for value in allowed:
        assert getattr(make_rule(name, **{field: value}), field) == value
    for value in refused:
        with pytest.raises(RuleError, match=rf"^{field} = .*; use "):
            make_rule(name, **{field: value})


NUMBERS = [
    pytest.param(kind, field, id=f"{name}-{field.name}")
    for name, kind in RULES.items()
    for field in described(kind).values()
    if field.kind in (int, float)
]


@pytest.mark.parametrize(("kind", "field"), NUMBERS)
def test_no_number_of_any_rule_is_without_bounds(kind, field):
    """In Python, and as files, options and HTTP bodies say it; whoever adds a rule too."""
    wrong = [10**400, -(10**400), 10**5000, math.nan, "5 bytes", [1], None, True]
    wrong += [1.5] if field.kind is int else []
    for value in wrong:
        with pytest.raises(RuleError, match=f"^{field.name} = ") as error:
            kind(**{field.name: value})
        assert len(str(error.value)) < 200
    for value in [10**400, -(10**400), 10**5000, "5 bytes", [1]]:
        with pytest.raises(RuleError, match=f"^{field.name} = ") as error:
            parse_rule({"name": kind.name, field.name: value})
        assert len(str(error.value)) < 200


def test_every_number_of_a_rule_declares_its_bounds():
    for name, kind in RULES.items():
        for field in described(kind).values():
            assert field.kind not in (int, float) or field.within, f"{name}: {field.name}"


def test_a_field_without_bounds_still_takes_no_number_that_nothing_can_hold():
    @dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
    class Mine(Rule):
        count: int = 1
        share: float = 0.5
        table: tuple[tuple[int, ...], ...] = ()

        def law(self, step):
            return step.target_probs

    with pytest.raises(RuleError, match=re.escape("count = 10^40 is out of range; use -9223")):
        Mine(count=10**40)
    with pytest.raises(RuleError, match="share = nan is not a number; use a number"):
        Mine(share=math.nan)
    assert Mine(share=2, table=((1, 2), (3,))).share == 2.0


@pytest.mark.parametrize(
    ("conditions", "says"),
    [
        (("overlap", "overlap"), "names one twice"),
        (("overlap",) * 50_000, "names one twice"),
        ("overlap", "is one text"),
        (5, "is one value"),
        ((["overlap"],), "is not known"),
        (("x" * 50_000,), "is not known"),
    ],
    ids=["twice", "often", "text", "number", "nested", "long"],
)
def test_conditions_that_are_none(conditions, says):
    for kind in (EASD, Gate):
        with pytest.raises(RuleError, match=f"^conditions = .*{says}") as error:
            kind(conditions=conditions)
        assert len(str(error.value)) < 300


def test_what_a_message_quotes_is_short_and_plain():
    assert shown(10**400) == "10^400"
    assert shown(-(10**6000)) == "-10^6000"
    assert shown("\x1b[2J\u202e") == "'\\x1b[2J\\u202e'"
    assert len(shown("x" * 10**6)) < 70
    assert len(shown([["x" * 1000] * 100] * 100)) < 2000
    assert one_line("a\nb\x1b\u202e") == "a b<U+001B><U+202E>"
    assert len(one_line("x" * 10**6)) < 1010


@pytest.mark.parametrize(
    ("tau_o", "top_n", "count"),
    [
        *((k / 5, 5, k) for k in range(6)),
        *((k * 0.2, 5, k) for k in range(6)),  # 3 * 0.2 > 0.6 in binary
        *((k / 10, 10, k) for k in range(11)),
        *((k / 7, 7, k) for k in range(8)),
        (0.01, 5, 1),
        (0.79, 5, 4),
        (0.81, 5, 5),
        (0.999, 5, 5),
        (0.5, 5, 3),
        (0.5, 1, 1),
        (1 / 3, 5, 2),
        (0.8, 100, 80),
    ],
)
def test_overlap_thresholds_are_counts(tau_o, top_n, count):
    assert Gate(tau_o=min(tau_o, 1.0), top_n=top_n).required_shared == count


def test_what_a_decoder_must_provide():
    assert not EASD().draft_at_bonus
    assert EASD(draft_at_bonus=True).draft_at_bonus
    assert EASD().needs_raw == "greedy"
    assert EASD(entropy_of="raw").needs_raw == "always"
    assert Speculative().needs_raw == "never"
    models = {"target": "target", "draft": "draft"}
    for name, kind in RULES.items():
        assert kind.models == models.get(name, "both")


def test_fly_overrules_a_refusal_only_before_a_window_that_passes():
    probs = torch.full((1, 5, 4), 0.25, dtype=torch.float64)
    draft = torch.zeros_like(probs).scatter_(-1, torch.tensor([0, 1, 2, 3, 0])[None, :, None], 1.0)
    # Refused with probability 3/4 at 0 and 3, sure to pass at 1 and 2.
    probs[:, 1:3] = draft[:, 1:3]
    step = Step(
        draft_tokens=torch.tensor([[0, 1, 2, 3]]),
        num_draft_tokens=torch.tensor([4]),
        draft_probs=draft,
        target_probs=probs,
    )

    def kept(tau_h, window):
        return FLy(tau_h=tau_h, window=window).published().judge(step).accept_prob

    assert kept(1.0, 2).tolist() == [
        [1.0, 1.0, 1.0, 0.25]
    ]  # behind the last one there is no window
    assert kept(2.0, 2).tolist() == [[0.25, 1.0, 1.0, 0.25]]
    assert kept(1.0, 3)[0, 0] == 0.25 + 0.75 * 0.25
    assert kept(1.0, 1024).tolist() == [[0.25, 1.0, 1.0, 0.25]]  # as any window past the block
    with pytest.raises(RuleError, match="no law per position"):
        FLy(window=2).law(step)


def test_a_fitted_pool_follows_the_draft_or_doubts_it():
    target = torch.tensor([[[0.5, 0.3, 0.2]]], dtype=torch.float64)
    draft = torch.tensor([[[0.6, 0.39, 0.01]]], dtype=torch.float64)
    step = Step(
        draft_tokens=torch.zeros(1, 0, dtype=torch.long),
        num_draft_tokens=torch.tensor([0]),
        draft_probs=draft,
        target_probs=target,
    )
    gate = {"tau_h": 0.0, "tau_o": 0.0, "draft_at_bonus": True}
    assert Pool(**gate).law(step).tolist() == [[[1, 0, 0]]]
    assert Pool(a=1, b=-0.5, **gate).law(step).argmax() == 2
    assert Pool(a=1, b=-0.5, plausible=0.5, **gate).law(step).argmax() == 0
    sampled = Pool(a=2, b=1, pick="sample", **gate).law(step)[0, 0]
    weights = target**2 * draft
    torch.testing.assert_close(sampled, (weights / weights.sum())[0, 0])


def test_default_couplings():
    published = {name for name in RULES if make_rule(name).default_coupling == "published"}
    assert published == {"easd", "random-refusal", "fly"}
    assert FLy(window=0).default_coupling == "maximal"


@pytest.mark.parametrize("given", ["easd", EASD, EASD()])
def test_a_rule_is_taken_by_name_class_or_as_it_is(given):
    assert Settings(rule=given).rule == EASD()
    assert Request(prompt=(1,), rule=given).rule == EASD()
    assert as_rule(given) == EASD()


@pytest.mark.parametrize("given", ["esad", 5, None, int])
def test_what_is_no_rule_lists_the_rules(given):
    with pytest.raises(RuleError, match="easd, speculative, target"):
        Settings(rule=given)


def test_an_unknown_field_lists_the_fields_everywhere():
    fields = ", ".join(field_names(EASD))
    for make in (lambda: EASD(tauh=1), lambda: make_rule("easd", tauh=1)):
        with pytest.raises(RuleError, match=f"no field 'tauh'; its fields are {fields}"):
            make()
    with pytest.raises(RuleError, match="Speculative has no field 'tau_h'; it has no fields"):
        Speculative(tau_h=1)
    assert pickle.loads(pickle.dumps(EASD(tau_h=1))) == copy.copy(EASD(tau_h=1)) == EASD(tau_h=1)


def one_position(target, draft, token):
    """A step of one draft token, whose two positions have these distributions."""
    row = {"draft_probs": [draft, draft], "target_probs": [target, target]}
    return Step(
        draft_tokens=torch.tensor([[token]]),
        num_draft_tokens=torch.tensor([1]),
        **{name: torch.tensor([values], dtype=torch.float64) for name, values in row.items()},
    )


def test_with_mu_zero_only_the_best_token_is_kept():
    """Of two best tokens both; the nearly best is refused."""
    gate = {"tau_h": 0.0, "tau_o": 0.0, "mu": 0.0}
    step = one_position([0.4, 0.4, 0.2], [0.2, 0.5, 0.3], 1)
    assert KeepNearTop(**gate).law(step)[0, 0].tolist() == pytest.approx([0.5, 0.5, 0.0])
    step = one_position([0.4, 0.4 - 1e-6, 0.2 + 1e-6], [0.2, 0.5, 0.3], 1)
    assert KeepNearTop(**gate).law(step)[0, 0].tolist() == [1.0, 0.0, 0.0]
    assert KeepNearTop(**gate | {"mu": 1e-3}).law(step)[0, 0].tolist() == pytest.approx(
        [0.5, 0.5, 0.0]
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_penalised_law_is_never_negative(dtype):
    """Where draft and target agree on one token, rounding alone is left for it."""
    generator = torch.Generator().manual_seed(0)
    for vocab in (2, 3, 50, 700):
        logits = torch.randn(200, 1, vocab, generator=generator, dtype=torch.float64) * 4
        probs = logits.softmax(-1).to(dtype)
        step = Step(
            draft_tokens=torch.zeros(200, 0, dtype=torch.long),
            num_draft_tokens=torch.zeros(200, dtype=torch.long),
            draft_probs=torch.nn.functional.one_hot(probs.argmax(-1), vocab).to(dtype),
            target_probs=probs,
        )
        law = RandomRefusal(rate=1, draft_at_bonus=True).law(step)
        assert (law >= 0).all()
        assert (law.gather(-1, probs.argmax(-1, keepdim=True)) < 1e-5).all()


def test_a_draft_token_that_the_target_cannot_write_is_replaced_by_fly():
    step = one_position([0.7, 0.3, 0.0], [0.5, 0.3, 0.2], 0)
    law = make_rule("fly", tau_h=0.1, window=0).law(step)
    assert law[0, 0].tolist() == pytest.approx([0.7, 0.3, 0.0])


def test_a_window_past_the_block_costs_nothing_and_is_the_block():
    step = one_position([0.25, 0.75], [1.0, 0.0], 0)
    for window in (1, 2, 1024):
        judged = FLy(tau_h=0.1, window=window).published().judge(step)
        assert judged.accept_prob.tolist() == [[0.25]]
    length, vocab = 8, 5
    probs = torch.full((64, length + 1, vocab), 1 / vocab)
    step = Step(
        draft_tokens=torch.zeros(64, length, dtype=torch.long),
        num_draft_tokens=torch.full((64,), length),
        draft_probs=probs,
        target_probs=probs,
    )
    with torch.profiler.profile(profile_memory=True) as profile:
        FLy(tau_h=0.1, window=1024).published().judge(step)
    largest = max(event.self_cpu_memory_usage for event in profile.key_averages())
    assert largest < 64 * (length + 1) * vocab * 8 * 8  # No tensor grows with the window.


def test_refusals_under_shared_noise_are_penalised_in_the_rules_proportion():
    """Of refusals at position 0: a share of penalty_prob / (1 - accept_prob), not all."""
    rows = 40_000
    probs = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
    draft = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    keys = torch.tensor([request_key(3, request) for request in range(rows)])
    noise = Noise(keys=keys, start=torch.full((rows,), 5), shared=True)
    at = torch.zeros(rows, 1, dtype=torch.long)
    step = Step(
        draft_tokens=race(draft.expand(rows, 1, -1), noise.draft(at, 4)),
        num_draft_tokens=torch.ones(rows, dtype=torch.long),
        draft_probs=draft.expand(rows, 2, -1),
        target_probs=probs.expand(rows, 2, -1),
    )
    for rate in (0.2, 0.6):
        rule = RandomRefusal(rate=rate)
        decision = verify(rule, step, noise, "shared")
        refused = decision.num_accepted == 0
        judged = decision.judgement
        share = (judged.penalty_prob / (1 - judged.accept_prob))[refused, 0]
        expected, count = share.mean().item(), int(refused.sum())
        found = decision.penalised[refused].double().mean().item()
        assert 0.05 < expected < 0.95
        z = abs(found - expected) / math.sqrt(expected * (1 - expected) / count)
        assert z < 4.5, f"{found:.3f} of refusals penalised, not {expected:.3f} (z {z:.1f})"
