"""Drafts with another tokenizer: opinions by brute force, and texts that are the target's."""

from dataclasses import replace
from functools import cache
from io import StringIO

import numpy as np
import pytest
import torch
from enumeration import emitted
from models import processing, requests, uncached
from rich.console import Console
from vocabularies import (
    TEXTS,
    by_hand,
    byte_fallback,
    byte_level,
    model_of,
    numbers,
    pair_of,
    unigram,
)

from easd.core.rules import EASD, Speculative
from easd.core.rules.pool import Pool
from easd.diagnose import reference_pass, tuning_pass
from easd.diagnose.diagnosis import diagnose
from easd.diagnose.other_vocabulary_pass import OtherVocabularyPass
from easd.diagnose.printing import render
from easd.diagnose.reference_pass import read_positions, read_steps
from easd.diagnose.tuning import tune
from easd.diagnose.wording import percent
from easd.engine.chat import encode_turns
from easd.engine.generate import decode, make_engine, make_requests
from easd.engine.other_vocabulary import Reading
from easd.engine.pair import Pair
from easd.engine.request import Row
from easd.engine.settings import Settings
from easd.engine.vocabulary import vocabulary_map

DIRECTIONS = [
    ("byte-level", "byte-fallback"),
    ("byte-fallback", "byte-level"),
    ("byte-level", "unigram"),
]
PAIRS = pytest.mark.parametrize("kinds", DIRECTIONS, ids=lambda kinds: " from ".join(kinds))
GATE = EASD(tau_h=2.0, tau_o=0.0, draft_at_bonus=True)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("EASD_CACHE", str(tmp_path_factory.getbasetemp() / "maps"))


def prompts(pair: Pair) -> list[tuple[int, ...]]:
    """Texts of different lengths and scripts, one of a single token, one with special tokens."""
    found = [
        tuple(pair.tokenizer(text)["input_ids"][:length])
        for text, length in zip(TEXTS, (9, 1, 40, 23), strict=False)
    ]
    return [*found, (*found[0][:4], pair.tokenizer.eos_token_id, *found[0])]


def decoded(pair: Pair, asked, **settings) -> dict[int, Row]:
    settings = {"rule": Speculative(), "coupling": "shared", "gamma": 3, **settings}
    done = {}
    for record in decode(pair, asked, Settings(**settings)):
        done |= {row.request.number: row for row in record.rows if row.finished}
    return done


@PAIRS
def test_opinions_are_what_a_slow_reading_finds(kinds):
    pair = pair_of(kinds)
    asked = requests(prompts(pair)[:3], max_new_tokens=8)
    checked = silent = 0
    for record in decode(pair, asked, Settings(rule=GATE, gamma=2, coupling="maximal")):
        for place, (row, start) in enumerate(zip(record.rows, record.starts, strict=True)):
            count = int(record.step.num_draft_tokens[place])
            drafted = record.step.draft_tokens[place, :count].tolist()
            for position in range(count + 1):
                with torch.no_grad():
                    expected = by_hand(pair, [*row.ids[:start], *drafted[:position]])
                found = record.step.draft_probs[place, position]
                assert (found - expected).abs().max() < 1e-12
                checked, silent = checked + 1, silent + (expected.sum() == 0)
    assert checked > 30
    assert silent or kinds[0] != "byte-level"


@cache
def by_digits():
    return byte_level(300, digits=True)


