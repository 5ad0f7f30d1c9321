"""What the benchmarks share: prompts, chat ids, intervals, and how the machine is set."""

from __future__ import annotations

import json
import platform
from pathlib import Path

import numpy as np
import torch
import transformers

from easd import Pair
from easd.pairs import lab

PROMPTS = (
    "A bakery sells muffins in boxes of 6. It baked 150 muffins and 12 were burnt. "
    "How many full boxes can it sell?",
    "Tom walks 3 km to school and back five days a week. How far does he walk in four weeks?",
    "A tank holds 240 litres. A pump fills 18 litres a minute while a leak loses 3. "
    "How long until the empty tank is full?",
    "Nina is twice as old as her brother. In five years they will be 34 together. "
    "How old is Nina now?",
    "A train leaves at 9:40 and arrives at 13:05 after two stops of ten minutes each. "
    "How long was it moving?",
    "Three friends share 84 stickers so that the second has twice as many as the first and the "
    "third has four more than the second. How many has each?",
    "A shop cuts the price of a 60 euro coat by a quarter and then by another 5 euros. "
    "What does it cost?",
    "A farmer plants 14 rows of 25 carrots. Rabbits eat one carrot in ten. How many are left?",
)


def load_prompts(file: Path | None, count: int) -> list[str]:
    """The first `count` problems of a JSON-lines file, or prompts of our own."""
    if file is None:
        return [PROMPTS[index % len(PROMPTS)] for index in range(count)]
    with file.open(encoding="utf-8") as lines:
        return [json.loads(line)["problem"] for line, _ in zip(lines, range(count), strict=False)]


def chat_ids(pair: Pair, prompts: list[str]) -> list[list[int]]:
    """Token ids of each prompt as a user's turn."""
    return [
        list(
            pair.tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt}],
                add_generation_prompt=True,
                return_dict=False,
            )
        )
        for prompt in prompts
    ]


def pair_prompts(pair: Pair, count: int, seed: int) -> list:
    """Problems of a lab pair, as text; for other pairs prompts of our own, as token ids."""
    if pair.name in lab.RECIPES:
        return [problem.prompt for problem in lab.problems(pair.name, count, seed)]
    return chat_ids(pair, load_prompts(None, count))


def interval(values: list[float], seed: int = 0) -> tuple[float, float, float]:
    """Median and its 95 % bootstrap interval."""
    found = np.asarray(values)
    draws = np.random.default_rng(seed).choice(found, (4000, len(found)))
    low, high = np.percentile(np.median(draws, axis=1), [2.5, 97.5])
    return float(np.median(found)), float(low), float(high)


def quiet() -> None:
    """No loading bars or advice between the figures."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def describe() -> str:
    """One line about what the figures were measured on."""
    return (
        f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"transformers {transformers.__version__}"
    )
