"""Decoding by any rule's law with vLLM's stock kernels for rejection sampling.

With the logarithm of a law in the place of the target's logits, those kernels couple the draft to
that law: token by token, or a block as a whole where vLLM is configured so. The token behind a
whole accepted block is still drawn from the target, since the draft was not evaluated there. For a
rule with a law there too (`draft_at_bonus`), the last draft token is always replaced, so that a
block ends with a token of the law and vLLM's bonus token is never drawn.

Shapes as in `gate`: N draft tokens of all rows one after another, V the vocabulary. No function
waits for the device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache, reduce
from operator import or_
from typing import Any

import torch
from torch import Tensor

from easd.core.gate import ALL_CONDITIONS, SIGNALS, Gate
from easd.core.rules import Rule
from easd.core.rules.gated import EntropyGated, GatedRule, on_host
from easd.core.signals import most_probable
from easd.core.step import Step
from easd.integrations.vllm.gate import Gates, light, light_signals


def log_laws(
    rules: Sequence[Rule],
    first: int,
    rule_of: Tensor,
    draft_probs: Tensor,
    target_logits: Tensor,
    greedy: Tensor | None,
) -> tuple[Tensor, Gates]:
    """Returns logits [N, V] of each draft token's law, and the state of the rules' gates.

    Args:
        rules: the different rules, of numbers `first`, `first` + 1, ...
        rule_of: int64 [N], the number of each draft token's rule; tokens of other rules keep the
            target's logits.
        draft_probs: [N, V], what the tokens were drawn from.
        target_logits: [N, V] after all processors and the temperature.
        greedy: bool [N], tokens of greedy requests, whose probabilities are at temperature 1; None
            where there are none.
    """
    step = _step(draft_probs, target_logits.softmax(-1, dtype=torch.float32), greedy)
    found: list[Gates] = []
    for number, rule in enumerate(rules, first):
        here = rule_of == number
        signals = _signals(rule, step)
        if on_host(target_logits):
            target_logits = _with_law_on_host(rule, step, signals, here, target_logits)
        else:
            law = rule.law_given(step, signals)[:, 0]
            target_logits = torch.where(here[:, None], law.log(), target_logits)
        found.append(_gates(rule, signals, here))
    return target_logits, reduce(or_, found)


def _signals(rule: Rule, step: Step) -> Mapping[str, Tensor]:
    """Returns the rule's signals. Where they are counted anyway, all are measured at once."""
    if not isinstance(rule, EntropyGated) or not on_host(step.target_probs):
        return rule.signals(step)
    draft_probs, target_probs = (probs[:, 0] for probs in rule.gate_probs(step))
    arrays = light_signals(draft_probs, target_probs, rule.top_n)
    measured = {
        **arrays,
        "gate": _gate_of(rule).opens(arrays).astype(arrays["draft_entropy"].dtype),
    }
    return {name: torch.from_numpy(values)[:, None] for name, values in measured.items()}


@lru_cache(maxsize=1024)
def _gate_of(rule: EntropyGated) -> Gate:
    """Caches a rule's gate, whose fields are checked when it is made."""
    return rule.gate


def _with_law_on_host(
    rule: Rule, step: Step, signals: Mapping[str, Tensor], here: Tensor, target_logits: Tensor
) -> Tensor:
    """Returns `target_logits` with the logarithm of the rule's law at its tokens.

    The law is computed only where it may differ from the target's distribution.
    """
    if isinstance(rule, GatedRule) and rule.closed_law(step) is step.target_probs:
        opened = signals["gate"][:, 0] > 0
        # Greedy tokens keep a law that is certain of one token.
        here = here & (opened if step.greedy is None else opened | step.greedy)
    (rows,) = here.nonzero(as_tuple=True)
    if not len(rows):
        return target_logits
    if len(rows) == len(here):
        return rule.law_given(step, signals)[:, 0].log()
    part = {name: values[rows] for name, values in signals.items()}
    law = rule.law_given(step.at(rows, torch.zeros_like(rows)), part)[:, 0]
    return target_logits.index_put((rows,), law.log())


def _gates(rule: Rule, signals: Mapping[str, Tensor], here: Tensor) -> Gates:
    """Returns the state of a rule's gate at its tokens; a rule without a gate has it closed."""
    asked: Any = light(here)
    if not isinstance(rule, EntropyGated):
        never = light(torch.zeros_like(here))
        return Gates(asked=asked, met=dict.fromkeys(ALL_CONDITIONS, never), open=never)
    values: dict[str, Any] = {name: light(signals[name][:, 0]) for name in (*SIGNALS, "gate")}
    return Gates(asked=asked, met=_gate_of(rule).met(values), open=asked & (values["gate"] > 0))


def last_drafts(num_draft_tokens: Any, wanted: Any, row: Any, position: Any) -> Any:
    """Returns which draft tokens are the last of a `wanted` row; bool [N].

    Args:
        num_draft_tokens: int64 [B].
        wanted: bool [B].
        row, position: int64 [N], of each draft token.

    All are tensors, or all are arrays of NumPy.
    """
    return wanted[row] & (position == num_draft_tokens[row] - 1)


def _step(draft_probs: Tensor, target_probs: Tensor, greedy: Tensor | None) -> Step:
    """Returns N rows of one position each, without draft tokens, which a law does not depend on."""
    total, device = draft_probs.shape[0], draft_probs.device
    draft, target = draft_probs[:, None].to(target_probs.dtype), target_probs[:, None]
    sampled_draft, sampled_target = draft, target
    if greedy is not None:
        rows = greedy[:, None, None]
        sampled_draft = torch.where(rows, most_probable(draft), draft)
        sampled_target = torch.where(rows, most_probable(target), target)
    return Step(
        draft_tokens=torch.zeros(total, 0, dtype=torch.int64, device=device),
        num_draft_tokens=torch.zeros(total, dtype=torch.int64, device=device),
        draft_probs=sampled_draft,
        target_probs=sampled_target,
        raw_draft_probs=draft,
        raw_target_probs=target,
        greedy=greedy,
        drafted=torch.ones(total, 1, dtype=torch.bool, device=device),
    )