@pytest.mark.parametrize("kind", [unigram, by_digits], ids=["unigram", "digits"])
def test_a_draft_knows_inside_its_own_numbers_how_they_may_go_on(kind):
    """Wherever the target has written the first digits of what is one token of the draft."""
    pair = Pair.of(model_of(kind), model_of(numbers, 1), kind(), numbers())
    texts = ["the 1", "the 12", "the 125", "a 2", "a7", "1", "2 12"]
    asked = requests([tuple(pair.tokenizer(text)["input_ids"]) for text in texts], max_new_tokens=3)
    settings = Settings(rule=GATE, gamma=2, batch_size=5, coupling="maximal")
    inside = 0
    for record in decode(pair, asked, settings):
        for place, (row, start) in enumerate(zip(record.rows, record.starts, strict=True)):
            count = int(record.step.num_draft_tokens[place])
            drafted = record.step.draft_tokens[place, :count].tolist()
            for position in range(count + 1):
                text = [*row.ids[:start], *drafted[:position]]
                if kind is unigram and pair.tokenizer.unk_token_id in text:
                    continue
                with torch.no_grad():
                    expected = by_hand(pair, text)
                    plain = by_hand(pair, text, inside=False)
                found = record.step.draft_probs[place, position]
                assert (found - expected).abs().max() < 1e-12
                inside += bool((expected - plain).abs().max() > 1e-6)
    assert inside >= 5
    words = [tuple(pair.tokenizer(text)["input_ids"]) for text in ("120 35", "is 10 and 777")]
    for read in read_steps(pair, [(asked[0].prompt, words[at], f"{at}") for at in (0, 1)]):
        for place, number in enumerate(read.batch.numbers):
            for at in range(len(words[number])):
                with torch.no_grad():
                    expected = by_hand(pair, [*asked[0].prompt, *words[number][:at]])
                assert (read.step.draft_probs[place, at] - expected).abs().max() < 1e-12


@PAIRS
def test_what_is_emitted_has_the_targets_law(kinds):
    """Summed over every draft token, with the distribution that these were drawn from."""
    pair = pair_of(kinds)
    for record in decode(
        pair, requests(prompts(pair)[:2], max_new_tokens=3), Settings(rule=Speculative(), gamma=1)
    ):
        if record.step.num_draft_tokens.min() > 0:
            law = emitted(Speculative(), record.step, 0)
            assert (law - record.step.target_probs[:, 0]).abs().max() < 1e-12


PLANTED = {
    "duplicates dropped": lambda words: replace(words, first=_last_of_each(words.first)),
    "intersection": lambda words: replace(words, first=words.first.masked_fill(~words.single, -1)),
    "one off": lambda words: replace(words, first=words.first.roll(1)),
}


def _last_of_each(first: torch.Tensor) -> torch.Tensor:
    kept = torch.full_like(first, -1)
    for token in first.unique():
        at = (first == token).nonzero()[-1]
        kept[at] = token
    return kept


@pytest.mark.parametrize("planted", PLANTED.values(), ids=PLANTED)
def test_planted_faults_of_the_map_are_seen(planted, monkeypatch):
    pair = pair_of(DIRECTIONS[0])
    spoilt = planted(vocabulary_map(pair.tokenizer, pair.draft_tokenizer))
    monkeypatch.setattr("easd.engine.vocabulary.vocabulary_map", lambda *_: spoilt)
    with pytest.raises(AssertionError):
        test_opinions_are_what_a_slow_reading_finds(DIRECTIONS[0])


def test_planted_faults_of_the_reading_are_seen(monkeypatch):
    """A context that is encoded token by token, and numbers taken to end where the text does."""
    whole = Reading._append

    def piecewise(self, piece, *, final=False):
        whole(self, piece, final=final)
        self._settle([self.segment])
        self.segment = ""

    with monkeypatch.context() as patch:
        patch.setattr(Reading, "_append", piecewise)
        with pytest.raises(AssertionError):
            test_opinions_are_what_a_slow_reading_finds(DIRECTIONS[0])
    monkeypatch.setattr(Reading, "begun", lambda *_: None)
    with pytest.raises(AssertionError):
        test_a_draft_knows_inside_its_own_numbers_how_they_may_go_on(by_digits)


