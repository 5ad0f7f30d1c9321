"""Trains the reward model of a `lab` pair: `python experiments/training/lab_reward.py a|ad|c|m`.

It starts from the target, goes on learning to write right solutions, and then learns, with a second
layer, to judge those that the draft wrote to training problems. The grammar says of each token
whether its step follows from the total written before, so after a mistake a step can be right
again, and in `lab-m` the reward model is taught better than both models of the pair. One thread,
fixed steps: the same seed, versions and kind of processor give the same weights.
"""

import argparse
import json
import operator
import platform
import time
from collections import Counter
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import torch
import transformers
from lab import ADAMW, MAX_GRAD_NORM, learning_rate_factor, save
from torch import Tensor
from torch.nn import functional as F
from transformers import GPT2Config, GPT2ForTokenClassification, GPT2LMHeadModel

from easd import Pair, Settings, generate, load_models
from easd.core.rules import DraftOnly
from easd.pairs import lab
from easd.pairs.lab import STEP_TOKENS, reward_folder


class Phase(NamedTuple):
    """One part of the training."""

    steps: int
    learning_rate: float
    batch_size: int


LAYERS = 2
WRITING = Phase(steps=1500, learning_rate=5e-3, batch_size=128)
JUDGING = Phase(steps=1500, learning_rate=6e-3, batch_size=256)
PROMPT_TOKENS = 2 * lab.NUM_OPERATIONS + 2
TRAINING_TEXTS = 20_000
HELD_OUT_TEXTS = 5_000
DECODED_AT_ONCE = 1000
LOG_EVERY = 100
LABELS = {0: "wrong", 1: "right"}
NUMBERS = frozenset(map(str, range(lab.MODULUS)))
IGNORED = -100  # what cross_entropy leaves out


class Texts(NamedTuple):
    """N solutions the draft wrote, and the right ones.

    Attributes:
        ids: int64 [N, T], prompt and solution, padded on the right.
        labels: int64 [N, T], 1 where the step, up to this token, follows from what was written
            before, 0 where it does not, `IGNORED` at the prompt and padding.
        right: int64 [N, R], prompt, right solution, end of sequence.
    """

    ids: Tensor
    labels: Tensor
    right: Tensor


def write_texts(name: str, models: Pair, count: int, seed: int, split: lab.Split) -> Texts:
    """Problems of a split, solved by the draft at temperature 1."""
    problems = lab.problems(name, count, seed, split)
    written = generate(
        models.target,
        models.draft,
        [problem.prompt for problem in problems],
        tokenizer=models.tokenizer,
        settings=Settings(
            rule=DraftOnly(),
            max_new_tokens=lab.MAX_NEW_TOKENS,
            seed=seed,
            batch_size=DECODED_AT_ONCE,
        ),
    )
    texts = [f"{problem.prompt} {problem.solution} {lab.EOS}" for problem in problems]
    right = models.tokenizer(texts, return_tensors="pt").input_ids
    start = PROMPT_TOKENS
    ids = torch.full((count, start + lab.MAX_NEW_TOKENS), int(models.tokenizer.pad_token_id))
    labels = torch.full_like(ids, IGNORED)
    for row, (problem, text) in enumerate(zip(problems, written, strict=True)):
        stop = start + len(text.token_ids)
        ids[row, :stop] = torch.tensor([*text.prompt_ids, *text.token_ids])
        words = models.tokenizer.convert_ids_to_tokens(text.token_ids)
        labels[row, start:stop] = torch.tensor(judge(problem, words, lab.recipe(name).full_steps))
    return Texts(ids, labels, right)


