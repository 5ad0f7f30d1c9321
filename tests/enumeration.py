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
    colder = q**2 / (q**2).sum(-1, keepdim=True)
    yield (
        "proposed colder",
        Step(**blank(batch), draft_probs=q, target_probs=p, proposal_probs=colder, **raw(p, q)),
    )
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
    """Sum over draft tokens x of r(x) [accept(x) 1_x + penalty(x) R + reject(x) R'], [B, V]."""
    batch, positions, vocab_size = step.target_probs.shape
    chosen_by = procedure(rule, coupling)
    at = torch.full((batch,), position)
    total = torch.zeros(batch, vocab_size, dtype=torch.float64)
    if position == positions - 1:
        judgement = chosen_by.judge(step)
        return chosen_by.replacement(step, judgement, at, torch.zeros(batch, dtype=torch.bool))
    for token in range(vocab_size):
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
        total += step.proposal[:, position, token, None] * out
    return total


def check_law(rule, step: Step, couplings=("maximal", "published")) -> None:
    """Fails where the rule's law is no distribution, or not what accept and replace emit."""
    law = rule.law(step)
    assert (law >= 0).all()
    torch.testing.assert_close(law.sum(-1), torch.ones_like(law[..., 0]), atol=1e-12, rtol=0)
    if step.proposal_probs is not None:  # a published procedure draws from the draft itself
        couplings = [coupling for coupling in couplings if coupling != "published"]
    for coupling, position in product(couplings, range(K + 1)):
        error = (emitted(rule, step, position, coupling) - law[:, position]).abs().max().item()
        assert error < 1e-9, f"{coupling}, position {position}: law off by {error:.2e}"


def with_blocks(step: Step) -> Step:
    """The step with every block of draft tokens in turn, block after block: [V^K * B, ...]."""
    blocks = torch.tensor(list(product(range(V), repeat=K)))
    batch = step.target_probs.shape[0]

    def each(values):
        return None if values is None else values.repeat(len(blocks), *[1] * (values.ndim - 1))

    kept = {name: each(getattr(step, name)) for name in Step.__dataclass_fields__}
    return Step(**kept | {"draft_tokens": blocks.repeat_interleave(batch, 0)})


def check_blocks(rule, step: Step, chosen_by=None) -> None:
    """Fails where a block that is verified jointly does not emit the law, position by position.

    With x the first i tokens of the block, P(x drafted, all kept, y behind them) must be r(x) w(x)
    law(y), whether y is drafted and kept or replaces what was; w(x) = P(x kept | x drafted) is
    min(1, w(before) law / proposal), and 1 for none.
    """
    chosen_by = chosen_by or procedure(rule, "block")
    batch, counts = step.target_probs.shape[0], step.num_draft_tokens
    law = rule.law(step).view(1, batch, K + 1, V)
    every = with_blocks(step)
    judged = chosen_by.judge(every)
    passes = judged.accept_prob.view(-1, batch, K)
    assert (passes >= 0).all()
    assert (passes <= 1 + 1e-12).all()
    assert not passes[:, torch.arange(K) >= counts[:, None]].any()
    last_kept = torch.cat([torch.ones_like(passes[..., :1]), passes], -1)
    none_later = torch.cat([(1 - passes).flip(-1).cumprod(-1).flip(-1), passes[..., :1] * 0 + 1], 2)
    ends_at = last_kept * none_later  # [blocks, B, K+1]: P(the first i are kept, and no more)
    tokens = every.draft_tokens.view(-1, batch, K)
    at_tokens = tokens[..., None]
    proposed = (
        step.proposal[None, :, :K].expand(len(tokens), -1, -1, -1).gather(3, at_tokens)[..., 0]
    )
    wanted = law[:, :, :K].expand(len(tokens), -1, -1, -1).gather(3, at_tokens)[..., 0]
    drafted = torch.where(torch.arange(K) < counts[:, None], proposed, 1 / V).prod(-1)
    weight = torch.ones(len(tokens), batch, dtype=law.dtype)
    for place in range(K + 1):
        here = place <= counts
        at = torch.full((len(tokens) * batch,), place)
        after = chosen_by.replacement(every, judged, at, at < 0).view(-1, batch, V)
        found = torch.where(ends_at[..., place, None] > 0, ends_at[..., place, None] * after, 0.0)
        if place < K:
            kept = ends_at[..., place + 1 :].sum(-1)
            found = found + torch.nn.functional.one_hot(tokens[..., place], V) * kept[..., None]
        # Sum over what is drafted behind the first `place` tokens.
        summed = (found * drafted[..., None]).view(V**place, -1, batch, V).sum(1)
        prefix = (drafted * weight).view(V**place, -1, batch).sum(1)
        expected = prefix[..., None] * law[:, :, place]
        error = ((summed - expected) * here[:, None]).abs().max().item()
        assert error < 1e-9, f"block, behind {place} tokens: law off by {error:.2e}"
        if place < K:
            ratio = (wanted / proposed.clamp_min(1e-300))[..., place]
            weight = (weight * ratio).clamp_max(1.0)


def every_eighth(step: Step) -> Step:
    """Every eighth of the step's rows."""
    values = {name: getattr(step, name) for name in Step.__dataclass_fields__}
    return Step(**{name: None if v is None else v[::8] for name, v in values.items()})


def expected_kept(rule, step: Step, coupling) -> torch.Tensor:
    """How many draft tokens of a block are kept on average, [B]."""
    batch, every = step.target_probs.shape[0], with_blocks(step)
    passes = procedure(rule, coupling).judge(every).accept_prob.view(-1, batch, K)
    proposal = step.proposal[None, :, :K].expand(len(passes), -1, -1, -1)
    tokens = every.draft_tokens.view(-1, batch, K, 1)
    drafted = proposal.gather(3, tokens)[..., 0].prod(-1)
    if coupling == "block":
        # At least i are kept unless all from the i-th on fail.
        at_least = 1 - (1 - passes).flip(-1).cumprod(-1).flip(-1)
    else:
        at_least = passes.cumprod(-1)
    return (drafted * at_least.sum(-1)).sum(0)
