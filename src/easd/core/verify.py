"""The only place where a rule meets randomness, and the randomness is an argument."""

from __future__ import annotations

import torch
from torch import Tensor

from easd.core.noise import Noise, race
from easd.core.types import Decision, Rule, Step


def verify(rule: Rule, step: Step, noise: Noise) -> Decision:
    """Decides one step; no branch on data, so it compiles into one graph.

    With independent noise the rule accepts and replaces as it says. With shared noise the emitted
    token at each position is the law's own sample and a draft token is kept where it equals that
    sample, so the text is a function of the prompt, the seed and the law alone.
    """
    length = step.draft_tokens.shape[1]
    judgement = rule.judge(step)
    uniforms = noise.accept(length)
    drafted = torch.arange(length, device=uniforms.device) < step.num_draft_tokens[:, None]

    if noise.coupling == "shared":
        law = rule.law(step)
        every = torch.arange(length + 1, device=uniforms.device).expand(law.shape[0], -1)
        wanted = race(law, noise.emit(every, law.shape[-1]))
        num_accepted = _leading((wanted[:, :length] == step.draft_tokens) & drafted)
        # Coupled this way a refusal has no acceptance test of its own to tell a penalty from a
        # rejection; the uniform splits it in the rule's proportion.
        uniforms = judgement.accept_prob + uniforms * (1 - judgement.accept_prob)
    else:
        num_accepted = _leading((uniforms < judgement.accept_prob) & drafted)

    penalty = uniforms < judgement.accept_prob + judgement.penalty_prob
    penalised = _at(penalty, num_accepted) & ~step.is_bonus(num_accepted)
    if noise.coupling == "shared":
        next_token = _at(wanted, num_accepted)
    else:
        probs = rule.replacement(step, judgement, num_accepted, penalised)
        next_token = race(probs, noise.emit(num_accepted, probs.shape[-1]))
    return Decision(
        num_accepted=num_accepted,
        next_token=next_token,
        penalised=penalised,
        judgement=judgement,
    )


def _leading(accepted: Tensor) -> Tensor:
    """How many leading entries of each row are true; bool [B, K] -> int64 [B]."""
    return accepted.long().cumprod(1).sum(1)


def _at(values: Tensor, at: Tensor) -> Tensor:
    """values[b, at[b]], and any value where `at` is past the end; [B, k] -> [B]."""
    if values.shape[1] == 0:
        return torch.zeros_like(at, dtype=values.dtype)
    return values.gather(1, at.clamp_max(values.shape[1] - 1)[:, None])[:, 0]
