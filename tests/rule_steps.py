"""Rules and steps that properties are tested on.

Examples are steps built from a drawn seed and a drawn shape: mixed batches of smooth, flat,
truncated and one-hot rows, greedy or not, with and without a draft at the bonus position. Rules
come with fields drawn too: what happens at the gate, what it looks at, and what it asks.
"""

from dataclasses import fields
from itertools import combinations, product

import pytest
import torch
from hypothesis import strategies as st

from easd.core.couplings import COUPLINGS, procedure
from easd.core.gate import ALL_CONDITIONS
from easd.core.noise import Noise, request_key
from easd.core.rules import EASD, RandomRefusal, make_rule, rule_names, rule_type
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
OWN["pool-everywhere"] = {"a": 1.3, "b": 0.7}
OWN["pool-by-gate"] = OPEN | {"a": 1.3, "b": 0.7, "open_b": -0.5}
OWN["fly"] = {"tau_h": 0.3, "window": 0}  # with a window there is no law per position


GATED = [name for name in rule_names() if issubclass(rule_type(name), EASD | RandomRefusal)]

every_rule = pytest.mark.parametrize("name", rule_names())
every_gated_rule = pytest.mark.parametrize("name", GATED)
every_coupling = pytest.mark.parametrize("coupling", COUPLINGS)
in_turn = pytest.mark.parametrize("coupling", ["maximal", "published"])
values = st.sampled_from(COMBINATIONS)
CONDITIONS = [asked for n in (1, 2, 3) for asked in combinations(ALL_CONDITIONS, n)]
looks = st.fixed_dictionaries(
    {"entropy_of": st.sampled_from(("sampling", "raw")), "conditions": st.sampled_from(CONDITIONS)}
)


def rule_of(name, values, looks=None):
    """The rule `name` with its own fields as in `OWN`, and those of its gate as drawn."""
    gate = looks if looks and issubclass(rule_type(name), EntropyGated) else {}
    return make_rule(name, **OWN[name] | gate | (values if name in GATED else {}))


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
