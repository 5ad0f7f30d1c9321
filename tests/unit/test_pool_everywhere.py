"""What the pool at every position costs and refuses; its law is checked in tests/laws."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from easd.core.couplings import procedure
from easd.core.rules import EASD, make_rule
from easd.core.rules.pool_everywhere import PoolByGate, PoolEverywhere
from easd.core.step import Step
from easd.engine.settings import Settings
from easd.errors import ConfigError, RuleError

B, K, V = 2, 3, 40_000  # Several slices, the last one short.


class WholeRows(TorchDispatchMode):
    """Counts tensors of B x K x V entries or more that calls return in memory of their own."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        each = found if isinstance(found, tuple | list) else [found]
        given = {a.untyped_storage().data_ptr() for a in args if isinstance(a, torch.Tensor)}
        for tensor in each:
            if isinstance(tensor, torch.Tensor):
                own = tensor.untyped_storage().data_ptr() not in given
                self.count += own and tensor.numel() >= B * K * V
        return found


def wide(*, greedy):
    generator = torch.Generator().manual_seed(0)
    p, q = (torch.randn(B, K + 1, V, generator=generator).mul_(3).softmax(-1) for _ in range(2))
    return Step(
        draft_tokens=torch.full((B, K), V - 1),
        num_draft_tokens=torch.full((B,), K),
        draft_probs=q,
        target_probs=p,
        raw_draft_probs=q if greedy else None,
        raw_target_probs=p if greedy else None,
        greedy=torch.ones(B, dtype=torch.bool) if greedy else None,
    )


def rows_made(rule, step):
    """Whole tables made by judging a block and replacing one token of each row."""
    with WholeRows() as made:
        chosen = procedure(rule, "maximal")
        judged = chosen.judge(step)
        at = torch.tensor([1, K])
        chosen.replacement(step, judged, at, at < 0)
    return made.count


@pytest.mark.parametrize("greedy", [False, True], ids=["sampled", "greedy"])
@pytest.mark.parametrize("rule", [PoolEverywhere(b=0.5), PoolByGate(b=0.5, open_b=-0.5)], ids=str)
def test_no_table_over_the_vocabulary_beyond_easds(rule, greedy):
    step = wide(greedy=greedy)
    assert rows_made(rule, step) <= rows_made(EASD(), step)
    assert rows_made(make_rule("keep-near-top", tau_h=0.0, tau_o=0.0), step) > 0  # It sees some.


def test_slices_make_no_difference():
    for greedy in (False, True):
        step = wide(greedy=greedy)
        rule = PoolEverywhere(a=1.4, b=-0.8, plausible=0.0)
        best = step.target_probs.argmax(-1, keepdim=True)
        tokens = torch.cat([best, torch.arange(4).expand(B, K + 1, 4) * 10_000], -1)
        whole = rule.law(step).gather(-1, tokens)
        torch.testing.assert_close(rule.law_of(step, tokens, {}), whole, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("name", ["pool-everywhere", "pool-by-gate"])
def test_prompt_lookup_is_refused(name):
    with pytest.raises(ConfigError, match=f"{name}.*opinion.*drafter = model"):
        Settings(rule=make_rule(name), drafter="prompt-lookup")


def test_powers_have_bounds():
    with pytest.raises(RuleError, match="b = inf"):
        PoolEverywhere(b=math.inf)


def test_the_law_of_many_tokens_is_the_powers_product():
    """Against the formula written out, at a temperature of 1."""
    step = wide(greedy=False)
    p, q = step.target_probs.double(), step.draft_probs.double()
    wanted = p**1.2 * q.clamp_min(1e-6) ** 0.4 * (p >= 0.1 * p.amax(-1, keepdim=True))
    law = PoolEverywhere(a=1.2, b=0.4).law(step).double()
    torch.testing.assert_close(law, wanted / wanted.sum(-1, keepdim=True), atol=1e-6, rtol=1e-3)
