"""Reward-guided decoding: its two ends, its law, and what it counts."""

from dataclasses import replace

import pytest
import torch
from models import llama_pair, prompts, requests, texts, word_tokenizer

from easd import load_pair
from easd.core.rules import DraftOnly, TargetOnly
from easd.engine.generate import make_requests
from easd.engine.processing import Processing
from easd.engine.settings import Settings
from easd.errors import ConfigError, InputError
from easd.evaluate.reward_guided import (
    RewardGuided,
    _Text,
    generate_reward_guided,
    rewriting_number,
)
from easd.evaluate.rewards import ScoredStep, load_reward_model
from easd.evaluate.written_steps import StepCounts
from easd.pairs import lab
from easd.pairs.lab import STEP_TOKENS

PROMPTS = prompts(9)
SETTINGS = Settings(max_new_tokens=14, batch_size=4)
# The end-of-sequence token of the tiny models, so that texts end at different lengths; the
# tokenizer has one of its own.
ENDS = frozenset({5, word_tokenizer().eos_token_id})


SPOILT = Processing((lambda text, scores: scores * float("nan"),))


def coin(steps):
    """Rewards that depend on all of a text and mean nothing."""
    return [sum(i * token for i, token in enumerate(step.ids, 1)) % 10 / 10 for step in steps]


@pytest.fixture
def pair():
    target, draft = llama_pair()
    before = target.generation_config.eos_token_id
    target.generation_config.eos_token_id = list(ENDS)
    yield target, draft
    target.generation_config.eos_token_id = before


def decode(pair, scorer=coin, *, delta=0.5, step=3, settings=SETTINGS, **options):
    found = generate_reward_guided(
        *pair,
        PROMPTS,
        scorer,
        tokenizer=word_tokenizer(),
        system=RewardGuided(delta=delta, step=step),
        settings=settings,
        **options,
    )
    return sorted(found, key=lambda text: text.number)


def alone(pair, rule, number=lambda n: n):
    asked = [
        replace(request, number=number(request.number))
        for request in requests(PROMPTS, max_new_tokens=14, eos=ENDS)
    ]
    return texts(pair, asked, rule=rule)


@pytest.mark.parametrize("step", [1, 3, "w7", "w7 w3"])
def test_at_delta_0_the_draft_writes_everything(pair, step):
    found = decode(pair, delta=0, step=step)
    assert [text.token_ids for text in found] == alone(pair, DraftOnly())
    assert all(text.counts.target_tokens == 0 for text in found)
    assert {text.finish_reason for text in found} == {"eos", "length"}


@pytest.mark.parametrize("step", [1, 3, "w7", "w7 w3"])
def test_above_delta_1_the_target_writes_everything(pair, step):
    found = decode(pair, delta=1.1, step=step)
    assert [text.token_ids for text in found] == alone(pair, TargetOnly(), rewriting_number)
    assert all(text.counts.draft_kept == 0 for text in found)


def test_a_text_does_not_depend_on_its_company(pair):
    whole = decode(pair)
    assert decode(pair, settings=replace(SETTINGS, batch_size=1)) == whole
    assert decode(pair, settings=replace(SETTINGS, batch_size=100)) == whole
    numbers = [30 + i for i in range(len(PROMPTS))]
    assert decode(pair, numbers=numbers) != whole
    assert {step.rewritten is None for text in whole for step in text.steps} == {True, False}


def test_steps_are_judged_in_their_place_and_make_up_the_text(pair):
    asked: dict[tuple[int, ...], float] = {}

    def remember(steps: list[ScoredStep]) -> list[float]:
        asked.update({step.ids: reward for step, reward in zip(steps, coin(steps), strict=True)})
        return coin(steps)

    rounds = []
    found = decode(pair, remember, on_round=rounds.append)
    for text in found:
        so_far = text.prompt_ids
        for step in text.steps:
            assert step.start == len(so_far)
            assert asked[so_far + step.drafted] == step.reward
            assert (step.rewritten is None) == (step.reward >= 0.5)
            assert len(step.token_ids) == 3 or step is text.steps[-1]
            so_far += step.token_ids
        assert so_far == (*text.prompt_ids, *text.token_ids)
        assert text.text == word_tokenizer().decode(text.token_ids, skip_special_tokens=True)
    assert sum(len(one.steps) for one in rounds) == sum(len(text.steps) for text in found)
    assert set(rounds[0].seconds) == {"draft", "reward", "target"}


def test_a_delimiter_ends_a_step(pair):
    for text in decode(pair, step="w7"):
        for step in text.steps[:-1]:
            assert step.token_ids[-1] == 7
            assert 7 not in step.token_ids[:-1]


def test_a_stop_string_ends_the_text_wherever_steps_end(pair):
    settings = replace(SETTINGS, stop=("w7",))
    plain, stopped = decode(pair), decode(pair, settings=settings)
    assert any(7 in text.token_ids for text in plain)
    for text in stopped:
        assert (text.finish_reason == "stop") == (7 in text.token_ids)
        assert 7 not in text.token_ids[:-1]


