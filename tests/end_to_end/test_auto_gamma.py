"""Blocks whose number of draft tokens changes from step to step, 0 included."""

from collections.abc import Iterator
from itertools import chain, cycle, repeat
from weakref import WeakKeyDictionary

import pytest
import torch
from models import llama_pair, processing, prompts, requests, sliding, texts
from scipy.stats import chisquare
from vocabularies import TEXTS, pair_of

from easd.core.rules import EASD, Speculative
from easd.engine import auto_gamma
from easd.engine import generate as generating
from easd.engine.auto_gamma import AutoGamma
from easd.engine.batch import Batch
from easd.engine.generate import decode
from easd.engine.pair import Pair
from easd.engine.settings import Settings
from easd.errors import ConfigError

GATED = EASD(tau_h=1.5, tau_o=0.8, draft_at_bonus=True)
FIELDS = {
    "sampled": {"processing": processing(temperature=0.8, top_k=12, repetition_penalty=1.2)},
    "greedy": {"processing": processing(temperature=0, repetition_penalty=1.2)},
}


class Script:
    """Numbers of draft tokens in an order of its own; new prompts are read late after a 0."""

    def __init__(self, gammas: Iterator[int], *, draft_at_bonus: bool) -> None:
        self._gammas = gammas
        self._always_drafts = draft_at_bonus
        self.decodes = 0
        self.chosen: list[int] = []
        self.seen: list[tuple[int, list[tuple[int, int]]]] = []

    def fresh_key(self, key):
        return key

    @property
    def paused(self) -> bool:
        return self.chosen[-1:] == [0] and not self._always_drafts

    def choose(self, rows, behind):
        self.chosen.append(next(self._gammas))
        return self.chosen[-1]

    def observe(self, rows, blocks, seconds, *, behind, reading):
        assert seconds > 0
        assert reading >= 0
        self.seen.append((rows, list(blocks)))


SCHEDULES = {
    "every step another": lambda: cycle([3, 0, 1, 0, 0, 5, 2]),
    "a long pause": lambda: chain([2, 1], repeat(0, 25), repeat(4)),
    "first alone": lambda: chain(repeat(0, 30), cycle([8, 0])),
}


@pytest.fixture(autouse=True)
def nothing_learnt(monkeypatch):
    monkeypatch.setattr(auto_gamma, "_learnt", WeakKeyDictionary())


@pytest.fixture(params=SCHEDULES.values(), ids=SCHEDULES)
def script(request, monkeypatch):
    """Replaces what chooses by a script; returns the scripts in the order of the engines."""
    made = []

    def make(most, *, draft_at_bonus):
        made.append(Script(request.param(), draft_at_bonus=draft_at_bonus))
        return made[-1]

    monkeypatch.setattr(generating, "AutoGamma", make)
    return made


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("fields", FIELDS.values(), ids=FIELDS)
@pytest.mark.parametrize("rule", [Speculative(), GATED], ids=["speculative", "easd"])
def test_under_shared_noise_no_text_knows_how_many_tokens_were_drafted(
    rule, fields, batch_size, script
):
    asked = requests(prompts(4), max_new_tokens=32, **fields)
    common = {"rule": rule, "coupling": "shared", "batch_size": batch_size}
    fixed = texts(llama_pair(), asked, gamma=3, **common)
    assert texts(llama_pair(), asked, gamma="auto", **common) == fixed
    assert {0} < set(script[0].chosen)


def test_a_draft_with_another_tokenizer_catches_up_too(script, tmp_path, monkeypatch):
    monkeypatch.setenv("EASD_CACHE", str(tmp_path))
    pair = pair_of(("byte-level", "byte-fallback"))
    ids = [tuple(pair.tokenizer(text)["input_ids"][:20]) for text in TEXTS[:3]]
    found = []
    for gamma in (3, "auto"):
        settings = Settings(rule=Speculative(), coupling="shared", gamma=gamma, batch_size=2)
        done = {}
        for record in decode(pair, requests(ids, max_new_tokens=40), settings):
            done |= {row.request.number: row for row in record.rows if row.finished}
        found.append({number: row.new_ids for number, row in done.items()})
        assert sum(row.counts.accepted for row in done.values()) > 0
    assert found[0] == found[1]


