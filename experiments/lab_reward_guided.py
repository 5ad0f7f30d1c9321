"""Measures reward-guided decoding on the `lab` pairs: accuracy, and tokens by either model.

python experiments/lab_reward_guided.py [PAIR ...] [--problems 5000] [--seed 0]
"""

import argparse
import time

import numpy as np
import torch
from transformers.utils import logging

from easd import Settings, generate, load_pair
from easd.core.rules import DraftOnly, TargetOnly
from easd.evaluate.reward_guided import RewardGuided, generate_reward_guided
from easd.evaluate.rewards import load_reward_model
from easd.evaluate.written_steps import StepCounts
from easd.pairs import lab
from easd.pairs.lab import STEP_TOKENS
from easd.stats import proportion

DELTAS = (0.5, 0.7, 0.9)
BATCH_SIZE = 1000
SEED = 20  # Of the problems.


def measure(pair: str, count: int, seed: int) -> None:
    """Decodes a pair's problems with each model alone and with RSD at each threshold."""
    problems = lab.problems(pair, count, SEED)
    models = load_pair(pair, device="cpu")
    assert models.draft is not None
    scorer = load_reward_model(pair)
    settings = Settings(max_new_tokens=lab.MAX_NEW_TOKENS, seed=seed, batch_size=BATCH_SIZE)
    prompts = [models.tokenizer(problem.prompt)["input_ids"] for problem in problems]
    print(f"\n{pair}: {count} problems, steps of {STEP_TOKENS[pair]} tokens, decoding seed {seed}")
    print(
        "  system      answers right [95 % interval]   rewritten   per text: draft  target  scored"
        "   tok/fwd    seconds"
    )

    def show(name: str, texts: dict[int, str], counts: StepCounts, seconds: float) -> None:
        right = [lab.grade(problem, texts[number]) for number, problem in enumerate(problems)]
        accuracy = proportion(np.array(right))
        rewritten = counts.steps_rewritten / max(counts.steps_drafted, 1)
        efficiency = counts.block_efficiency
        print(
            f"  {name:10} {accuracy.value:9.1%} [{accuracy.low:.1%}, {accuracy.high:.1%}]"
            f" {rewritten:16.1%}"
            f" {counts.draft_tokens / count:16.2f} {counts.target_tokens / count:7.2f}"
            f" {counts.steps_drafted / count:7.2f} {efficiency or float('nan'):9.2f}"
            f" {seconds:10.1f}",
            flush=True,
        )

    for name, rule in (("target", TargetOnly()), ("draft", DraftOnly())):
        begin = time.perf_counter()
        found = generate(
            models.target,
            models.draft,
            prompts,
            tokenizer=models.tokenizer,
            settings=settings,
            rule=rule,
        )
        tokens = sum(len(text.token_ids) for text in found)
        counts = (
            StepCounts(target_tokens=tokens)
            if rule.models == "target"
            else StepCounts(draft_tokens=tokens, draft_kept=tokens)
        )
        texts = {text.number: text.text or "" for text in found}
        show(name, texts, counts, time.perf_counter() - begin)
    for delta in DELTAS:
        begin = time.perf_counter()
        guided = list(
            generate_reward_guided(
                models.target,
                models.draft,
                prompts,
                scorer,
                tokenizer=models.tokenizer,
                system=RewardGuided(delta=delta, step=STEP_TOKENS[pair]),
                settings=settings,
            )
        )
        counts = StepCounts.of([step for text in guided for step in text.steps])
        texts = {text.number: text.text or "" for text in guided}
        show(f"RSD {delta:.1f}", texts, counts, time.perf_counter() - begin)


def main() -> None:
    logging.disable_progress_bar()
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("pairs", nargs="*", default=list(STEP_TOKENS))
    parser.add_argument("--problems", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    for pair in arguments.pairs:
        measure(pair, arguments.problems, arguments.seed)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
