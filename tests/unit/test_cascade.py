"""Where cascades defer, against their definition in plain Python."""

import pytest
import torch

from easd.core.rules import make_rule
from easd.core.step import Step

VOCABULARY = 6


def step(seed):
    """Four rows of two draft tokens, and the bonus position."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 4, 3, VOCABULARY, generator=generator, dtype=torch.float64)
    draft, target = (logits * torch.tensor([3.0, 2.0])[:, None, None, None]).softmax(-1)
    draft[:, -1] = 0
    return Step(
        draft_tokens=draft[:, :-1].argmax(-1),
        num_draft_tokens=torch.full((4,), 2),
        draft_probs=draft,
        target_probs=target,
    )


def law(q, p, deferral, alpha):
    if deferral == "token":
        poor = [v for v in range(VOCABULARY) if p[v] < (1 - alpha) * max(p)]
        given = sum(q[v] for v in poor)
        return [(0 if v in poor else q[v]) + p[v] * given for v in range(VOCABULARY)]
    distance = sum(abs(x - y) for x, y in zip(p, q, strict=True)) / 2
    bound = {
        "chow": 1 - alpha,
        "diff": max(p) - alpha,
        "opt": max(p) - alpha * distance,
    }[deferral]
    return p if max(q) < bound else q


@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.3, 0.6])
@pytest.mark.parametrize("deferral", ["chow", "diff", "opt", "token"])
def test_the_law_is_its_definition(deferral, alpha):
    rule = make_rule("cascade", deferral=deferral, alpha=alpha)
    deferred = set()
    for seed in range(20):
        given = step(seed)
        found = rule.law(given)
        for row in range(4):
            for place in range(2):
                q = given.draft_probs[row, place].tolist()
                p = given.target_probs[row, place].tolist()
                assert found[row, place].tolist() == pytest.approx(law(q, p, deferral, alpha))
                deferred.add(found[row, place].tolist() == p)
        assert torch.equal(found[:, -1], given.target_probs[:, -1])
    if deferral != "token" and 0 < alpha < 0.6:
        assert deferred == {True, False}
