"""Compares signals for ending a draft block early, on recorded blocks.

    EASD_DATA=... python experiments/block_ends.py --pair smollm2 --task gsm8k:24 --cost 0.12

Drafts blocks of `--longest` tokens, then computes for every shorter block the tokens it would have
kept (products of acceptance probabilities) and its cost: `--cost` target forwards for each draft
forward, and `--scoring` for each token beyond the first. Each signal's threshold, and the fixed
gamma that it is compared with, are chosen in hindsight.
"""

from __future__ import annotations

import argparse

import numpy as np
from rich.console import Console
from transformers.utils import logging

from easd import Speculative, generate, load_pair
from easd.cli.grid_options import load_tasks
from easd.core.signals import entropy
from easd.evaluate.config import StudyConfig
from easd.evaluate.prompting import encode_item


def blocks(pair, prompts, args) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns draft entropy, acceptance probability, draft probability, each [blocks, longest]."""
    found: list[tuple[np.ndarray, ...]] = []

    def watch(record) -> None:
        step = record.step
        whole = step.num_draft_tokens == args.longest
        if not whole.any():
            return
        probs = step.draft_probs[whole, : args.longest]
        drawn = probs.gather(-1, step.draft_tokens[whole][..., None])[..., 0]
        accept = record.decision.judgement.accept_prob[whole]
        found.append(tuple(values.numpy() for values in (entropy(probs), accept, drawn)))

    generate(
        *(pair.target, pair.draft, prompts),
        tokenizer=pair.tokenizer,
        rule=Speculative(),
        gamma=args.longest,
        temperature=args.temperature,
        max_new_tokens=args.tokens,
        batch_size=16,
        on_step=watch,
    )
    entropies, accepts, drawn = (np.concatenate(values) for values in zip(*found, strict=True))
    return entropies, accepts, drawn


class Costs:
    """Emitted tokens per time of a target forward, for blocks cut to given lengths."""

    def __init__(self, accepts: np.ndarray, cost: float, scoring: float) -> None:
        self.kept = accepts.cumprod(1)
        self.cost, self.scoring = cost, scoring

    def rate(self, tokens: np.ndarray, forwards: np.ndarray) -> float:
        """Returns the rate for `tokens` and draft `forwards` of each block, both [blocks]."""
        drafted = np.arange(self.kept.shape[1]) < tokens[:, None]
        emitted = 1 + (self.kept * drafted).sum(1)
        return emitted.sum() / (1 + self.scoring * tokens + self.cost * forwards).sum()

    def after(self, signal: np.ndarray) -> float:
        """Returns the best rate when drafting while the growing `signal` is below a bound."""
        return max(self._after(signal, bound) for bound in np.quantile(signal, _SHARES))

    def _after(self, signal: np.ndarray, bound: float) -> float:
        tokens = np.minimum(_leading(signal < bound) + 1, signal.shape[1])
        return self.rate(tokens, tokens)

    def before(self, signal: np.ndarray) -> float:
        """Returns the best rate when drawing while `signal` is above a bound (one forward more)."""
        counts = [_leading(signal > bound) for bound in np.quantile(signal, _SHARES)]
        return max(self.rate(n, np.minimum(n + 1, signal.shape[1])) for n in counts)


_SHARES = np.linspace(0, 1, 300)


def _leading(holds: np.ndarray) -> np.ndarray:
    return holds.cumprod(1).sum(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pair", default="smollm2")
    parser.add_argument("--task", default="gsm8k:24", help="name:count")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--longest", type=int, default=12)
    parser.add_argument("--cost", type=float, nargs="+", default=[0.12, 0.2, 0.3])
    parser.add_argument("--scoring", type=float, default=0.05)
    args = parser.parse_args()
    logging.disable_progress_bar()
    name, _, count = args.task.partition(":")
    task = {"name": name, "limit": int(count)}
    config = StudyConfig.from_dict({"pair": args.pair, "tasks": [task]})
    (loaded,) = load_tasks(config, Console(stderr=True))
    pair = load_pair(args.pair)
    prompts = [encode_item(item, loaded, pair.tokenizer, None) for item in loaded.items]
    entropies, accepts, drawn = blocks(pair, prompts, args)
    surprise = -np.log(drawn)
    print(f"{args.pair}, {len(accepts)} blocks, temperature {args.temperature}")
    for cost in args.cost:
        costs = Costs(accepts, cost, args.scoring)
        lengths = [np.full(len(accepts), gamma) for gamma in range(1, args.longest + 1)]
        fixed = [costs.rate(n, n) for n in lengths]
        rules = {
            "before the draw, by its entropy": costs.before(-entropies),
            "sum of entropies": costs.after(entropies.cumsum(1)),
            "probability of the block": costs.after(surprise.cumsum(1)),
            "oracle": costs.after(-np.log(np.maximum(accepts, 1e-9)).cumsum(1)),
        }
        shown = ", ".join(f"{rule} {rate / max(fixed):.3f}" for rule, rate in rules.items())
        print(f"cost {cost}: best gamma {int(np.argmax(fixed)) + 1}; over it: {shown}")


if __name__ == "__main__":
    main()
