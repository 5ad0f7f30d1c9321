"""Prompts for experiments on any pair."""

from __future__ import annotations

import json
from pathlib import Path

import transformers

from easd import Pair
from easd.engine.chat import encode
from easd.pairs import lab

transformers.logging.disable_progress_bar()
_PROMPTS = Path(__file__).parents[1] / "benchmarks" / "prompts.jsonl"


def pair_prompts(pair: Pair, count: int, seed: int) -> list[list[int]]:
    """Returns token ids of a lab pair's problems; for other pairs, of word problems in turn."""
    if pair.name in lab.RECIPES:
        texts = [problem.prompt for problem in lab.problems(pair.name, count, seed)]
    else:
        lines = _PROMPTS.read_text(encoding="utf-8").splitlines()
        texts = [json.loads(lines[index % len(lines)])["problem"] for index in range(count)]
    return [encode(text, pair.tokenizer) for text in texts]
