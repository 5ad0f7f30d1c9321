"""What happens in a step never needs a value from the device on the host."""

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from easd.core.rules import EASD
from easd.integrations.vllm import worker_v2
from easd.integrations.vllm.batch import Batch
from easd.integrations.vllm.gate import Tally


def stock(target_logits, draft_logits, draft_sampled, cu_num_logits, pos, idx_mapping, *rest):
    return torch.empty(2, 4, dtype=torch.int64), torch.empty(2, dtype=torch.int32)


def test_a_gated_step_runs_on_tensors_without_values():
    """Fake tensors have shapes only; reading a value or branching on one raises."""
    rules = (EASD(tau_h=1.0), EASD(tau_h=2.0, tau_o=0.4))
    with FakeTensorMode():
        tally = Tally(torch.device("cpu"))
        batch = Batch(rules=rules, rule_of=torch.empty(2, dtype=torch.int64), tally=tally)
        slots, begins = torch.empty(2, dtype=torch.int64), torch.empty(3, dtype=torch.int32)
        tokens = torch.empty(8, dtype=torch.int64)
        token = worker_v2._batch.set(batch)
        try:
            worker_v2.gated(stock)(
                torch.empty(8, 300),
                torch.empty(5, 3, 300, dtype=torch.bfloat16),
                tokens,
                begins,
                tokens,
                slots,
                tokens,
                tokens,
                torch.empty(5),
            )
        finally:
            worker_v2._batch.reset(token)
