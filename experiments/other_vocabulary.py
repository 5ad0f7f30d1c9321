"""What a draft of another family is worth: acceptance, tokens per forward, and the map's cost.

    EASD_DATA=FOLDER python experiments/other_vocabulary.py smollm2-gemma3 --task gsm8k:20

Texts are decoded under shared noise, so lossless speculation must write what the target writes
alone; every position also says what the intersection of the vocabularies would have accepted.
"""

import argparse
import time
from dataclasses import replace

import torch
from rich.console import Console

from easd import load_pair
from easd.cli.grid_options import load_tasks
from easd.core.rules import Speculative, TargetOnly
from easd.engine import generate, other_vocabulary
from easd.engine.record import Recorder
from easd.engine.settings import Settings
from easd.evaluate.config import StudyConfig
from easd.evaluate.prompting import encode_item


class Measured(other_vocabulary.OtherVocabularyDrafter):
    """Keeps what one-to-one tokens alone would propose; counts processor time of the mapping."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        Measured.latest = self
        self.mapping = 0.0
        self.intersection = []
        self._measuring = 0.0

    def _next(self, rows, drafted, needed):
        if drafted.shape[1] == 0:
            self.intersection = []
        began, self._measuring = time.process_time(), 0.0
        found = super()._next(rows, drafted, needed)
        self.mapping += time.process_time() - began - self._measuring
        return found

    def _probs(self, missing, keep):
        began = time.process_time()
        probs = super()._probs(missing, keep)
        single = replace(self.words, first=self.words.first.masked_fill(~self.words.single, -1))
        kept = single.pushforward(probs[:, -1], self.vocab_size)
        self.intersection.append(kept / kept.sum(-1, keepdim=True).clamp_min(1e-30))
        self._measuring = time.process_time() - began
        return probs


class Sums:
    """What speculation would accept at temperature 1, summed over examined positions."""

    def __init__(self):
        self.positions = self.accepted = self.kept_by_intersection = self.reachable = 0.0

    def add(self, step, num_accepted, drafter):
        """Adds the positions of a step up to each row's first refusal."""
        for row, (count, kept) in enumerate(
            zip(step.num_draft_tokens.tolist(), num_accepted.tolist(), strict=True)
        ):
            for position in range(min(count, kept + 1)):
                target = step.target_probs[row, position]
                self.positions += 1
                proposal = step.draft_probs[row, position]
                self.accepted += float(torch.minimum(target, proposal).sum())
                if drafter is not None:
                    other = drafter.intersection[position][row]
                    self.kept_by_intersection += float(torch.minimum(target, other).sum())
                    top = target.topk(5).indices
                    self.reachable += float(torch.isin(top, drafter.words.reachable).float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pair")
    parser.add_argument("--task", default="gsm8k:20")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--gamma", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=10)
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    options = parser.parse_args()
    torch.set_num_threads(1)
    other_vocabulary.OtherVocabularyDrafter = Measured
    pair = load_pair(options.pair, dtype=getattr(torch, options.dtype))
    name, _, count = options.task.partition(":")
    config = StudyConfig.from_dict(
        {"pair": options.pair, "tasks": [{"name": name, "limit": int(count)}]}
    )
    (task,) = load_tasks(config, Console(stderr=True))
    prompts = [encode_item(item, task, pair.tokenizer, None) for item in task.items]
    texts, sums = [], Sums()
    for rule in (TargetOnly(), Speculative()):
        settings = Settings(
            rule=rule,
            coupling="shared",
            gamma=options.gamma,
            max_new_tokens=options.tokens,
            batch_size=options.batch_size,
        )
        requests = generate.make_requests(pair, prompts, settings)
        recorder, done, began = Recorder(rule), {}, time.process_time()
        measuring = 0.0
        for record in generate.decode(pair, requests, settings):
            recorder.add(record)
            done |= {row.request.number: row.new_ids for row in record.rows if row.finished}
            if rule.models == "both":
                paused = time.process_time()
                drafter = Measured.latest if pair.draft_tokenizer else None
                sums.add(record.step, record.decision.num_accepted, drafter)
                measuring += time.process_time() - paused
        seconds, total = time.process_time() - began - measuring, recorder.total
        texts.append(done)
        print(f"{rule.name}: {total.tokens} tokens, {seconds:.1f} s of processor time", flush=True)
    same = sum(texts[0][number] == texts[1][number] for number in texts[0])
    print(f"texts as the target alone writes them: {same} of {len(texts[0])}")
    print(f"accepted of examined: {total.accepted / total.examined:.3f}")
    print(f"tokens per target forward: {total.tokens / total.blocks:.3f}")
    share = sums.accepted / sums.positions
    print(f"expected acceptance: {share:.3f} ({sums.positions:.0f} positions)")
    if pair.draft_tokenizer is not None:
        drafter = Measured.latest
        print(f"of the intersection: {sums.kept_by_intersection / sums.positions:.3f}")
        print(f"reachable of the target's top 5: {sums.reachable / sums.positions:.3f}")
        print(f"reading and mapping: {drafter.mapping:.2f} s, {drafter.mapping / seconds:.1%}")


if __name__ == "__main__":
    main()
