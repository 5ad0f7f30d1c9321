"""The rules of a step's rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from easd.core.gate import Gate
from easd.core.rules import EASD, Rule
from easd.integrations.vllm.gate import Tally
from easd.integrations.vllm.serving import Serving


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """The different rules of B rows, and the tally of their steps.

    Attributes:
        published: the gates of rules that are followed as published: an open gate excludes the
            draft token.
        laws: rules whose law takes the target's place.
        rule_of: int64 [B], index of each row's rule in `published` + `laws`; -1 without a rule.
        draft_temperature: what drafts of sampled rows are drawn at; None for the row's temperature.
        redraws: bool [B], rows whose law also holds after a whole block; None where none does.
    """

    published: tuple[Gate, ...]
    laws: tuple[Rule, ...]
    rule_of: Tensor
    draft_temperature: float | None
    redraws: Tensor | None
    tally: Tally

    @property
    def has_rules(self) -> bool:
        """Whether any row has a rule."""
        return bool(self.published or self.laws)

    @classmethod
    def of(
        cls, wanted: Sequence[Rule | None], serving: Serving, tally: Tally, device: torch.device
    ) -> Batch | None:
        """Groups the rows' rules without waiting for the device.

        Returns None where no row has one and drafts are drawn as in vLLM.
        """
        rules = tuple(dict.fromkeys(rule for rule in wanted if rule is not None))
        if not rules and serving.draft_temperature is None:
            return None
        published = tuple(
            rule for rule in rules if isinstance(rule, EASD) and serving.as_published(rule)
        )
        laws = tuple(rule for rule in rules if not serving.as_published(rule))
        index = {rule: number for number, rule in enumerate((*published, *laws))}
        redraws = [rule is not None and rule.draft_at_bonus for rule in wanted]
        return cls(
            published=tuple(rule.gate for rule in published),
            laws=laws,
            rule_of=on_device([-1 if rule is None else index[rule] for rule in wanted], device),
            draft_temperature=serving.draft_temperature,
            redraws=on_device(redraws, device) if any(redraws) else None,
            tally=tally,
        )


def on_device(values: Sequence[int] | Sequence[bool], device: torch.device) -> Tensor:
    """Copies int64 or bool values to a device without waiting for it."""
    on_host = torch.tensor(values)
    if device.type == "cuda":
        on_host = on_host.pin_memory()
    return on_host.to(device, non_blocking=True)
