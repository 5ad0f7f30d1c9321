"""Distil the draft: four of the target's layers, taught by the target's own next-token laws."""

from __future__ import annotations

import csv
import itertools
import math
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from smollm2_generate import ANSWER, USER
from torch import Tensor

SHARD_TENSORS = ("start", "tokens", "role", "hidden", "lse")


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what comes out, beside the data."""

    layers: tuple[int, ...] = (0, 1, 2, 29)
    head_tokens: int = 8192
    tokens: int = 3_000_000
    batch_tokens: int = 3072
    learning_rate: float = 1e-3
    warmup: float = 0.02
    user_weight: float = 0.3
    acceptance_from: float = 0.5
    seed: int = 0


@dataclass(frozen=True)
class Conversation:
    """One conversation: tokens [T], who wrote each next token, the teacher's states."""

    tokens: Tensor
    role: Tensor
    hidden: Tensor
    lse: Tensor


def load_shard(path: Path) -> list[Conversation]:
    """Cut the rows of a shard into conversations; those without a sampled token are dropped."""
    with safe_open(path, "pt") as file:
        shard = {name: file.get_tensor(name) for name in SHARD_TENSORS}
    conversations = []
    for row, starts in enumerate(shard["start"]):
        bounds = [*starts.unique().tolist(), len(starts)]
        for begin, end in itertools.pairwise(bounds):
            if (shard["role"][row, begin:end] != 0).any():
                cut = [shard[name][row, begin:end] for name in SHARD_TENSORS[1:]]
                conversations.append(Conversation(*cut))
    return conversations


def frequent_tokens(paths: list[Path], count: int) -> Tensor:
    """Return the `count` token ids to which the target gave most probability, in id order."""
    mass = torch.zeros(())
    for path in paths:
        with safe_open(path, "pt") as file:
            mass = mass + file.get_tensor("mass")
    return mass.topk(count).indices.sort().values


def batches(
    conversations: list[Conversation], batch_tokens: int, seed: int
) -> Iterator[list[Conversation]]:
    """Yield batches of similar length for ever, reshuffled every epoch."""
    rng = random.Random(seed)
    while True:
        order = sorted(conversations, key=lambda c: len(c.tokens) + rng.random() * 16)
        groups: list[list[Conversation]] = [[]]
        for conversation in order:
            if len(conversation.tokens) * (len(groups[-1]) + 1) > batch_tokens and groups[-1]:
                groups.append([])
            groups[-1].append(conversation)
        rng.shuffle(groups)
        yield from groups


