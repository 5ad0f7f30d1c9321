"""Logits processors in blocks of draft tokens, and logits that leave nothing to draw from."""

from dataclasses import dataclass, replace

import pytest
import torch
from models import (
    DEVICE,
    fresh_pair,
    llama_pair,
    processing,
    prompts,
    requests,
    run,
    texts,
)
from transformers.generation import logits_process as hf

from easd.core.rules import EASD, Speculative, TargetOnly
from easd.engine.generate import decode
from easd.engine.pair import Pair
from easd.engine.processing import NoEndBefore, Processing
from easd.engine.sampling import raised
from easd.engine.settings import Settings
from easd.errors import NumericsError

GATED = EASD(tau_h=1.5, tau_o=0.8)
TEXTS = prompts(12)


def poisoned(model, *, after):
    """`model` with NaN logits from the forward after `after` on."""
    calls = []

    def spoil(module, args, output):
        calls.append(1)
        if len(calls) > after:
            output.logits[:] = float("nan")

    model.register_forward_hook(spoil)
    return model


@pytest.mark.parametrize("greedy", [False, True])
@pytest.mark.parametrize("which", ["target", "draft"])
@pytest.mark.parametrize("rule", [Speculative(), GATED], ids=str)
def test_nan_logits_are_one_clear_error(which, greedy, rule):
    target, draft = fresh_pair()
    poisoned(target if which == "target" else draft, after=5)
    asked = requests(TEXTS[:3], processing=processing(temperature=0 if greedy else 1))
    with pytest.raises(NumericsError, match=f"the {which}'s logits are NaN") as caught:
        texts((target, draft), asked, rule=rule)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("greedy", [False, True])
def test_a_processor_that_bans_everything_is_one_clear_error(greedy):
    def ban(ids, scores):
        return scores.fill_(float("-inf")) if ids.shape[1] > 8 else scores

    asked = requests(TEXTS[:3], processing=Processing((ban,), greedy=greedy))
    with pytest.raises(NumericsError, match="leave no token to choose"):
        texts(llama_pair(), asked, rule=GATED)


@pytest.mark.parametrize("greedy", [False, True])
@pytest.mark.parametrize("rule", [Speculative(), GATED], ids=str)
def test_a_draft_that_knows_no_allowed_token_is_overruled(greedy, rule):
    """A reduced head leaves -inf on most of the vocabulary; a grammar may allow only those."""
    target, draft = fresh_pair()

    def reduce_head(module, args, output):
        output.logits[..., 12:] = float("-inf")

    draft.register_forward_hook(reduce_head)
    allowed = [13, 14, 15]

    def grammar(ids, scores):
        only = torch.full_like(scores, float("-inf"))
        only[:, allowed] = scores[:, allowed]
        return only

    asked = requests(TEXTS[:3], processing=Processing((grammar,), greedy=greedy))
    spoken = texts((target, draft), asked, rule=rule)
    assert all(set(text) <= set(allowed) for text in spoken)
    if greedy:
        assert spoken == texts((target, draft), asked, rule=TargetOnly())


@dataclass
class Watch:
    """A processor that records the texts it is asked about."""

    seen: list

    def __call__(self, ids, scores):
        self.seen.append(tuple(ids[0].tolist()))
        return scores


@pytest.mark.parametrize("drafter", ["model", "prompt-lookup"])
def test_processors_are_asked_only_about_texts_that_may_be(drafter):
    """Never behind an end-of-sequence token, the last token allowed, or padding of the batch."""
    seen = []
    asked = [
        replace(request, max_new_tokens=1 + 3 * request.number)
        for request in requests(
            [(5, 6, 5, 6, 5)] * 9, eos=frozenset({4, 5}), processing=Processing((Watch(seen),))
        )
    ]
    target, draft = llama_pair()
    pair = (target, draft if drafter == "model" else None)
    done = run(pair, asked, rule=Speculative(), drafter=drafter, gamma=6)
    assert {row.finished for row in done.values()} == {"eos", "length"}
    new = [text[5:] for text in seen]
    assert max(map(len, new)) < 1 + 3 * 8
    assert not any({4, 5} & set(text) for text in new)


