"""What a V2 engine's sampler was given and what it made of it, step by step."""

from contextlib import contextmanager

import torch
from in_vllm.observed import Verified
from vllm.v1.worker.gpu.spec_decode import rejection_sampler


@contextmanager
def verifications(engine):
    """Collects the steps in which the engine verifies drafts."""
    runner = engine.llm_engine.model_executor.driver_worker.worker.model_runner
    inner, seen = rejection_sampler.rejection_sample, []

    def rejection_sample(target, draft, tokens, cumulative, pos, slots, *args, **kwargs):
        drafts = []  # (row of the target's logits, slot, position)
        for row, slot in enumerate(slots.tolist()):
            start, end = cumulative[row : row + 2].tolist()
            drafts += [(start + k, slot, k) for k in range(end - start - 1)]
        if not drafts:  # prompts only
            return inner(target, draft, tokens, cumulative, pos, slots, *args, **kwargs)
        at, slot, position = torch.tensor(drafts).unbind(-1)
        temperature = args[2]
        divisor = torch.where(temperature == 0, 1.0, temperature)[slot, None]
        names = [runner.req_states.index_to_req_id[slot] for slot in slots.tolist()]
        before = {
            "counts": cumulative.diff().long() - 1,
            "draft_tokens": tokens[at + 1],
            "draft_probs": (draft[slot, position] / divisor).softmax(-1),
            "target_logits": target[at],
            "greedy": temperature[slots] == 0,
        }
        whole = target.clone()
        output, kept = inner(target, draft, tokens, cumulative, pos, slots, *args, **kwargs)
        assert torch.equal(target, whole)  # log-probabilities are taken from it
        behind = torch.arange(output.shape[1], device=output.device) >= kept[:, None]
        values = {**before, "output": output.masked_fill(behind, -1)}
        seen.append(Verified(requests=names, **{name: each.cpu() for name, each in values.items()}))
        return output, kept

    rejection_sampler.rejection_sample = rejection_sample
    try:
        yield seen
    finally:
        rejection_sampler.rejection_sample = inner