@PAIRS
@pytest.mark.parametrize(
    "settings", [{}, {"gamma": 1, "batch_size": 2, "least_block_prob": 0.2}], ids=str
)
def test_the_text_is_the_targets_token_for_token(kinds, settings):
    pair = pair_of(kinds)
    asked = requests(prompts(pair), max_new_tokens=14, eos=frozenset({pair.tokenizer.eos_token_id}))
    found = decoded(pair, asked, **{"batch_size": 6, **settings})
    for request in asked:
        alone = uncached(pair.target, request)
        text = found[request.number].new_ids
        assert text == alone[: len(text)]
        assert len(text) == 14 or text[-1] in request.eos
    assert sum(row.counts.accepted for row in found.values()) > 0


def test_settings_hold_as_with_any_draft():
    pair = pair_of(DIRECTIONS[0])
    for options in (
        {"temperature": 0.0},
        {"temperature": 0.7, "top_p": 0.8, "rule": Speculative(), "draft_temperature": 0.3},
        {"repetition_penalty": 1.3, "top_k": 9},
    ):
        asked = requests(prompts(pair)[:4], max_new_tokens=10, processing=processing(**options))
        alone = decoded(
            Pair.of(pair.target), asked, **{**options, "rule": "target", "draft_temperature": None}
        )
        found = decoded(pair, asked, batch_size=4, **options)
        assert [found[n].new_ids for n in range(4)] == [alone[n].new_ids for n in range(4)]


@pytest.mark.parametrize(
    "rule",
    [GATE, Pool(tau_h=0.5, tau_o=0.0, a=1.2, b=0.6, draft_at_bonus=True)],
    ids=["easd", "pool"],
)
def test_a_gated_rules_text_does_not_depend_on_blocks_or_batches(rule):
    pair = pair_of(DIRECTIONS[0])
    asked = requests(prompts(pair)[:3], max_new_tokens=10)
    one = decoded(pair, asked, rule=rule, gamma=1, batch_size=1)
    many = decoded(pair, asked, rule=rule, gamma=4, batch_size=4)
    assert [one[n].new_ids for n in range(3)] == [many[n].new_ids for n in range(3)]
    assert sum(row.counts.penalised for row in many.values()) > 0


def test_long_prompts_are_cached_in_pieces_and_rows_come_and_go():
    pair = pair_of(DIRECTIONS[1])
    long = tuple(pair.tokenizer(" ".join(TEXTS) * 3)["input_ids"])
    asked = requests([long, *prompts(pair)[:4]], max_new_tokens=6)
    engine = make_engine(pair, Settings(rule=Speculative(), coupling="shared", gamma=2), num_rows=2)
    for request in asked:
        engine.submit(request)
    done = {}
    while engine.busy:
        for record in engine.step(prefill_tokens=40):
            done |= {row.request.number: row.new_ids for row in record.rows if row.finished}
    assert [done[n] for n in range(5)] == [uncached(pair.target, request) for request in asked]


def test_a_draft_falls_silent_where_its_window_ends():
    pair = pair_of(DIRECTIONS[0])
    draft = type(pair.draft)(pair.draft.config)
    draft.load_state_dict(pair.draft.state_dict())
    short = Pair.of(
        pair.target, draft.to(torch.float64).eval(), pair.tokenizer, pair.draft_tokenizer
    )
    draft.config.max_position_embeddings = 24
    try:
        asked = requests(prompts(pair), max_new_tokens=10)
        found = decoded(short, asked, batch_size=6)
    finally:
        draft.config.max_position_embeddings = 2048
    assert [found[r.number].new_ids for r in asked] == [uncached(pair.target, r) for r in asked]
    assert [found[n].counts.proposed > 0 for n in (0, 2)] == [True, False]


def test_a_prompt_of_its_own_is_what_the_draft_reads():
    pair = pair_of(DIRECTIONS[0])
    (prompt,) = prompts(pair)[:1]
    own = tuple(pair.draft_tokenizer(TEXTS[4])["input_ids"])
    asked = [replace(requests([prompt], max_new_tokens=4)[0], draft_prompt=own)]
    for record in decode(pair, asked, Settings(rule=GATE, gamma=2)):
        with torch.no_grad():
            logits = pair.draft(torch.tensor([own])).logits[:, -1]
        words = vocabulary_map(pair.tokenizer, pair.draft_tokenizer)
        expected = words.pushforward(logits.softmax(-1), pair.vocab_size)[0]
        assert (record.step.draft_probs[0, 0] - expected / expected.sum()).abs().max() < 1e-12
        break