def test_counts_follow_from_the_steps(pair):
    for text in decode(pair):
        counts = text.counts
        rewritten = [step for step in text.steps if step.rewritten is not None]
        assert counts.steps_drafted == len(text.steps)
        assert counts.steps_rewritten == len(rewritten)
        assert counts.tokens == len(text.token_ids) == counts.draft_kept + counts.target_tokens
        assert counts.draft_tokens - counts.draft_kept == sum(len(s.drafted) for s in rewritten)
        if rewritten:
            assert counts.block_efficiency == counts.tokens / counts.target_tokens
    assert StepCounts().block_efficiency is None


def exact_accuracy(name, problems, models, scorer, delta):
    """P(right solution) of each problem under q 1[r >= delta] + P(refused) p, token by token."""
    vocabulary = len(models.tokenizer)
    solved = []
    for problem in problems:
        prompt = models.tokenizer(problem.prompt).input_ids
        right = models.tokenizer(f"{problem.solution} {lab.EOS}").input_ids
        ids = torch.tensor([prompt + right[:-1]])
        p, q = (
            model(ids).logits[0, len(prompt) - 1 :].softmax(-1)
            for model in (models.target, models.draft)
        )
        chance = 1.0
        for at, token in enumerate(right):
            steps = [
                ScoredStep(
                    prompt_ids=tuple(prompt), written_ids=tuple(right[:at]), step_ids=(option,)
                )
                for option in range(vocabulary)
            ]
            kept = torch.tensor(scorer(steps)) >= delta
            refused = q[at][~kept].sum().item()
            chance *= q[at][token].item() * kept[token].item() + refused * p[at][token].item()
        solved.append(chance)
    return torch.tensor(solved, dtype=torch.float64)


@torch.inference_mode()
def test_decoded_texts_follow_the_mixture():
    """6,400 texts; |z| < 3.3 fails one true run in 1,000. The same noise for both gave -8."""
    models = load_pair("lab-ad", device="cpu")
    scorer = load_reward_model("lab-ad")
    problems, copies = lab.problems("lab-ad", 80, seed=11), 80
    exact = exact_accuracy("lab-ad", problems, models, scorer, delta=0.9)
    asked = make_requests(
        models, [models.tokenizer(p.prompt).input_ids for p in problems], SETTINGS
    )
    found = generate_reward_guided(
        models.target,
        models.draft,
        [request.prompt for request in asked],
        scorer,
        system=RewardGuided(delta=0.9, step=STEP_TOKENS["lab-ad"]),
        settings=Settings(n=copies, max_new_tokens=lab.MAX_NEW_TOKENS, batch_size=1600),
        tokenizer=models.tokenizer,
    )
    references = [problem.solution.split() for problem in problems]
    hits = sum((text.text or "").split() == references[text.number // copies] for text in found)
    error = (copies * exact * (1 - exact)).sum().sqrt()
    assert abs(hits - copies * exact.sum()) / error < 3.3


@pytest.mark.parametrize("fault", ["reward", "draft", "target"])
def test_a_text_that_fails_ends_before_its_step_and_the_others_go_on(pair, monkeypatch, fault):
    sound = decode(pair)
    scorer = coin
    bad = next(
        text.number
        for text in sound
        if len(text.steps) > 2 and any(step.rewritten is not None for step in text.steps[1:])
    )
    if fault == "reward":

        def scorer(steps):
            return [
                float("nan") if step.prompt_ids == PROMPTS[bad] and step.written_ids else reward
                for step, reward in zip(steps, coin(steps), strict=True)
            ]

    else:
        step = _Text.next_step

        def spoiled(text, number, *given):
            request = step(text, number, *given)
            wrong = text.number == bad and text.steps and (number < 0) == (fault == "target")
            return replace(request, processing=SPOILT) if wrong else request

        monkeypatch.setattr(_Text, "next_step", spoiled)
    found = decode(pair, scorer)
    assert [text.token_ids for text in found if text.number != bad] == [
        text.token_ids for text in sound if text.number != bad
    ]
    failed = found[bad]
    assert failed.finish_reason == "error"
    assert "NaN" in str(failed.error)
    assert failed.token_ids == sound[bad].token_ids[: len(failed.token_ids)]
    assert len(failed.token_ids) >= 3


def test_what_cannot_be_decoded_is_refused(pair):
    with pytest.raises(ConfigError, match="delta = -1"):
        RewardGuided(delta=-1)
    with pytest.raises(ConfigError, match="delta = nan"):
        RewardGuided(delta=float("nan"))
    with pytest.raises(ConfigError, match="step = 0 tokens"):
        RewardGuided(step=0)
    with pytest.raises(ConfigError, match="empty text"):
        RewardGuided(step="")
    with pytest.raises(ConfigError, match="2 rewards for 4 steps"):
        decode(pair, lambda steps: [1.0, 1.0])
    with pytest.raises(ConfigError, match="9 numbers, 1 of them different"):
        decode(pair, numbers=[0] * len(PROMPTS))
    with pytest.raises(InputError, match="prompt 0 is empty"):
        list(generate_reward_guided(*pair, [()], coin, system=RewardGuided(step=1)))
    with pytest.raises(ConfigError, match="give the tokenizer"):
        list(generate_reward_guided(*pair, PROMPTS, coin))
