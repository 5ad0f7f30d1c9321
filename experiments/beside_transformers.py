"""Drafts with another tokenizer beside those of transformers, text by text and in turns.

    EASD_DATA=FOLDER python experiments/beside_transformers.py smollm2-gemma3 --out rows.jsonl

transformers decodes greedily with drafts that it encodes anew as text, and samples with drafts of
tokens that both vocabularies share. `target` is the target alone in transformers, `alone` here.
Rows are appended, so that a run that was stopped goes on.
"""

import argparse
import json
import time
from itertools import product
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from transformers import set_seed
from transformers.generation.candidate_generator import AssistedCandidateGenerator

from easd import Speculative, load_pair
from easd.cli.grid_options import load_tasks
from easd.core.rules import TargetOnly
from easd.engine.generate import decode, make_requests
from easd.engine.record import Recorder
from easd.engine.settings import Settings
from easd.evaluate.config import StudyConfig
from easd.evaluate.prompting import encode_item
from easd.speed.bench.systems import assistant_of
from easd.stats.bootstrap import bootstrap

SYSTEMS = ("target", "assisted", "assisted by default", "alone", "speculative")
RATIOS = (("speculative", "assisted"), ("speculative", "assisted by default"))
COUNTS = ("tokens", "forwards", "examined", "accepted", "seconds")


class Counts:
    """Counts a target's forwards, and draft tokens that transformers accepts and examines."""

    def __init__(self, target):
        self.forwards = self.accepted = self.examined = 0
        target.register_forward_hook(self._add_forward)
        update = AssistedCandidateGenerator.update_candidate_strategy

        def counted(generator, input_ids, scores, num_matches):
            drafted = scores.shape[1] - 1
            self.accepted += int(num_matches)
            self.examined += min(drafted, int(num_matches) + 1)
            return update(generator, input_ids, scores, num_matches)

        AssistedCandidateGenerator.update_candidate_strategy = counted

    def _add_forward(self, *_):
        self.forwards += 1


def theirs(system, pair, prompt, options, temperature, counts):
    """Decodes with transformers' `generate`; returns the new ids and a row's counts."""
    given = {}
    if system != "target":
        given = {
            "assistant_model": assistant_of(pair),
            "tokenizer": pair.tokenizer,
            "assistant_tokenizer": pair.draft_tokenizer,
        }
        drafting = assistant_of(pair).generation_config
        by_default = system.endswith("default")
        drafting.num_assistant_tokens = 20 if by_default else options.gamma
        drafting.num_assistant_tokens_schedule = "constant"
        drafting.assistant_confidence_threshold = 0.4 if by_default else 0.0
    sampling = {"do_sample": False}
    if temperature:
        sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    counts.forwards = counts.accepted = counts.examined = 0
    ids = torch.tensor([prompt])
    written = pair.target.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=options.tokens,
        pad_token_id=0,
        eos_token_id=pair.end_tokens,
        **given,
        **sampling,
    )[0, len(prompt) :].tolist()
    # A forward of the whole prompt precedes the first draft.
    row = {name: getattr(counts, name) for name in ("forwards", "examined", "accepted")}
    return written, row


def ours(system, pair, prompt, options, temperature, seed):
    """Decodes with the engine; returns the new ids and a row's counts."""
    rule = TargetOnly() if system == "alone" else Speculative()
    settings = Settings(
        rule=rule,
        coupling="shared",
        gamma=options.gamma,
        temperature=temperature,
        max_new_tokens=options.tokens,
        batch_size=1,
        seed=seed,
    )
    recorder, written = Recorder(rule), []
    for record in decode(pair, make_requests(pair, [prompt], settings), settings):
        recorder.add(record)
        written = next((row.new_ids for row in record.rows if row.finished), written)
    total = recorder.total
    found = {"forwards": total.blocks, "examined": total.examined, "accepted": total.accepted}
    return list(written), found


def decode_missing(options, rows):
    """Decodes every text with every system in turns, and appends a row for each."""
    pair, (name, _, count) = load_pair(options.pair), options.task.partition(":")
    config = {"pair": options.pair, "tasks": [{"name": name, "limit": int(count)}]}
    (task,) = load_tasks(StudyConfig.from_dict(config), Console(stderr=True))
    prompts = [encode_item(item, task, pair.tokenizer, None) for item in task.items]
    counts = Counts(pair.target)
    done = {(row["temperature"], row["text"], row["system"]) for row in rows}
    for temperature, (number, prompt) in product((0.0, 1.0), enumerate(prompts)):
        first = number % len(SYSTEMS)
        for system in SYSTEMS[first:] + SYSTEMS[:first]:
            if (temperature, number, system) in done:
                continue
            set_seed(number)
            began = time.process_time()
            if system in ("alone", "speculative"):
                found = ours(system, pair, prompt, options, temperature, number)
            else:
                found = theirs(system, pair, prompt, options, temperature, counts)
            row = {
                "temperature": temperature,
                "text": number,
                "system": system,
                "seconds": time.process_time() - began,
                "tokens": len(found[0]),
                **found[1],
                "ids": found[0],
            }
            rows.append(row)
            with options.out.open("a") as file:
                file.write(json.dumps(row) + "\n")


def report(rows, temperature):
    """Prints one line a system, and ratios of tokens a second."""
    table = {
        system: {
            row["text"]: row
            for row in rows
            if row["system"] == system and row["temperature"] == temperature
        }
        for system in SYSTEMS
    }
    texts = sorted(set.intersection(*(set(found) for found in table.values())))
    print(f"temperature {temperature:g}, {len(texts)} texts")
    sums = {}
    for system, found in table.items():
        total = {name: sum(found[text][name] for text in texts) for name in COUNTS}
        sums[system] = {name: np.array([found[text][name] for text in texts]) for name in COUNTS}
        alone = table["alone" if system in ("alone", "speculative") else "target"]
        same = sum(found[text]["ids"] == alone[text]["ids"] for text in texts)
        kept = total["accepted"] / total["examined"] if total["examined"] else float("nan")
        per_forward, speed = (total["tokens"] / total[name] for name in ("forwards", "seconds"))
        print(
            f"  {system:20} kept {kept:.3f}  tokens a forward {per_forward:.2f}"
            f"  tokens a second {speed:.2f}  texts as the target alone {same} of {len(texts)}"
        )
    for one, other in RATIOS:
        a, b = sums[one], sums[other]

        def ratio(drawn, a=a, b=b):
            speeds = [drawn @ each["tokens"] / (drawn @ each["seconds"]) for each in (a, b)]
            return speeds[0] / speeds[1]

        value = float(ratio(np.ones(len(texts))))
        found = bootstrap(ratio, len(texts))
        print(f"  {one} / {other}: {value:.2f} [{found.low:.2f}, {found.high:.2f}]")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pair")
    parser.add_argument("--task", default="gsm8k:12")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--gamma", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    if options.out.exists():
        rows = [json.loads(line) for line in options.out.read_text().splitlines()]
    decode_missing(options, rows)
    for temperature in (0.0, 1.0):
        report(rows, temperature)


if __name__ == "__main__":
    main()
