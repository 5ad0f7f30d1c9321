"""What the draft is worth: acceptance rate on questions it never saw, and its cost."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

import numpy as np
import torch
from easd.engine.slots import cache_keyword
from safetensors.torch import save_file
from smollm2_distill import Conversation, load_shard
from smollm2_generate import ANSWER, Row, Template, given_questions, wave
from torch import Tensor
from transformers import DynamicCache


def answered(
    target, tokenizer, data: Path, work: Path, *, count: int, skip: int, slots: int, seed: int
) -> list[Conversation]:
    """Return the target's temperature-1 answers to questions of a data set, kept on disk.

    `count` rows are decoded side by side; a row that ends takes the next question.
    """
    path = work / f"{data.stem}-{skip}-{count}.safetensors"
    if not path.exists():
        questions = [json.loads(line)["problem"] for line in data.open(encoding="utf-8")]
        random.Random(0).shuffle(questions)
        template = Template(tokenizer)
        scripts = given_questions(template, questions[skip:])
        save_file(
            wave(target, [Row(template, scripts) for _ in range(count)], slots=slots, seed=seed),
            path,
        )
    return load_shard(path)


@torch.inference_mode()
def teacher_forced(target, draft, conversation: Conversation) -> tuple[Tensor, Tensor]:
    """Compare both models along one answer.

    Returns:
        sum_y min(p, q)(y), the acceptance probability of a draft token, and min(1, q(y)/p(y)) of
        the token y that the target wrote, the probability that y was an accepted draft token
        given that y was emitted; both `[T]`.
    """
    tokens = conversation.tokens[None].long()
    at = (conversation.role[:-1] == ANSWER).nonzero()[:, 0]
    written = tokens[0, at + 1, None]
    p, q = (model(tokens).logits[0, at].float().softmax(-1) for model in (target, draft))
    ratio = q.gather(1, written) / p.gather(1, written)
    return torch.minimum(p, q).sum(-1), ratio.clamp(max=1)[:, 0]


def examined_and_accepted(ratio: Tensor, gamma: int) -> tuple[float, float]:
    """Return expected counts of examined and of accepted draft tokens along one answer.

    Exact: given the emitted text, each examined position is an acceptance with probability
    `ratio`, independently; a block ends at the first refusal, or after gamma and a bonus token.
    """
    values = ratio.double().tolist()
    begins = [1.0] + [0.0] * (len(values) + gamma + 1)
    examined = accepted = 0.0
    for begin in range(len(values)):
        reach = begins[begin]
        for at in range(begin, min(begin + gamma, len(values))):
            examined += reach
            accepted += reach * values[at]
            begins[at + 1] += reach * (1 - values[at])
            reach *= values[at]
        begins[begin + gamma + 1] += reach
    return examined, accepted


def acceptance_rates(
    target, draft, conversations: list[Conversation], gamma: int, resamples: int = 2000
) -> dict[str, tuple[float, float, float]]:
    """Return both acceptance rates with 95 % bootstrap intervals over conversations."""
    table = []
    for conversation in conversations:
        accept, ratio = teacher_forced(target, draft, conversation)
        if len(accept):
            table.append(
                (float(accept.sum()), len(accept), *reversed(examined_and_accepted(ratio, gamma)))
            )
    counts = np.array(table)
    picks = np.random.default_rng(0).integers(len(counts), size=(resamples, len(counts)))
    sums = counts[picks].sum(1)
    rates = {}
    for name, column in {"per position": 0, "per examined": 2}.items():
        low, high = np.quantile(sums[:, column] / sums[:, column + 1], [0.025, 0.975])
        total = counts.sum(0)
        rates[name] = (total[column] / total[column + 1], low, high)
    return rates


@torch.inference_mode()
def token_seconds(model, length: int = 200, repeats: int = 10) -> float:
    """Return the shortest time of a one-token forward pass after `length` cached tokens.

    Shortest, because another process can only lengthen it.
    """
    cached: dict = {cache_keyword(model): DynamicCache(), "logits_to_keep": 1}
    model(torch.arange(10, 10 + length)[None], **cached)
    laps = []
    for _ in range(repeats):
        begun = time.perf_counter()
        model(torch.tensor([[100]]), **cached)
        laps.append(time.perf_counter() - begun)
    return min(laps)


def cost(target, draft, rounds: int = 10) -> tuple[float, float]:
    """Return the seconds per token of the draft and of the target, measured in turns."""
    laps = [(token_seconds(draft), token_seconds(target)) for _ in range(rounds)]
    return min(draft for draft, _ in laps), min(target for _, target in laps)
