"""What alignment of the target does to the gate, the pool and EASD.

    python experiments/alignment.py [--models FOLDER ...] [--steps 500]

Starts from the target of `lab-a`, or of each folder with target/ and draft/, and trains copies:

* `reward`: on a verifiable reward, 1 for the right solution. A problem has only one, so the
  expected reward is its probability, and the gradient that policy gradients estimate from samples
  is exact.
* `preference`: on pairs of a right and a wrong text for the same problem, both written by the
  target; direct preference optimisation plus the likelihood of the right text, without which both
  become unlikely. A third of the steps, since there are few pairs.
* `supervised`: the control, as many steps as `reward` on right solutions, as before.

The draft stays as it is. Ends with the columns of `model_size.py`: exact accuracies from one pass
over reference solutions, ± half of a 95 % interval over problems. "Open at the middle pair's" is
the gate's rate at the threshold of the target before alignment.
"""

import argparse
import copy
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch
from model_size import PAIR, columns
from studies import lab_pair
from torch import Tensor
from torch.nn import functional as F
from training.lab import ADAMW, batches, descend
from transformers import GPT2LMHeadModel, PreTrainedTokenizerBase
from transformers.utils import logging

from easd.pairs import lab

NEW_TOKENS = lab.NUM_OPERATIONS + 1
REWARD_RATE, PREFERENCE_RATE = 5e-4, 2e-4
BETA, PAIRS, DPO_PROBLEMS, GROUP = 0.1, 128, 5000, 8
LOG_EVERY = 50


@torch.inference_mode()
def sampled(model: GPT2LMHeadModel, prompts: Tensor) -> Tensor:
    """One text for each prompt at temperature 1, [B, T + NEW_TOKENS]."""
    ids = prompts
    for _ in range(NEW_TOKENS):
        probs = model(ids, use_cache=False, logits_to_keep=1).logits[:, -1].softmax(-1)
        ids = torch.cat([ids, torch.multinomial(probs, 1)], 1)
    return ids


def log_probs(model: GPT2LMHeadModel, ids: Tensor) -> Tensor:
    """Log-probability of each text given its prompt, [B]."""
    logits = model(ids[:, :-1], use_cache=False, logits_to_keep=NEW_TOKENS).logits
    own = ids[:, -NEW_TOKENS:, None]
    return logits.log_softmax(-1).gather(-1, own)[..., 0].sum(1)


def optimised(
    target: GPT2LMHeadModel, loss: Callable[[GPT2LMHeadModel], Tensor], rate: float, steps: int
) -> GPT2LMHeadModel:
    """A copy of the target that minimises a loss, at a rate that falls to 0."""
    model = copy.deepcopy(target)
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate, **ADAMW)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.0, steps)
    running = 0.0
    for step in range(1, steps + 1):
        value = loss(model)
        descend(model, value, optimiser, schedule)
        running += value.item()
        if step % LOG_EVERY == 0:
            print(f"step {step}/{steps} loss {running / LOG_EVERY:.4f}", flush=True)
            running = 0.0
    return model.eval()


def preferences(
    target: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerBase, seed: int
) -> Callable[[GPT2LMHeadModel], Tensor]:
    """The loss on pairs of a right and a wrong text that the target wrote."""
    problems = list(islice(lab.stream(PAIR, seed, "train"), DPO_PROBLEMS))
    prompts = torch.tensor(tokenizer([problem.prompt for problem in problems])["input_ids"])
    answers = torch.tensor(tokenizer.convert_tokens_to_ids([each.answer for each in problems]))
    ids = torch.stack([sampled(target, prompts) for _ in range(GROUP)]).clone()
    right = (ids[..., -2] == answers) & (ids[..., -1] == tokenizer.eos_token_id)
    rows = (right.any(0) & ~right.all(0)).nonzero()[:, 0]
    right = right.int()
    texts = torch.stack([ids[choice[rows], rows] for choice in (right.argmax(0), right.argmin(0))])
    with torch.no_grad():
        before = torch.stack([log_probs(target, each) for each in texts])
    generator = torch.Generator().manual_seed(seed)

    def loss(model: GPT2LMHeadModel) -> Tensor:
        chosen = torch.randint(len(rows), (PAIRS,), generator=generator)
        now = log_probs(model, texts[:, chosen].flatten(0, 1)).view(2, -1)
        better, worse = now - before[:, chosen]
        return -(F.logsigmoid(BETA * (better - worse)) + now[0] / NEW_TOKENS).mean()

    return loss


def aligned(
    target: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerBase, seed: int, steps: int
) -> dict[str, GPT2LMHeadModel]:
    """The target and its copies by name."""
    solutions = batches(lab.stream(PAIR, seed, "train"), tokenizer)

    def supervised(model: GPT2LMHeadModel) -> Tensor:
        return -log_probs(model, next(solutions)).mean() / NEW_TOKENS

    def reward(model: GPT2LMHeadModel) -> Tensor:
        return -log_probs(model, next(solutions)).exp().mean()

    preference = preferences(target, tokenizer, seed)
    return {
        "before": target,
        "supervised": optimised(target, supervised, REWARD_RATE, steps),
        "reward": optimised(target, reward, REWARD_RATE, steps),
        "preference": optimised(target, preference, PREFERENCE_RATE, max(1, steps // 3)),
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", type=Path, nargs="+", help="folders, one a training seed")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--problems", type=int, default=5000)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    for number, folder in enumerate(options.models or [None]):
        pair, _ = lab_pair(PAIR, folder)
        torch.manual_seed(number)
        targets = aligned(pair.target, pair.tokenizer, 5000 + number, options.steps)
        tau_h = float(dict(columns(pair, options.problems, None))["tau_h for 2 %"])
        for name, target in targets.items():
            line = dict(columns(replace(pair, target=target), options.problems, tau_h))
            if name == "before":
                print(f"\n{folder or PAIR}\n\n| target | {' | '.join(line)} |")
                print(f"|{'---|' * (len(line) + 1)}")
            print(f"| {name} | {' | '.join(line.values())} |", flush=True)


if __name__ == "__main__":
    main()
