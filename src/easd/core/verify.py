"""The only place where rule, coupling and randomness meet; randomness is an argument."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from easd.core.couplings import Coupling, HasLaw, Procedure, procedure
from easd.core.noise import Noise
from easd.core.rules.base import Rule
from easd.core.scope import Scoped
from easd.core.step import Decision, Judgement, Step


def verify(rule: Rule, step: Step, noise: Noise, coupling: Coupling | None = None) -> Decision:
    """Decides one step, without a branch on data when compiled or on a GPU.

    Args:
        rule: its law is the output distribution.
        step: B rows of K draft tokens with the distributions of both models.
        noise: must be `shared` exactly if the coupling is, and have `fresh` for the coupling block.
        coupling: the rule's default unless given.
    """
    coupling = coupling or rule.default_coupling
    assert noise.shared == (coupling == "shared"), "drafts and replacements must share noise"
    assert coupling != "block" or noise.fresh is not None, "the coupling block needs fresh noise"
    scoped = rule if step.in_scope is None else Scoped(rule)
    chosen = procedure(scoped, coupling)
    judgement = chosen.judge(step)
    if coupling == "shared":
        num_accepted, next_token, penalised = _shared(scoped, step, judgement, noise)
    else:
        kept = _last if coupling == "block" else _leading
        num_accepted, next_token, penalised = _test_drafts(chosen, step, judgement, noise, kept)
    return Decision(
        num_accepted=num_accepted,
        next_token=next_token,
        penalised=penalised,
        judgement=judgement,
    )


def _test_drafts(
    chosen: Procedure,
    step: Step,
    judgement: Judgement,
    noise: Noise,
    kept: Callable[[Tensor], Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    """Tests each draft token with its own uniform number; `kept` counts the accepted ones."""
    uniforms = noise.accept(step.draft_tokens.shape[1])
    num_accepted = kept((uniforms < judgement.accept_prob) & step.has_draft()[:, :-1])
    penalised = _first_refusal_is_penalty(uniforms, step, judgement, num_accepted)
    probs = chosen.replacement(step, judgement, num_accepted, penalised)
    return num_accepted, noise.emitted(probs, num_accepted), penalised


def _shared(
    rule: HasLaw, step: Step, judgement: Judgement, noise: Noise
) -> tuple[Tensor, Tensor, Tensor]:
    """Samples the law at every position and accepts draft tokens up to the first that differs."""
    law = rule.law_given(step, judgement.signals)
    batch, positions, _ = law.shape
    every = torch.arange(positions, device=law.device).expand(batch, -1)
    wanted = noise.emitted(law, every)
    num_accepted = _leading((wanted[:, :-1] == step.draft_tokens) & step.has_draft()[:, :-1])
    # No acceptance test tells a penalty from a rejection here, so a uniform number over the rest of
    # the acceptance probability splits refusals in the rule's proportion.
    uniforms = torch.lerp(
        judgement.accept_prob,
        torch.ones_like(judgement.accept_prob),
        noise.accept(positions - 1).to(judgement.accept_prob.dtype),
    )
    penalised = _first_refusal_is_penalty(uniforms, step, judgement, num_accepted)
    return num_accepted, _at(wanted, num_accepted), penalised


def _first_refusal_is_penalty(
    uniforms: Tensor, step: Step, judgement: Judgement, num_accepted: Tensor
) -> Tensor:
    penalty = uniforms < judgement.accept_prob + judgement.penalty_prob
    return _at(penalty, num_accepted) & ~step.is_bonus(num_accepted)


def _leading(accepted: Tensor) -> Tensor:
    """How many leading entries of each row are true; bool [B, K] -> int64 [B]."""
    return accepted.long().cumprod(1).sum(1)


def _last(accepted: Tensor) -> Tensor:
    """One-based index of each row's last true entry, or 0; bool [B, K] -> int64 [B]."""
    indices = torch.arange(1, accepted.shape[1] + 1, device=accepted.device)
    return (accepted * indices).amax(1) if len(indices) else accepted.sum(1)


def _at(values: Tensor, at: Tensor) -> Tensor:
    """values[b, at[b]], and any value where `at` is past the end; [B, k] -> [B]."""
    if values.shape[1] == 0:
        return torch.zeros_like(at, dtype=values.dtype)
    return values.gather(1, at.clamp_max(values.shape[1] - 1)[:, None])[:, 0]
