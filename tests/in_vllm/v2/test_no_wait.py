"""What happens in a step never needs a value from the device on the host."""

import torch

from easd.core.rules import EASD, make_rule
from easd.integrations.vllm import worker_v2
from easd.integrations.vllm.batch import Batch
from easd.integrations.vllm.gate import Tally


def stock(target_logits, draft_logits, draft_sampled, cu_num_logits, pos, idx_mapping, *rest):
    shapes = (2, 4), (2,)
    return tuple(torch.empty(shape, dtype=torch.int64, device="meta") for shape in shapes)


def test_a_step_of_rules_runs_on_tensors_without_values():
    """Meta tensors have shapes only; reading a value or branching on one raises."""
    published = (EASD(tau_h=1.0).gate, EASD(tau_h=2.0, tau_o=0.4).gate)
    device = torch.device("meta")
    batch = Batch(
        published=published,
        laws=(make_rule("pool", draft_at_bonus=True), make_rule("mars")),
        rule_of=torch.empty(2, dtype=torch.int64, device=device),
        draft_temperature=0.7,
        redraws=torch.empty(2, dtype=torch.bool, device=device),
        tally=Tally(device),
    )
    slots = torch.empty(2, dtype=torch.int64, device=device)
    begins = torch.empty(3, dtype=torch.int32, device=device)
    tokens = torch.empty(8, dtype=torch.int64, device=device)
    token = worker_v2._rows.set(worker_v2.Rows(batch, any_greedy=True))
    try:
        worker_v2.gated(stock)(
            torch.empty(8, 300, device=device),
            torch.empty(5, 3, 300, dtype=torch.bfloat16, device=device),
            tokens,
            begins,
            tokens,
            slots,
            tokens,
            tokens,
            torch.empty(5, device=device),
        )
    finally:
        worker_v2._rows.reset(token)
