"""Which rule each row of a step follows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from easd.core.rules import EASD
from easd.integrations.vllm.gate import Tally


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """The different rules of B rows, and where their steps are counted."""

    rules: tuple[EASD, ...]
    rule_of: Tensor  # int64 [B], -1 where none
    tally: Tally

    @classmethod
    def of(cls, wanted: Sequence[EASD | None], tally: Tally, device: torch.device) -> Batch | None:
        """By each row's rule; None where no row has one. Does not wait for the device."""
        rules = tuple(dict.fromkeys(rule for rule in wanted if rule is not None))
        if not rules:
            return None
        index = {rule: number for number, rule in enumerate(rules)}
        on_host = torch.tensor([-1 if rule is None else index[rule] for rule in wanted])
        if device.type == "cuda":
            on_host = on_host.pin_memory()
        return cls(rules=rules, rule_of=on_host.to(device, non_blocking=True), tally=tally)