def test_processors_see_the_prefix_of_their_own_position():
    """A repetition penalty in blocks of 6 is that of one token at a time."""
    fields = {"processing": Processing((hf.RepetitionPenaltyLogitsProcessor(1.7),))}
    asked = requests(TEXTS[:5], **fields)
    blocks = texts(llama_pair(), asked, rule=Speculative(), coupling="shared", gamma=6)
    assert blocks == texts(llama_pair(), asked, rule=TargetOnly(), coupling="shared")


def test_raw_probabilities_are_cut_nowhere():
    """Not even where a truncation stands before a processor that looks at the prefix."""
    warpers = (hf.TemperatureLogitsWarper(0.5), hf.TopKLogitsWarper(3), hf.TopPLogitsWarper(0.9))
    asked = requests(
        TEXTS[:3], processing=Processing((*warpers, hf.RepetitionPenaltyLogitsProcessor(1.1)))
    )
    settings = Settings(rule=EASD(tau_h=1.5, entropy_of="raw"), batch_size=3)
    steps = [record.step for record in decode(Pair.of(*llama_pair()), asked, settings)]
    for step in steps:
        drafted = step.has_draft()[:, :-1]
        for cut, raw in (
            (step.target_probs, step.raw_target_probs),
            (step.draft_probs, step.raw_draft_probs),
        ):
            assert ((cut > 0).sum(-1) <= 3)[:, :-1][drafted].all()
            assert (raw > 0).all(-1)[:, :-1][drafted].all()


@pytest.mark.parametrize("ends", [[3], [2, 7, 99]], ids=str)  # 99 is no token of the model
def test_a_least_length_by_index_is_that_of_transformers(ends):
    for theirs in (
        hf.MinNewTokensLengthLogitsProcessor(4, 3, ends),
        hf.MinLengthLogitsProcessor(7, ends),
    ):
        (ours,) = Processing((theirs,)).processors
        assert ours == NoEndBefore(7, tuple(ends))
        for length in range(5, 9):
            ids, scores = torch.zeros(2, length), torch.randn(2, 24)
            expected = theirs(ids, scores)
            assert torch.equal(ours(ids, scores), expected)


def test_texts_with_a_least_length_do_not_depend_on_how_it_is_kept():
    """A subclass is none of transformers' own, and is run as it is."""

    class Theirs(hf.MinNewTokensLengthLogitsProcessor):
        pass

    found = []
    for kind in (hf.MinNewTokensLengthLogitsProcessor, Theirs):
        asked = [
            replace(request, eos=frozenset(range(2, 9)), processing=Processing((keeps,)))
            for request in requests(TEXTS[:6])
            for keeps in [kind(len(request.prompt), request.number, [*range(2, 9)], device=DEVICE)]
        ]
        found.append(texts(llama_pair(), asked, rule=GATED, gamma=4))
    assert found[0] == found[1]
    assert [len(text) >= number for number, text in enumerate(found[0])] == [True] * 6


@pytest.mark.parametrize("power", [0.5, 2.0, 700.0, float("inf")])
def test_probabilities_to_a_power_are_finite_and_sum_to_one(power):
    """Tokens that were cut off stay so, and the smallest of many is no divisor."""
    probs = torch.tensor([[0.5, 0.3, 0.2, 0.0], [1.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    found = raised(probs, power)
    assert found.sum(-1).tolist() == pytest.approx([1, 1])
    assert found[1].tolist() == [1, 0, 0, 0]
    expected = [(each / 0.5) ** power for each in (0.5, 0.3, 0.2, 0.0)]
    assert found[0].tolist() == pytest.approx([each / sum(expected) for each in expected])


def test_settings_ask_for_transformers_own_processors_in_its_order():
    asked = {
        "repetition_penalty": (1.5, hf.RepetitionPenaltyLogitsProcessor),
        "temperature": (0.5, hf.TemperatureLogitsWarper),
        "top_k": (3, hf.TopKLogitsWarper),
        "top_p": (0.9, hf.TopPLogitsWarper),
        "min_p": (0.1, hf.MinPLogitsWarper),
    }

    def kinds(**options):
        return [type(one) for one in processing(**options).processors]

    assert kinds() == []
    for name, (value, kind) in asked.items():
        assert kinds(**{name: value}) == [kind]
    every = {name: value for name, (value, _) in asked.items()}
    assert kinds(**every) == [kind for _, kind in asked.values()]
