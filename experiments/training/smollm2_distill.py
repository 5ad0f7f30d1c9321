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
from smollm2_generate import ANSWER, FORCED, USER
from torch import Tensor

SHARD_TENSORS = ("start", "tokens", "role", "hidden", "lse")
CHUNK = 128
"""Positions whose logits are held at a time."""


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what comes out, beside the data.

    Training ends after `tokens` positions or `minutes`, whichever comes first; the schedules
    follow the one that is further on.
    """

    layers: tuple[int, ...] = (0, 1, 2, 29)
    head_tokens: int = 6144
    tokens: int = 2_000_000
    batch_tokens: int = 2048
    learning_rate: float = 1e-3
    warmup: float = 0.02
    user_weight: float = 0.3
    acceptance_from: float = 0.3
    seed: int = 0
    minutes: float | None = None


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
            hidden[chosen].bfloat16().split(CHUNK),
            teacher.split(CHUNK),
            lse.split(CHUNK),
            strict=True,
        ):
            values.append(acceptance_and_gradient(student, part, norm, head, 0)[0])
    return float(torch.cat(values).mean())


class Trainer:
    """The layers and the final norm of a draft, their optimiser, and how far they have come.

    The draft's embedding stays the target's; the reduced head stays cut from the target's.
    """

    def __init__(self, draft, recipe: Recipe) -> None:
        self.draft, self.recipe = draft.requires_grad_(False).train(), recipe
        self.head = draft.lm_head.weight.detach().bfloat16()
        self.trained = [*draft.model.layers.parameters(), *draft.model.norm.parameters()]
        for parameter in self.trained:
            parameter.requires_grad_(True)
        decayed = [p for p in self.trained if p.ndim > 1]
        plain = [p for p in self.trained if p.ndim == 1]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": decayed, "weight_decay": 0.01},
                {"params": plain, "weight_decay": 0.0},
            ],
            betas=(0.9, 0.98),
        )
        self.seen, self.steps, self.seconds = 0, 0, 0.0

    @property
    def progress(self) -> float:
        """Share of the budget of positions or of time that is spent, whichever is larger."""
        spent = self.seen / self.recipe.tokens
        minutes = self.recipe.minutes
        return spent if minutes is None else max(spent, self.seconds / 60 / minutes)

    def step(self, group: list[Conversation]) -> tuple[float, float]:
        """Learn from one batch; return its weighted mean KL and acceptance probability."""
        begun, progress = time.monotonic(), self.progress
        for options in self.optimizer.param_groups:
            options["lr"] = learning_rate(self.recipe, progress)
        role = pad([c.role for c in group])
        chosen = role != FORCED
        with torch.autocast("cpu", torch.bfloat16):
            states = self.draft.model(pad([c.tokens for c in group]).long()).last_hidden_state
        hidden = states[chosen]
        weight = torch.where(role[chosen] == USER, self.recipe.user_weight, 1.0)
        weight = weight / weight.sum()
        teacher, lse = pad([c.hidden for c in group])[chosen], pad([c.lse for c in group])[chosen]
        gradients, kl, accept = [], 0.0, 0.0
        for part in torch.arange(len(hidden)).split(CHUNK):
            student = hidden[part].detach().bfloat16()
            accepts, kls, gradient = acceptance_and_gradient(
                student,
                teacher[part],
                lse[part],
                self.head,
                acceptance_share(self.recipe, progress),
            )
            gradients.append(gradient.float() * weight[part, None])
            kl += float(weight[part] @ kls)
            accept += float(weight[part] @ accepts)
        hidden.backward(torch.cat(gradients).to(hidden.dtype))
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.seen, self.steps = self.seen + len(hidden), self.steps + 1
        self.seconds += time.monotonic() - begun
        return kl, accept

    def save(self, path: Path) -> None:
        """Write a checkpoint that `restore` continues from."""
        state = {
            "weights": [p.detach() for p in self.trained],
            "optimizer": self.optimizer.state_dict(),
            "counts": (self.seen, self.steps, self.seconds),
        }
        torch.save(state, path.with_suffix(".part"))
        path.with_suffix(".part").rename(path)

    def restore(self, path: Path) -> None:
        """Continue from a checkpoint."""
        state = torch.load(path, weights_only=True)
        for parameter, saved in zip(self.trained, state["weights"], strict=True):
            parameter.data.copy_(saved)
        self.optimizer.load_state_dict(state["optimizer"])
        self.seen, self.steps, self.seconds = state["counts"]


def train(
    trainer: Trainer,
    conversations: list[Conversation],
    held_out: list[Conversation],
    log: Path,
    checkpoint: Path,
    *,
    every: int = 50,
) -> None:
    """Train until the budget is spent, from `checkpoint` where there is one.

    Appends one row to `log` per `every` steps, with the acceptance rate on `held_out`.
    """
    if checkpoint.exists():
        trainer.restore(checkpoint)
    elif log.exists():
        log.unlink()
    recipe, sums = trainer.recipe, torch.zeros(3)
    groups = batches(conversations, recipe.batch_tokens, recipe.seed)
    for group in itertools.islice(groups, trainer.steps, None):
        if trainer.progress >= 1:
            return
        sums += torch.tensor([*trainer.step(group), 1.0])
        if trainer.steps % every == 0 or trainer.progress >= 1:
            kl, accept, _ = (sums / sums[2]).tolist()
            rate = acceptance(trainer.draft, held_out, trainer.head)
            row = {
                "step": trainer.steps,
                "tokens": trainer.seen,
                "seconds": round(trainer.seconds),
                "kl": round(kl, 4),
                "acceptance": round(accept, 4),
                "held_out": round(rate, 4),
            }
            fresh = not log.exists()
            with log.open("a", newline="") as file:
                writer = csv.DictWriter(file, row)
                if fresh:
                    writer.writeheader()
                writer.writerow(row)
            print(row, flush=True)
            trainer.save(checkpoint)
            sums.zero_()
