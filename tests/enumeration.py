"""What a rule really emits, by summing over every draft token of a small vocabulary."""

from itertools import product

import torch

from easd.core.couplings import procedure
from easd.core.step import Step

V, K = 6, 3


def distributions(batch: int, *, seed: int = 0, truncate: bool = False) -> torch.Tensor:
    torch.manual_seed(seed)
    concentration = torch.logspace(-1, 1.3, batch, dtype=torch.float64)[:, None, None]
    probs = torch.distributions.Dirichlet(concentration.expand(batch, K + 1, V)).sample()
    if truncate:
        probs = probs * (probs >= probs.topk(2, dim=-1).values[..., 1:])
        probs = probs / probs.sum(-1, keepdim=True)
    return probs


def steps():
    batch = 40
    p, q = distributions(batch, seed=1), distributions(batch, seed=2)
    yield "unlike", Step(**blank(batch), draft_probs=q, target_probs=p, **raw(p, q))
    close = 0.9 * p + 0.1 * q
    yield "alike", Step(**blank(batch), draft_probs=close, target_probs=p, **raw(p, close))
    cut_p, cut_q = (distributions(batch, seed=s, truncate=True) for s in (3, 4))
    yield "truncated", Step(**blank(batch), draft_probs=cut_q, target_probs=cut_p, **raw(p, q))
    unseen = q.clone()
    unseen[:, K] = 0
    yield "no bonus draft", Step(**blank(batch), draft_probs=unseen, target_probs=p, **raw(p, q))
    certain_p, certain_q = one_hot_of(p), one_hot_of(q)
    yield (
        "greedy",
        Step(
            **blank(batch),
            draft_probs=certain_q,
            target_probs=certain_p,
            greedy=torch.ones(batch, dtype=torch.bool),
            **raw(p, close),
        ),
    )


def blank(batch):
    return {
        "draft_tokens": torch.zeros(batch, K, dtype=torch.long),
        "num_draft_tokens": torch.full((batch,), K),
    }


def raw(p, q):
    return {"raw_target_probs": p, "raw_draft_probs": q}


def one_hot_of(probs):
    return torch.nn.functional.one_hot(probs.argmax(-1), V).double()


def with_tokens(step: Step, token: int) -> Step:
    tokens = torch.full_like(step.draft_tokens, token)
    kept = {name: getattr(step, name) for name in Step.__dataclass_fields__}
    return Step(**kept | {"draft_tokens": tokens})


def emitted(rule, step: Step, position: int, coupling="maximal") -> torch.Tensor:
    """Sum over draft tokens x of q(x) [accept(x) 1_x + penalty(x) R + reject(x) R'], [B, V]."""
    batch = step.target_probs.shape[0]
    chosen_by = procedure(rule, coupling)
    at = torch.full((batch,), position)
    total = torch.zeros(batch, V, dtype=torch.float64)
    if position == K:
        judgement = chosen_by.judge(step)
        return chosen_by.replacement(step, judgement, at, torch.zeros(batch, dtype=torch.bool))
    for token in range(V):
        chosen = with_tokens(step, token)
        judgement = chosen_by.judge(chosen)
        accept = judgement.accept_prob[:, position]
        penalty = judgement.penalty_prob[:, position]
        reject = 1 - accept - penalty
        assert (accept >= 0).all()
        assert (penalty >= 0).all()
        assert (reject > -1e-12).all()
        out = torch.zeros_like(total)
        out[:, token] = accept
        for weight, penalised in ((penalty, True), (reject, False)):
            flag = torch.full((batch,), penalised)
            out += weight[:, None] * chosen_by.replacement(chosen, judgement, at, flag)
        total += step.draft_probs[:, position, token, None] * out
    return total


def check_law(rule, step: Step, couplings=("maximal", "published")) -> None:
    """Fails where the rule's law is no distribution, or not what accept and replace emit."""
    law = rule.law(step)
    assert (law >= 0).all()
    torch.testing.assert_close(law.sum(-1), torch.ones_like(law[..., 0]), atol=1e-12, rtol=0)
    for coupling, position in product(couplings, range(K + 1)):
        error = (emitted(rule, step, position, coupling) - law[:, position]).abs().max().item()
        assert error < 1e-9, f"{coupling}, position {position}: law off by {error:.2e}"