def judge(problem: lab.Problem, words: list[str], full_steps: bool) -> list[int]:
    """For each word whether its step, up to it, follows from the total written before."""
    total, *rest = problem.prompt.removesuffix(" ?").split()
    labels: list[int] = []
    for symbol, operand in zip(rest[::2], rest[1::2], strict=True):
        result = str(lab.OPERATIONS[symbol](int(total), int(operand)) % lab.MODULUS)
        step = [symbol, operand, "=", result] if full_steps else [result]
        found = words[len(labels) : len(labels) + len(step)]
        labels += agreeing(found, step)
        if not found or found[-1] not in NUMBERS:
            return labels + [0] * (len(words) - len(labels))
        total = found[-1]
    ending = ["#", total, lab.EOS] if full_steps else [lab.EOS]
    labels += agreeing(words[len(labels) : len(labels) + len(ending)], ending)
    return labels + [0] * (len(words) - len(labels))


def agreeing(found: list[str], expected: list[str]) -> list[int]:
    """1 for the words up to the first that is not the expected one, 0 from there on."""
    same = (int(word == wanted) for word, wanted in zip(found, expected, strict=False))
    return list(accumulate(same, operator.mul))


def learn_to_write(target: GPT2LMHeadModel, texts: Texts, seed: int) -> list[dict]:
    """Goes on training the target, in place, on right solutions; returns the losses.

    A second head, thrown away, has it keep the token it stands at beside the one it expects: to
    judge a token, the next layer compares it with what the position before expected.
    """
    recall = torch.nn.Linear(target.config.n_embd, target.config.vocab_size, bias=False)

    def loss(chosen: Tensor) -> dict[str, Tensor]:
        ids = texts.right[chosen]
        hidden = target.transformer(ids[:, :-1], use_cache=False).last_hidden_state
        hidden = hidden[:, PROMPT_TOKENS - 1 :].flatten(0, 1)
        return {
            "next": F.cross_entropy(target.lm_head(hidden), ids[:, PROMPT_TOKENS:].flatten()),
            "own": F.cross_entropy(recall(hidden), ids[:, PROMPT_TOKENS - 1 : -1].flatten()),
        }

    weights = [*target.parameters(), *recall.parameters()]
    return optimise(weights, loss, WRITING, len(texts.ids), seed)


def build_model(writer: GPT2LMHeadModel) -> GPT2ForTokenClassification:
    """A classifier whose embeddings and first layer are the writer's, and stay so."""
    config = GPT2Config.from_dict(
        {
            **writer.config.to_dict(),
            "architectures": None,
            "n_layer": LAYERS,
            "id2label": LABELS,
            "label2id": {label: index for index, label in LABELS.items()},
            "classifier_dropout": 0.0,
        }
    )
    model = GPT2ForTokenClassification(config)
    body = model.transformer
    body.load_state_dict(writer.transformer.state_dict(), strict=False)
    for part in (body.wte, body.wpe, body.h[0]):
        part.requires_grad_(False)
    return model


def learn_to_judge(model: GPT2ForTokenClassification, texts: Texts, seed: int) -> list[dict]:
    """Trains the second layer and the classifier in place; returns the losses."""

    def loss(chosen: Tensor) -> dict[str, Tensor]:
        ids, labels = texts.ids[chosen], texts.labels[chosen]
        length = int((labels != IGNORED).any(0).nonzero().max()) + 1
        logits = model(ids[:, :length], use_cache=False).logits
        goal = labels[:, :length].flatten()
        return {"judge": F.cross_entropy(logits.flatten(0, 1), goal, ignore_index=IGNORED)}

    weights = [weight for weight in model.parameters() if weight.requires_grad]
    return optimise(weights, loss, JUDGING, len(texts.ids), seed)


def optimise(
    weights: list[torch.nn.Parameter],
    loss: Callable[[Tensor], dict[str, Tensor]],
    phase: Phase,
    texts: int,
    seed: int,
) -> list[dict]:
    """Minimises the sum of `loss` over random batches of texts."""
    optimiser = torch.optim.AdamW(weights, lr=phase.learning_rate, **ADAMW)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: learning_rate_factor(step, phase.steps)
    )
    generator = torch.Generator().manual_seed(seed)
    losses, running = [], Counter()
    for step in range(1, phase.steps + 1):
        parts = loss(torch.randint(texts, (phase.batch_size,), generator=generator))
        optimiser.zero_grad(set_to_none=True)
        torch.stack(list(parts.values())).sum().backward()
        torch.nn.utils.clip_grad_norm_(weights, MAX_GRAD_NORM)
        optimiser.step()
        schedule.step()
        running.update({name: part.item() for name, part in parts.items()})
        if step % LOG_EVERY == 0:
            means = {name: round(total / LOG_EVERY, 4) for name, total in running.items()}
            losses.append({"step": step, **means})
            print(losses[-1], flush=True)
            running.clear()
    return losses


