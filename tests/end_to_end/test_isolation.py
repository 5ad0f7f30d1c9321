"""A request's own fault ends that request only; its neighbours keep the texts they have alone."""

import warnings
from copy import deepcopy
from dataclasses import dataclass, replace

import pytest
import torch
from models import llama_pair, prompts, requests, run

from easd import generate
from easd.core.rules import EASD, Rule, Speculative
from easd.engine.batch import StepRecord
from easd.engine.generate import decode, make_engine
from easd.engine.pair import Pair
from easd.engine.processing import Processing
from easd.engine.settings import Settings
from easd.errors import ConfigError, NumericsError

GATED = EASD(tau_h=1.5, tau_o=0.8)
TEXTS = [tuple(min(token, 20) for token in text) for text in prompts(6)]
POISON = 23  # A token whose embedding is NaN in the pairs below; no other prompt has it.


def spoiled(which):
    """A pair in which one model has no finite embedding for one token."""
    pair = [deepcopy(model) for model in llama_pair()]
    with torch.no_grad():
        pair[which].get_input_embeddings().weight[POISON] = float("nan")
        for model in pair:
            model.get_output_embeddings().weight[POISON] = 0  # seldom drawn
    return tuple(pair)


def banned(ids, scores):
    """A processor that never lets the token be drawn."""
    scores = scores.clone()
    scores[:, POISON] = float("-inf")
    return scores


def outcome(pair, asked, **settings):
    """Ids of the texts that ended well, and errors of the others, by number."""
    failed = {}
    done = {}
    settings = {"batch_size": len(asked), "rule": GATED, **settings}
    for record in decode(
        Pair.of(*pair),
        asked,
        Settings(**settings),
        lambda row: failed.update({row.request.number: row.error}),
    ):
        assert all(row.error is None for row in record.rows)
        assert len(record.rows) == len(record.committed) == len(record.step.target_probs)
        done |= {row.request.number: row.ids for row in record.rows if row.finished}
    return done, failed


def same_but(asked, bad, pair=None, batch_size=None, **settings):
    """The errors of `bad`, once the others have been compared with what they are without them."""
    pair = pair or llama_pair()
    batch_size = batch_size or len(asked)
    done, failed = outcome(pair, asked, batch_size=batch_size, **settings)
    good = [request for request in asked if request.number not in bad]
    alone = {n: row.ids for n, row in run(pair, good, rule=GATED, batch_size=1).items()}
    assert done == alone
    assert failed.keys() == bad
    return failed


@pytest.mark.parametrize("batch_size", [2, 6])
@pytest.mark.parametrize("which", [0, 1], ids=["target", "draft"])
def test_nan_logits_of_one_row(which, batch_size):
    """Also in the rows that take its slot next, where masked NaN would still be NaN."""
    texts = [*TEXTS]
    texts[1] = (5, 6, POISON, 7, 8, 9, 4, 5, 6, 7, 8, 9, 5)
    texts[3] = (POISON,)
    asked = requests(texts, processing=Processing((banned,)), max_new_tokens=6)
    failed = same_but(asked, {1, 3}, spoiled(which), batch_size=batch_size)
    name = ["target", "draft"][which]
    assert all(isinstance(error, NumericsError) for error in failed.values())
    assert all(f"the {name}'s logits are NaN" in str(error) for error in failed.values())


def test_a_cancelled_prompt_leaves_no_nan_in_its_slot():
    pair = spoiled(0)
    engine = make_engine(Pair.of(*pair), Settings(rule=GATED), num_rows=2)
    kept, bad, late = (
        replace(request, processing=Processing((banned,)), max_new_tokens=20)
        for request in requests([TEXTS[2], (POISON,) * 40, TEXTS[4]])
    )
    engine.submit(kept)
    engine.submit(bad)
    engine.step(16)
    engine.cancel(bad)
    engine.submit(late)
    done = {}
    while engine.busy:
        for record in engine.step(16):
            assert isinstance(record, StepRecord)
            done |= {row.request.number: row.ids for row in record.rows if row.finished}
    alone = run(pair, [kept, late], rule=GATED, batch_size=1)
    assert done == {number: row.ids for number, row in alone.items()}


class Broken(Exception):
    pass


def raising(ids, scores):
    """A processor or criterion that breaks once the text has nine tokens more than a prompt."""
    if ids.shape[1] > 15:
        raise Broken("cannot go on")
    return scores


def stopping(text, scores):
    raising(text, scores)
    return False


@pytest.mark.parametrize("greedy", [True, False])
def test_a_processor_that_raises(greedy):
    asked = requests(TEXTS)
    asked[2] = replace(asked[2], processing=Processing((raising,), greedy=greedy))
    failed = same_but(asked, {2})
    assert isinstance(failed[2], Broken)


def test_a_criterion_that_raises():
    asked = requests(TEXTS)
    asked[4] = replace(asked[4], criteria=(stopping,))
    assert isinstance(same_but(asked, {4})[4], Broken)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fragile(Rule):
    """A user's own rule, the target's law, that breaks on blocks of fewer than `least` tokens."""

    least: int

    def law(self, step):
        if step.draft_tokens.shape[1] and bool((step.num_draft_tokens < self.least).any()):
            raise Broken("the law has no value here")
        return step.target_probs


def test_a_rule_that_raises_for_all_of_its_rows():
    asked = requests(TEXTS)
    for number in (0, 3):
        asked[number] = replace(asked[number], rule=Fragile(least=9))
    failed = same_but(asked, {0, 3})
    assert all(isinstance(error, Broken) for error in failed.values())


def test_a_rule_that_raises_for_one_row_of_many():
    """Row 2 has room for three tokens, of which two can be drafted."""
    lengths = [9, 9, 3, 9, 9, 9]
    asked = [
        replace(request, rule=Fragile(least=4), max_new_tokens=length)
        for request, length in zip(requests(TEXTS), lengths, strict=True)
    ]
    engine = make_engine(Pair.of(*llama_pair()), Settings(rule=GATED), num_rows=6)
    for request in asked:
        engine.submit(request)
    *records, failure = engine.step()
    assert isinstance(failure.error, Broken)
    assert failure.row.request is asked[2]
    plain = make_engine(Pair.of(*llama_pair()), Settings(rule=GATED), num_rows=6)
    for request in asked:
        plain.submit(replace(request, rule=Fragile(least=0)))
    (whole,) = plain.step()
    found = {row.request.number: row.ids for record in records for row in record.rows}
    wanted = {row.request.number: row.ids for row in whole.rows}
    del wanted[2]
    assert found == wanted


def test_generate_returns_what_failed_beside_the_rest():
    pair = spoiled(0)
    given = [TEXTS[2], (5, POISON, 6), TEXTS[3]]
    with pytest.warns(UserWarning, match="1 of 3 texts failed.* text 1: the target's logits"):
        good, bad, other = generate(*pair, given, max_new_tokens=4, rule=Speculative(), seed=3)
    assert (good.finish_reason, bad.finish_reason) == ("length", "error")
    assert isinstance(bad.error, NumericsError)
    assert bad.token_ids == []
    assert other.error is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(NumericsError):
            generate(*pair, [(5, POISON)], max_new_tokens=4)


def test_shared_coupling_does_not_join_a_batch_without():
    engine = make_engine(Pair.of(*llama_pair()), Settings(rule=GATED), num_rows=2)
    with pytest.raises(ConfigError, match="decode such requests by themselves"):
        engine.submit(replace(requests(TEXTS[:1])[0], coupling="shared"))
