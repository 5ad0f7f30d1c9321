"""What a vLLM engine's sampler was given and what it made of it, step by step."""

from contextlib import contextmanager
from dataclasses import dataclass

import torch
from vllm import SamplingParams
from vllm.v1.sample import rejection_sampler

from easd.core.step import Step
from easd.integrations.vllm.gate import rows_of

PROMPTS = [[3, 5, 7, 9], [10, 12], [21], [4, 44, 64, 2, 13]]


@dataclass(frozen=True, kw_only=True)
class Verified:
    """One call of `rejection_sample`, its arguments as they were before it."""

    requests: list[str]
    counts: torch.Tensor  # int64 [B]
    draft_tokens: torch.Tensor  # [N]
    draft_probs: torch.Tensor  # [N, V]
    target_logits: torch.Tensor  # [N, V]
    greedy: torch.Tensor  # bool [B]
    output: torch.Tensor  # [B, K+1], -1 behind the end
    judged: torch.Tensor | None = None  # [N, V], the logits that took the target's place

    def step(self):
        """The step that easd's engine would have verified, and where each draft token lies."""
        total, vocab = self.draft_probs.shape
        rows, longest = len(self.counts), int(self.counts.max())
        row, position = rows_of(self.counts, total)
        tokens = torch.zeros(rows, longest, dtype=torch.int64)
        draft = torch.zeros(rows, longest + 1, vocab)
        target = torch.full((rows, longest + 1, vocab), 1 / vocab)
        tokens[row, position] = self.draft_tokens.long()
        draft[row, position] = self.draft_probs
        target[row, position] = self.target_logits.softmax(-1)
        step = Step(
            draft_tokens=tokens,
            num_draft_tokens=self.counts,
            draft_probs=draft,
            target_probs=target,
            raw_draft_probs=draft,
            raw_target_probs=target,
            greedy=self.greedy,
        )
        return step, row, position


@contextmanager
def verifications(engine):
    """Collects the steps in which the engine verifies drafts."""
    runner = engine.llm_engine.model_executor.driver_worker.worker.model_runner
    inner, seen = rejection_sampler.rejection_sample, []

    def rejection_sample(tokens, counts, longest, cumulative, draft, target, bonus, sampling, **kw):
        before = (tokens.clone(), None if draft is None else draft.clone(), target.clone())
        output = inner(tokens, counts, longest, cumulative, draft, target, bonus, sampling, **kw)
        if longest == 0:  # prompts only: nothing was drafted yet
            return output
        temperature = sampling.temperature
        greedy = torch.full((len(counts),), True) if sampling.all_greedy else temperature == 0
        seen.append(
            Verified(
                requests=list(runner.input_batch.req_ids),
                counts=torch.tensor(counts),
                draft_tokens=before[0],
                draft_probs=before[1],
                target_logits=before[2],
                greedy=greedy,
                output=output.clone(),
                judged=target.clone(),
            )
        )
        return output

    rejection_sampler.rejection_sample = rejection_sample
    try:
        yield seen
    finally:
        rejection_sampler.rejection_sample = inner


def decode(engine, params, *, prompts=PROMPTS, seed=1):
    """Token ids of each prompt; the draft draws from torch's global generator."""
    torch.manual_seed(seed)
    asked = [{"prompt_token_ids": prompt} for prompt in prompts]
    done = engine.generate(asked, params, use_tqdm=False)
    return [list(answer.outputs[0].token_ids) for answer in done]


def sampled(**fields):
    """Sampling at temperature 1 to the length limit."""
    return SamplingParams(**{"temperature": 1.0, "max_tokens": 40, "ignore_eos": True, **fields})


def statistics(engine):
    """What the engine counted so far."""
    (counts,) = engine.collective_rpc("easd_statistics")
    return counts