def acceptance_and_gradient(
    hidden: Tensor, teacher: Tensor, lse: Tensor, head: Tensor, acceptance_share: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Compare the draft's and the target's law; closed-form gradients, so no logits are kept.

    The loss is (1 - s) KL(p || q) + s (1 - a), a = sum_y min(p, q)(y) being the probability that
    speculative sampling accepts, s `acceptance_share`.

    Args:
        hidden: the draft's final states `[P, hidden]`, bfloat16.
        teacher: the target's `[P, hidden]`, bfloat16.
        lse: the target's log-normaliser over the full vocabulary `[P]`.
        head: rows of the reduced head `[R, hidden]`, bfloat16.
        acceptance_share: s.

    Returns:
        a `[P]`, KL on the reduced vocabulary `[P]`, gradient of the loss with respect to `hidden`.
    """
    log_p = F.linear(teacher, head).float().sub_(lse[:, None])
    log_q = F.linear(hidden, head).float().log_softmax(-1)
    p, q = log_p.exp(), log_q.exp()
    accept = torch.minimum(p, q).sum(-1)
    kl = log_p.sub_(log_q).mul_(p).sum(-1)
    mass = p.sum(-1, keepdim=True)
    gradient = (q * mass).sub_(p).mul_(1 - acceptance_share)
    if acceptance_share:
        below = torch.where(q < p, q, 0.0)
        gradient -= acceptance_share * (below - q * below.sum(-1, keepdim=True))
    return accept, kl, gradient.to(head.dtype) @ head


def learning_rate(recipe: Recipe, progress: float) -> float:
    """Linear warm-up, then a cosine to zero."""
    if progress < recipe.warmup:
        return recipe.learning_rate * progress / recipe.warmup
    return recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def acceptance_share(recipe: Recipe, progress: float) -> float:
    """KL alone at first, then a linear passage to the acceptance rate itself."""
    start = recipe.acceptance_from
    return 0.0 if progress < start else min(1.0, 2 * (progress - start) / (1 - start))


def pad(tensors: list[Tensor]) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True)


@torch.no_grad()
def acceptance(draft, conversations: list[Conversation], head: Tensor) -> float:
    """Mean over answer positions of sum_y min(p, q)(y), by teacher forcing in bfloat16."""
    values = []
    for group in [conversations[i : i + 16] for i in range(0, len(conversations), 16)]:
        with torch.autocast("cpu", torch.bfloat16):
            hidden = draft.model(pad([c.tokens for c in group]).long()).last_hidden_state
        chosen = pad([c.role for c in group]) == ANSWER
        teacher, lse = pad([c.hidden for c in group])[chosen], pad([c.lse for c in group])[chosen]
        for student, part, norm in zip(
            hidden[chosen].bfloat16().split(128), teacher.split(128), lse.split(128), strict=True
        ):
            values.append(acceptance_and_gradient(student, part, norm, head, 0)[0])
    return float(torch.cat(values).mean())


def train(
    draft,
    head: Tensor,
    recipe: Recipe,
    conversations: list[Conversation],
    held_out: dict[str, list[Conversation]],
    log: Path,
    *,
    every: int = 50,
    chunk: int = 128,
) -> None:
    """Train the layers and the final norm of `draft` in place; its embedding stays the target's.

    Writes one row of `log` per `every` steps, with the acceptance rate on each held-out set.
    """
    head = head.bfloat16()
    trained = [*draft.model.layers.parameters(), *draft.model.norm.parameters()]
    draft.requires_grad_(False)
    for parameter in trained:
        parameter.requires_grad_(True)
    matrices = [p for p in trained if p.ndim > 1]
    optimizer = torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": 0.01},
            {"params": [p for p in trained if p.ndim == 1], "weight_decay": 0.0},
        ],
        betas=(0.9, 0.98),
    )
    seen, step, begun = 0, 0, time.monotonic()
    columns = ["step", "tokens", "seconds", "kl", "acceptance", *held_out]
    running = torch.zeros(2)
    with log.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for group in batches(conversations, recipe.batch_tokens, recipe.seed):
            progress = seen / recipe.tokens
            share = acceptance_share(recipe, progress)
            for options in optimizer.param_groups:
                options["lr"] = learning_rate(recipe, progress)
            role = pad([c.role for c in group])
            chosen = role != 0
            with torch.autocast("cpu", torch.bfloat16):
                states = draft.model(pad([c.tokens for c in group]).long()).last_hidden_state
            hidden = states[chosen]
            teacher = pad([c.hidden for c in group])[chosen]
            lse = pad([c.lse for c in group])[chosen]
            weight = torch.where(role[chosen] == USER, recipe.user_weight, 1.0)
            weight = weight / weight.sum()
            gradients = []
            for part in torch.arange(len(hidden)).split(chunk):
                accept, kl, gradient = acceptance_and_gradient(
                    hidden[part].detach().bfloat16(), teacher[part], lse[part], head, share
                )
                gradients.append(gradient.float() * weight[part, None])
                running += torch.stack([weight[part] @ kl, weight[part] @ accept])
            hidden.backward(torch.cat(gradients).to(hidden.dtype))
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            seen, step = seen + int(chosen.sum()), step + 1
            if step % every == 0 or seen >= recipe.tokens:
                rates = [acceptance(draft, held, head) for held in held_out.values()]
                mean = (running / (step % every or every)).tolist()
                seconds = time.monotonic() - begun
                row = [step, seen, round(seconds), *(round(x, 4) for x in (*mean, *rates))]
                writer.writerow(row)
                file.flush()
                print(dict(zip(columns, row, strict=True)), flush=True)
                running.zero_()
            if seen >= recipe.tokens:
                return
