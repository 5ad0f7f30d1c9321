"""Decoded accuracy on the `lab` pairs beside the exact one of `lab_exact.py`.

The engine decodes the same problems whose exact accuracy one teacher-forced pass gives; a rule
whose text follows its stated law must land on it. The gate also covers the bonus position, as the
law of whole texts asks.

    python benchmarks/lab_decode.py [PAIR ...] [--problems 5000] [--rate 0.02] [--seed 0]
"""

import argparse
import time
from dataclasses import replace

import torch
from lab_exact import SEED, Reference, read_reference, threshold

from easd import EASD, Settings, Speculative, generate, load_pair
from easd.core.rules import DraftOnly, TargetOnly
from easd.core.types import Rule
from easd.pairs import lab

GAMMA = 4
BATCH_SIZE = 250
Z95 = 1.96


def interval(hits: int, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share."""
    share = hits / count
    shrink = 1 + Z95**2 / count
    centre = (share + Z95**2 / (2 * count)) / shrink
    spread = Z95 * (share * (1 - share) / count + Z95**2 / (4 * count**2)) ** 0.5 / shrink
    return centre - spread, centre + spread


def rules(reference: Reference, rate: float) -> dict[str, Rule]:
    easd = EASD(tau_h=threshold(reference, rate), gate_bonus=True)
    return {
        "target": TargetOnly(),
        "draft": DraftOnly(),
        "speculative": Speculative(),
        "easd": easd,
        "easd draft_top": replace(easd, penalise="draft_top"),
        "easd maximal": replace(easd, coupling="maximal"),
    }


def compare(pair: str, count: int, rate: float, seed: int) -> bool:
    """Decodes with every rule; whether every exact accuracy lies in its decoded interval."""
    reference = read_reference(pair, count)
    problems = lab.problems(pair, count, SEED)
    models = load_pair(pair, device="cpu")
    right = reference.tokens.tolist()
    print(f"\n{pair}: {count} problems, gamma {GAMMA}, decoding seed {seed}")
    print("  rule             decoded [95 % interval]   exact   agrees   answer   gated   tok/fwd")
    agreed = True
    for name, rule in rules(reference, rate).items():
        begin = time.perf_counter()
        texts = generate(
            models.target,
            models.draft,
            [problem.prompt for problem in problems],
            tokenizer=models.tokenizer,
            settings=Settings(
                rule=rule,
                gamma=GAMMA,
                max_new_tokens=lab.MAX_NEW_TOKENS,
                seed=seed,
                batch_size=BATCH_SIZE,
            ),
        )
        seconds = time.perf_counter() - begin
        hits = sum(text.token_ids == ids for text, ids in zip(texts, right, strict=True))
        answers = sum(
            lab.grade(problem, text.text or "")
            for problem, text in zip(problems, texts, strict=True)
        )
        exact = reference.solved(reference.each(rule.law)).mean().item()
        low, high = interval(hits, count)
        agrees = low <= exact <= high
        agreed &= agrees
        examined = sum(text.counts.examined for text in texts)
        penalised = sum(text.counts.penalised for text in texts)
        emitted = sum(len(text.token_ids) for text in texts)
        blocks = sum(text.counts.blocks for text in texts)
        print(
            f"  {name:15} {hits / count:7.1%} [{low:.1%}, {high:.1%}] {exact:9.1%}"
            f"   {'yes' if agrees else 'NO':>6} {answers / count:8.1%}"
            f" {penalised / max(examined, 1):7.2%} {emitted / blocks:9.2f}"
            f"   {60 * count / seconds:,.0f} problems a minute",
            flush=True,
        )
    return agreed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("pairs", nargs="*", default=list(lab.RECIPES))
    parser.add_argument("--problems", type=int, default=5000)
    parser.add_argument("--rate", type=float, default=0.02, help="share of gated positions")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    agreed = [
        compare(pair, arguments.problems, arguments.rate, arguments.seed)
        for pair in arguments.pairs
    ]
    print(f"\nexact accuracy inside every decoded 95 % interval: {'yes' if all(agreed) else 'no'}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