def test_each_model_reads_a_chat_in_its_own_template():
    target, draft = byte_level(), byte_fallback()
    chat = "{% for turn in messages %}<start_of_turn>{{ turn.content }}<end_of_turn>{% endfor %}"
    turns = [{"role": "user", "content": "the baker"}]
    try:
        target.chat_template = chat.replace("start_of_turn", "|im_start|")
        pair = Pair.of(model_of(byte_level), model_of(byte_fallback, 1), target, draft)
        prompt = encode_turns(turns, target)
        (request,) = make_requests(pair, [prompt], Settings())
        assert request.draft_prompt is None
        draft.chat_template = chat
        (request,) = make_requests(pair, [prompt], Settings())
        assert request.draft_prompt == tuple(encode_turns(turns, draft))
        (request,) = make_requests(pair, [list(prompt)], Settings())
        assert request.draft_prompt is None
    finally:
        target.chat_template = draft.chat_template = None


@PAIRS
def test_a_diagnosis_reads_a_text_once_and_asks_anew_where_it_must(kinds):
    pair = pair_of(kinds)
    written = [pair.tokenizer(TEXTS[at], add_special_tokens=False)["input_ids"] for at in (4, 2)]
    asked = prompts(pair)
    texts = [(asked[at], tuple(ids[:20]), f"{at}") for at, ids in enumerate(written)]
    passed = []

    def kept(*given):
        passed.append(OtherVocabularyPass(*given))
        return passed[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference_pass, "_POSITIONS_AT_ONCE", 7)
        patch.setattr(reference_pass, "_MOST_PROBS", 7 * 2 * pair.vocab_size)
        patch.setattr(reference_pass, "OtherVocabularyPass", kept)
        for read in read_steps(pair, texts):
            for place, number in enumerate(read.batch.numbers):
                prompt, reference, _ = texts[number]
                for at in range(read.right.shape[1]):
                    if read.begin + at < len(reference):
                        with torch.no_grad():
                            expected = by_hand(pair, [*prompt, *reference[: read.begin + at]])
                        assert read.there[place, at] == (expected.sum() > 0)
                        if expected.sum() > 0:
                            found = read.step.draft_probs[place, at]
                            assert (found - expected).abs().max() < 1e-12
    (counted,) = passed
    assert counted.aligned > counted.anew
    assert counted.anew or "unigram" in kinds
    assert counted.aligned + counted.anew + counted.silent == sum(len(r) for _, r, _ in texts)
    table = read_positions(pair, texts)
    assert len(table) == counted.aligned + counted.anew
    words = vocabulary_map(pair.tokenizer, pair.draft_tokenizer)
    found = diagnose(table, tau_h=1.5).draft_vocabulary
    assert (found.coverage, found.one_to_one) == (words.coverage, words.one_to_one)
    assert found.aligned + found.anew == len(table)
    console = Console(file=StringIO(), width=500)
    render(diagnose(table, tau_h=1.5), console)
    said = console.file.getvalue()
    assert f"{percent(words.one_to_one)} to exactly one" in said
    assert f"{found.silent:,} are left out" in said


def test_tuning_reads_such_pairs_too():
    """The same positions as a diagnosis, at which both models have an opinion."""
    pair = pair_of(DIRECTIONS[0])
    texts = [
        (asked, tuple(pair.tokenizer(text, add_special_tokens=False)["input_ids"][:20]), text)
        for asked, text in zip(prompts(pair), TEXTS[1:5], strict=False)
    ]
    read = tuning_pass.read(pair, texts, Settings())
    assert len(read.positions) == len(read_positions(pair, texts))
    found = tune(read, gamma=3, unique_solution=False)
    assert found.texts == len(texts)
    assert all(np.isfinite(each.right.value) for each in found.candidates)
