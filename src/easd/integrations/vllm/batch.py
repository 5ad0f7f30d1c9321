"""Which rule each row of a step follows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from easd.core.rules import EASD, Rule
from easd.integrations.vllm.gate import Tally
from easd.integrations.vllm.serving import Serving


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """The different rules of B rows, and where their steps are counted.

    Attributes:
        published: rules that are followed as published: an open gate excludes the draft token.
        laws: rules whose law takes the target's place.
        rule_of: int64 [B], each row's rule, `published` before `laws`; -1 where none.
        redraws: bool [B], rows whose law holds behind a whole block too; None where none does.
        tally: counts what happens.
    """

    published: tuple[EASD, ...]
    laws: tuple[Rule, ...]
    rule_of: Tensor
    redraws: Tensor | None
    tally: Tally

    @classmethod
    def of(
        cls, wanted: Sequence[Rule | None], serving: Serving, tally: Tally, device: torch.device
    ) -> Batch | None:
        """By each row's rule; None where no row has one. Does not wait for the device."""
        rules = tuple(dict.fromkeys(rule for rule in wanted if rule is not None))
        if not rules:
            return None
        published = tuple(rule for rule in rules if serving.as_published(rule))
        laws = tuple(rule for rule in rules if not serving.as_published(rule))
        index = {rule: number for number, rule in enumerate((*published, *laws))}
        redraws = [rule is not None and rule.draft_at_bonus for rule in wanted]
        return cls(
            published=published,  # type: ignore[arg-type]
            laws=laws,
            rule_of=on_device([-1 if rule is None else index[rule] for rule in wanted], device),
            redraws=on_device(redraws, device) if any(redraws) else None,
            tally=tally,
        )


def on_device(values: Sequence[int] | Sequence[bool], device: torch.device) -> Tensor:
    """Int64 or bool values, copied without making the host wait."""
    on_host = torch.tensor(values)
    if device.type == "cuda":
        on_host = on_host.pin_memory()
    return on_host.to(device, non_blocking=True)
