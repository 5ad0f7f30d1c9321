"""Decoded accuracy on the `lab` pairs beside the exact one of `lab_exact.py`.

The engine decodes the same problems whose exact accuracy one teacher-forced pass gives; a rule
whose text follows its stated law must land on it. The gate also covers the bonus position, as the
law of whole texts asks. Of many 95 % intervals some miss by chance, so the verdict is on the
largest deviation of all, in standard errors of decoding these very problems (5 % level over all).

    python benchmarks/lab_decode.py [PAIR ...] [--problems 20000] [--rate 0.02] [--seed 0]
"""

import argparse
import time
from dataclasses import replace
from statistics import NormalDist

import torch
from common import quiet
from lab_exact import SEED, Reference, read_reference, threshold

from easd import EASD, Settings, Speculative, generate, load_pair
from easd.core.rules import DraftOnly, Rule, TargetOnly
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
    easd = EASD(tau_h=threshold(reference, rate), draft_at_bonus=True)
    return {
        "target": TargetOnly(),
        "draft": DraftOnly(),
        "speculative": Speculative(),
        "easd": easd,
        "easd draft_top": replace(easd, penalise="draft_top"),
        "easd maximal": replace(easd, coupling="maximal"),
    }


def compare(pair: str, count: int, rate: float, seed: int) -> list[float]:
    """Decodes with every rule; deviations from the exact accuracies in standard errors."""
    reference = read_reference(pair, count)
    problems = lab.problems(pair, count, SEED)
    models = load_pair(pair, device="cpu")
    right = reference.tokens.tolist()
    print(f"\n{pair}: {count} problems, gamma {GAMMA}, decoding seed {seed}")
    print(
        "  rule             decoded [95 % interval]   exact   inside      z   answer"
        "   gated   tok/fwd"
    )
    deviations = []
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
        solved = reference.solved(reference.each(rule.law))
        exact = solved.mean().item()
        low, high = interval(hits, count)
        error = (solved * (1 - solved)).sum().sqrt().item()
        deviations.append((hits - count * exact) / error)
        inside = "yes" if low <= exact <= high else "no"
        examined = sum(text.counts.examined for text in texts)
        gated = sum(text.counts.penalised for text in texts) / max(examined, 1)
        emitted = sum(len(text.token_ids) for text in texts)
        blocks = sum(text.counts.blocks for text in texts)
        print(
            f"  {name:15} {hits / count:7.1%} [{low:.1%}, {high:.1%}] {exact:9.1%}"
            f"   {inside:>6} {deviations[-1]:+6.2f} {answers / count:8.1%} {gated:7.2%}"
            f" {emitted / blocks:9.2f}   {60 * count / seconds:,.0f} problems a minute",
            flush=True,
        )
    return deviations


def main() -> None:
    quiet()
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("pairs", nargs="*", default=list(lab.RECIPES))
    parser.add_argument("--problems", type=int, default=20_000)
    parser.add_argument("--rate", type=float, default=0.02, help="share of gated positions")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    deviations = [
        z
        for pair in arguments.pairs
        for z in compare(pair, arguments.problems, arguments.rate, arguments.seed)
    ]
    worst = max(map(abs, deviations))
    limit = NormalDist().inv_cdf(1 - 0.05 / 2 / len(deviations))
    verdict = "agree" if worst <= limit else "DISAGREE"
    print(f"\ndecoded and exact accuracies {verdict}: largest |z| {worst:.2f}, limit {limit:.2f}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