@pytest.mark.parametrize("drafter", ["model", "prompt-lookup"])
def test_counts_and_what_the_chooser_sees_are_those_of_the_records(drafter, script):
    target, draft = llama_pair()
    asked = requests(prompts(5), max_new_tokens=30, eos=frozenset({2}))
    settings = Settings(rule=Speculative(), gamma="auto", drafter=drafter, batch_size=3)
    pair = Pair.of(target, draft if drafter == "model" else None)
    proposed, gained, rows = 0, [], {}
    for record in decode(pair, asked, settings):
        drafted = record.step.num_draft_tokens.tolist()
        proposed += sum(drafted)
        gained.append([len(tokens) for tokens in record.committed])
        assert max(drafted) <= script[0].chosen[len(gained) - 1]
        rows |= {row.request.number: row for row in record.rows}
    counts = sum((row.counts for row in rows.values()), start=type(rows[0].counts)())
    assert counts.proposed == proposed > 0
    assert counts.blocks == sum(map(len, gained))
    assert [[new for _, new in blocks] for _, blocks in script[0].seen] == gained
    assert len(script[0].chosen) == len(gained)


def test_a_decode_begins_with_what_the_last_of_its_kind_learnt(monkeypatch):
    made, real = [], AutoGamma
    monkeypatch.setattr(
        generating, "AutoGamma", lambda *a, **k: made.append(real(*a, **k)) or made[-1]
    )
    asked = requests(prompts(4), max_new_tokens=12)
    common = {"rule": Speculative(), "gamma": "auto"}
    for _ in range(3):
        texts(llama_pair(), asked, **common)
    assert [each.decodes for each in made] == [3]
    texts(llama_pair(), asked, **common | {"seed": 1, "batch_size": 2, "max_new_tokens": 30})
    assert [each.decodes for each in made] == [4]
    texts(llama_pair(), asked, **common | {"temperature": 0.5})
    texts(sliding("gemma3"), asked, **common)
    assert [each.decodes for each in made] == [4, 1, 1]


def first_tokens(monkeypatch, count=4000):
    """p of the first tokens where a row drafts none if it had one of some tokens there before."""
    pair, prompt = llama_pair(), prompts(1)[0]
    common = {"rule": Speculative(), "gamma": "auto", "batch_size": count}
    asked = requests([prompt] * count, max_new_tokens=3)
    begun = [text[0] for text in texts(pair, asked, **common)]

    def block_lengths(batch, gamma):
        drafts = [2 * (begun[row.request.number] % 2) for row in batch.rows]
        return [min(g, row.remaining - 1) for g, row in zip(drafts, batch.rows, strict=True)]

    monkeypatch.setattr(Batch, "block_lengths", block_lengths)
    found = torch.tensor([text[0] for text in texts(pair, asked, **common)])
    with torch.inference_mode():
        law = pair[0](torch.tensor([prompt])).logits[0, -1].softmax(-1)
    likely = count * law > 10

    def binned(values):
        return [*values[likely].tolist(), values[~likely].sum().item()]

    counts = found.bincount(minlength=len(law)).double()
    return chisquare(binned(counts), binned(count * law)).pvalue


def test_the_law_survives_what_was_learnt_from_the_same_requests(monkeypatch):
    assert first_tokens(monkeypatch) > 1e-4


def test_the_same_keys_again_would_be_seen(monkeypatch):
    """Planted: a decode that knows what came of these keys."""
    monkeypatch.setattr(AutoGamma, "fresh_key", lambda self, key: key)
    assert first_tokens(monkeypatch) < 1e-9


@pytest.mark.parametrize("coupling", ["maximal", "block"])
def test_a_real_chooser_decodes_whole_texts(coupling):
    asked = requests(prompts(4), max_new_tokens=24)
    common = {"rule": Speculative(), "coupling": coupling, "batch_size": 2}
    found = texts(llama_pair(), asked, gamma="auto", **common)
    assert [len(text) for text in found] == [24] * 4


@pytest.mark.parametrize("rule", ["easd", "cascade", "lenience", "fly"])
def test_a_rule_whose_law_knows_blocks_needs_a_number(rule):
    with pytest.raises(ConfigError, match=f"gamma = 'auto' .* {rule} .* give a number"):
        Settings(rule=rule, gamma="auto")
    Settings(rule=rule, gamma=3)


@pytest.mark.parametrize("rule", [Speculative(), GATED, "pool-everywhere", "target", "draft"])
def test_a_rule_whose_law_knows_no_blocks_takes_auto(rule):
    assert Settings(rule=rule, gamma="auto").most_gamma == 8
