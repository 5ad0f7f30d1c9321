"""SmolLM2-135M and its draft on GSM8K and MATH500: what 200 items of each can show.

    python experiments/smollm2.py [--items 200] [--out runs/smollm2] [--threads N]

Thresholds and the pool come from 120 written solutions of GSM8K that are not decoded. `EASD_DATA`
names a folder with the sets; without it they come from the hub. A run that was stopped goes on.
"""

import argparse
from pathlib import Path

import torch
from studies import console, evaluate, fit, report
from transformers.utils import logging

from easd import load_pair
from easd.evaluate.config import StudyConfig
from easd.tasks import load_task

FIT_FROM, FIT_ITEMS = 600, 120
RATES = (0.02, 0.08)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--items", type=int, default=200, help="of each task")
    parser.add_argument("--out", type=Path, default=Path("runs/smollm2"))
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--max-new-tokens", type=int, default=192)
    parser.add_argument("--batch", type=int, default=25)
    parser.add_argument("--threads", type=int, help="of the processor")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    logging.disable_progress_bar()

    shared = {
        "pair": "smollm2",
        "temperature": arguments.temperature,
        "max_new_tokens": arguments.max_new_tokens,
        "batch_size": arguments.batch,
        "chunk": arguments.batch,
        "gamma": 3,
        "trace": 50,
        "tasks": [{"name": name, "limit": arguments.items} for name in ("gsm8k", "math500")],
    }
    pair = load_pair("smollm2")
    solutions = load_task("gsm8k", first=FIT_FROM, limit=FIT_ITEMS)
    fitted = fit(
        pair,
        solutions,
        StudyConfig.from_dict(shared),
        RATES,
        arguments.out / "diagnosis.json",
    )
    two = fitted[0.02]
    console.print(f"gate at 2 %: {two}; at 8 %: {fitted[0.08]}")
    systems = [
        "target",
        "speculative",
        {"name": "easd 2 %", "rule": {"name": "easd", "tau_h": two.tau_h}},
        {
            "name": "pool 2 %",
            "rule": {"name": "pool", "tau_h": two.tau_h, "a": two.a, "b": two.b},
        },
    ]
    evaluate(pair, StudyConfig.from_dict({**shared, "systems": systems}), arguments.out / "run")
    report([arguments.out / "run"], arguments.out / "report")


if __name__ == "__main__":
    main()