def measure(model: GPT2ForTokenClassification, texts: Texts, step_tokens: int) -> dict[str, float]:
    """Accuracy at 0.5 and area under the ROC curve, over the last tokens of steps."""
    with torch.inference_mode():
        logits = [model(ids, use_cache=False).logits for ids in texts.ids.split(500)]
    rewards = torch.cat(logits).float().softmax(-1)[..., 1]
    asked = texts.labels != IGNORED
    last = asked & ~asked.roll(-1, 1)
    last[:, PROMPT_TOKENS + step_tokens - 1 :: step_tokens] = True
    labels, rewards = texts.labels[last & asked], rewards[last & asked]
    good, bad = rewards[labels == 1], rewards[labels == 0].sort().values
    below = torch.searchsorted(bad, good), torch.searchsorted(bad, good, right=True)
    auc = (below[0] + below[1]).double().mean().item() / 2 / len(bad)
    return {
        "steps": len(labels),
        "right": round(len(good) / len(labels), 4),
        "accuracy": round(((rewards >= 0.5) == (labels == 1)).double().mean().item(), 4),
        "auc": round(auc, 4),
        "right_kept_at_0.7": round((good >= 0.7).double().mean().item(), 4),
        "wrong_kept_at_0.7": round((bad >= 0.7).double().mean().item(), 4),
    }


def main() -> None:
    """Decodes, trains, measures; writes the folder and `training.json` in it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pair", choices=[name.removeprefix("lab-") for name in STEP_TOKENS])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--target", type=Path, help="start from another target")
    parser.add_argument("--draft", type=Path, help="learn from what another draft writes")
    parser.add_argument("--out", type=Path, help="folder for the model and training.json")
    arguments = parser.parse_args()

    torch.set_num_threads(1)
    torch.manual_seed(arguments.seed)
    name = f"lab-{arguments.pair}"
    out = arguments.out or reward_folder(name)
    models = load_models(
        str(arguments.target or lab.folder(name, "target")),
        str(arguments.draft or lab.folder(name, "draft")),
        device="cpu",
    )
    texts = write_texts(name, models, TRAINING_TEXTS, arguments.seed, "train")
    begin = time.process_time()
    losses = {"writing": learn_to_write(models.target, texts, arguments.seed)}
    model = build_model(models.target)
    losses["judging"] = learn_to_judge(model, texts, arguments.seed)
    seconds = time.process_time() - begin
    # What is measured is what is shipped: weights rounded to bfloat16, computed in float32.
    model = model.to(torch.bfloat16).to(torch.float32).eval()
    held_out = write_texts(name, models, HELD_OUT_TEXTS, arguments.seed, "calibration")
    measured = measure(model, held_out, STEP_TOKENS[name])
    print(measured)
    save(model.to(torch.bfloat16), models.tokenizer, out)
    log = {
        "pair": name,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "seed": arguments.seed,
        "layers": LAYERS,
        "writing": WRITING._asdict(),
        "judging": JUDGING._asdict(),
        "optimiser": {"name": "AdamW", **ADAMW},
        "training_texts": TRAINING_TEXTS,
        "parameters": model.num_parameters(),
        "cpu_seconds": round(seconds, 1),
        "held_out": {"split": "calibration", "texts": HELD_OUT_TEXTS, **measured},
        "losses": losses,
    }
    (out / "training.json").write_text(json.dumps(log, indent=1) + "\n")


if __name__ == "__main__":
    main()
