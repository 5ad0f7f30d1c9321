"""Forecasts of an evaluation: its texts, and an upper bound of its tokens and hours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from easd.speed.plan.cost_model import CostModel
from easd.speed.plan.forecast import Acceptance

_PROMPT = 256  # Tokens, typical of reasoning problems.


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSize:
    """A task's texts of one system.

    Attributes:
        texts: items times seeds.
        most_tokens: in a text.
    """

    name: str
    texts: int
    most_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoding:
    """How every system decodes."""

    batch: int
    gamma: int
    acceptance: Acceptance


def most_hours(costs: CostModel, rule: str, tasks: Sequence[TaskSize], how: Decoding) -> float:
    """Returns hours of a system if each of its texts is as long as it may be.

    Args:
        costs: of target and draft on a machine.
        rule: its name; `rsd` is counted as if the target rewrote every step.
        tasks: what is decoded.
        how: batch size, gamma and acceptance rate.
    """
    assert costs.draft is not None, "a preset compares two models"
    alone = {"target": [costs.target], "draft": [costs.draft], "rsd": [costs.draft, costs.target]}
    seconds = 0.0
    for task in tasks:
        steps = task.texts * task.most_tokens / how.batch
        context = _PROMPT + task.most_tokens // 2
        if rule in alone:
            for model in alone[rule]:
                own = replace(costs, target=model, draft=None)
                seconds += steps * own.step_seconds(how.batch, 0, context)
        else:
            a_step = costs.step_seconds(how.batch, how.gamma, context)
            seconds += steps * a_step / how.acceptance.emitted(how.gamma)
    return seconds / 3600


def devices_for(costs: CostModel, tasks: Sequence[TaskSize], how: Decoding) -> int | None:
    """Returns how many such devices the longest texts of a batch need; None where none suffice."""
    longest = _PROMPT + max(task.most_tokens for task in tasks)
    return costs.devices_needed(how.batch, how.gamma, longest)
