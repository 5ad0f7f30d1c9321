"""How far `easd plan --on here` is off: forwards and steps as forecast, over those that were timed.

    python benchmarks/plan_accuracy.py --pair smollm2 --rounds 5

A round measures the machine as `easd plan` does and then times what it forecasts, so that a
neighbour who stays for a while slows both. Printed are medians over the rounds, their quotient,
and the least and the largest quotient of a round.
"""

from __future__ import annotations

import argparse
import statistics
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace

import torch
from common import PROMPTS, describe, quiet

from easd import EASD, load_pair
from easd.core.rules import TargetOnly
from easd.engine.chat import encode
from easd.engine.generate import decode, make_requests
from easd.engine.models.slots import SlotModel
from easd.engine.settings import Settings
from easd.pairs import lab
from easd.speed.plan import CostModel, Shape, measure_here
from easd.speed.plan.measure import describe as describe_hardware
from easd.speed.plan.measure import seconds_of, undisturbed


@torch.inference_mode()
def forward_seconds(model, texts: int, tokens: int, context: int) -> float:
    slots = SlotModel(model, texts)
    slots.prefill(0, [[1] * context] * texts)
    ids = torch.randint(0, 100, (texts, tokens), device=model.device)
    return seconds_of(lambda: slots.forward(ids))


def step(pair, prompts, texts: int, gamma: int, tokens: int) -> tuple[float, int]:
    """Seconds of a step with every text and all of gamma, and the mean context there."""
    rule = EASD() if gamma else TargetOnly()
    settings = Settings(
        rule=rule, coupling="maximal", gamma=gamma or 1, max_new_tokens=tokens, batch_size=texts
    )
    models = pair if gamma else replace(pair, draft=None)
    requests = make_requests(models, prompts[:texts], settings)
    seconds, contexts = [], []
    for record in decode(models, requests, settings):
        drafted = record.step.num_draft_tokens.tolist()
        if drafted == [gamma] * texts:
            parts = record.seconds
            seconds.append(sum(parts.values()) - parts["prefill"])
            contexts.append(statistics.mean(record.starts))
    return undisturbed(seconds), round(statistics.mean(contexts))


def timed(pair, costs: CostModel, prompts, args) -> Iterator[tuple[str, float, float]]:
    """What was timed, and milliseconds as forecast and as taken."""
    context = args.context
    for texts in args.texts:
        for gamma in (0, *args.gammas):
            label = f"{texts:>2} texts, target's forward of {gamma + 1}"
            forecast = costs.forward_seconds(costs.target, texts, gamma + 1, context)
            yield label, forecast, forward_seconds(pair.target, texts, gamma + 1, context)
        forecast = costs.forward_seconds(costs.draft, texts, 1, context)
        label = f"{texts:>2} texts, draft's forward"
        yield label, forecast, forward_seconds(pair.draft, texts, 1, context)
        for gamma in (0, *args.gammas):
            taken, length = step(pair, prompts, texts, gamma, args.tokens)
            label = f"{texts:>2} texts, step " + (f"with gamma {gamma}" if gamma else "alone")
            yield label, costs.step_seconds(texts, gamma, length), taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pair", default="smollm2")
    parser.add_argument("--texts", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--gammas", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--context", type=int, default=120, help="of forwards timed alone")
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    quiet()
    torch.set_num_threads(args.threads)
    pair = load_pair(args.pair, dtype=torch.float32, device="cpu")
    shapes = {name: Shape.of(getattr(pair, name), name) for name in ("target", "draft")}
    most = max(args.texts)
    if args.pair.startswith("lab"):
        texts = [problem.prompt for problem in lab.problems(args.pair, most, seed=0)]
    else:
        texts = [PROMPTS[index % len(PROMPTS)] for index in range(most)]
    prompts = [encode(text, pair.tokenizer) for text in texts]
    found = defaultdict(list)
    for _ in range(args.rounds):
        costs = CostModel(hardware=measure_here(), **shapes)
        print(describe_hardware(costs.hardware), flush=True)
        for label, forecast, taken in timed(pair, costs, prompts, args):
            found[label].append((1000 * forecast, 1000 * taken))
    print(f"{describe()}, {args.pair}, {args.rounds} rounds, context {args.context}")
    print(f"{'':34}{'forecast ms':>12}{'taken ms':>10}   forecast / taken")
    for label, pairs in found.items():
        forecast, taken = (statistics.median(values) for values in zip(*pairs, strict=True))
        ratios = [one / other for one, other in pairs]
        print(
            f"{label:34}{forecast:>12.2f}{taken:>10.2f}   {forecast / taken:.2f} "
            f"({min(ratios):.2f} to {max(ratios):.2f})"
        )


if __name__ == "__main__":
    main()
