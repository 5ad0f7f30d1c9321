"""What verification costs: from the target's logits to the decision, without any model.

Prints, for each vocabulary and batch size, milliseconds a step of plain speculative sampling and
of entropy-aware decoding, all taken in turn within one run, and the ratios. A step is the softmax
of the target's logits [B, gamma + 1, V] and `verify`; draft probabilities are given, as they are
when a drafter has sampled from them.

    python benchmarks/verify_cost.py --threads 2 --step-ms 60

On a machine shared with others use one thread and `--clock cpu`, which does not count waiting.
"""

from __future__ import annotations

import argparse
import time
from statistics import median, quantiles

import torch

from easd.core.couplings import Coupling
from easd.core.noise import Noise, race, request_key
from easd.core.rules import EASD, Rule, Speculative
from easd.core.step import Step
from easd.core.verify import verify

SYSTEMS: dict[str, tuple[Rule, Coupling]] = {
    "speculative": (Speculative(), "maximal"),
    "published": (EASD(tau_h=2.0), "published"),
    "maximal": (EASD(tau_h=2.0), "maximal"),
}
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def workload(batch: int, gamma: int, vocab_size: int):
    """Logits as peaked as a language model's, a draft that resembles them, its tokens."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(batch, gamma + 1, vocab_size, generator=generator)
    nudge = torch.randn(batch, gamma + 1, vocab_size, generator=generator)
    draft_probs = (logits + nudge).softmax(-1)
    draft_probs[:, gamma] = 0
    keys = torch.tensor([request_key(0, request) for request in range(batch)])
    noise = Noise(keys=keys, start=torch.full((batch,), 100))
    at = torch.arange(gamma).expand(batch, -1)
    tokens = race(draft_probs[:, :gamma], noise.draft(at, vocab_size))
    return logits, draft_probs, tokens, noise


@torch.inference_mode()
def measure(batch: int, gamma: int, vocab_size: int, seconds: float, clock) -> dict[str, list]:
    """Times of every system, taken in turn for `seconds` of wall time, in milliseconds."""
    logits, draft_probs, tokens, noise = workload(batch, gamma, vocab_size)
    lengths = torch.full((batch,), gamma)
    times: dict[str, list[float]] = {name: [] for name in SYSTEMS}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times["maximal"]) < 6:
        for name, (rule, coupling) in SYSTEMS.items():
            start = clock()
            step = Step(
                draft_tokens=tokens,
                num_draft_tokens=lengths,
                draft_probs=draft_probs,
                target_probs=logits.softmax(-1),
            )
            verify(rule, step, noise, coupling)
            times[name].append(1e3 * (clock() - start))
    return {name: taken[1:] for name, taken in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vocab", type=int, nargs="+", default=[49_152, 152_064])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--gamma", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=5, help="wall time for each line")
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--step-ms", type=float, help="a whole step at batch 1, for the share")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    print(f"threads {args.threads}, {args.clock} clock, gamma {args.gamma}; median (quartiles) of")
    print("milliseconds, and the median of ratios within a round, over speculative sampling")
    header = " ".join(f"{name:>26}" for name in SYSTEMS)
    print(f"{'V':>7} {'B':>3} {header} {'published':>13} {'maximal':>8}")
    for vocab_size in args.vocab:
        for batch in args.batch:
            times = measure(batch, args.gamma, vocab_size, args.seconds, CLOCKS[args.clock])
            cells = []
            for taken in times.values():
                low, middle, high = quantiles(taken, n=4)
                cells.append(f"{middle:10.2f} ({low:6.2f}-{high:6.2f})")
            plain = times["speculative"]
            ratios = [
                median(a / b for a, b in zip(times[name], plain, strict=True))
                for name in ("published", "maximal")
            ]
            line = " ".join(f"{cell:>26}" for cell in cells)
            print(f"{vocab_size:>7} {batch:>3} {line} {ratios[0]:>13.2f} {ratios[1]:>8.2f}")
            if args.step_ms and batch == 1:
                share = 100 * median(times["maximal"]) / args.step_ms
                print(f"{'':>11} maximal is {share:.1f} % of a step of {args.step_ms} ms")


if __name__ == "__main__":
    main()
