"""Decoded accuracy of the `lab` pairs agrees with the exact one that a rule's law implies.

A problem has one right written solution, so a rule solves it with probability
prod law(reference token | reference prefix), which one teacher-forced pass of both models gives.
The gate is asked at the bonus position, too, so that whole texts follow the law.
"""

from dataclasses import replace
from functools import cache
from statistics import NormalDist

import pytest
import torch

from easd import EASD, Speculative, generate, load_pair
from easd.core.rules import DraftOnly, TargetOnly
from easd.core.step import Step
from easd.pairs import lab

pytestmark = pytest.mark.slow
TAU_H = {"lab-a": 0.34, "lab-ad": 0.64, "lab-c": 0.38, "lab-m": 0.63}  # Fires at 2 %.
PROBLEMS = 4000
GAMMA = 4


def rules(pair):
    easd = EASD(tau_h=TAU_H[pair], draft_at_bonus=True)
    return {
        "target": TargetOnly(),
        "draft": DraftOnly(),
        "speculative": Speculative(),
        "easd": easd,
        "easd draft_top": replace(easd, penalise="draft_top"),
    }


CASES = [(pair, name) for pair in TAU_H for name in rules(pair)]
# Two-sided, 1 % over all cases together.
LIMIT = NormalDist().inv_cdf(1 - 0.01 / 2 / len(CASES))


@cache
def reference(pair):
    """Returns models, problems, reference tokens and the solutions as one verification step."""
    models = load_pair(pair, device="cpu")
    problems = lab.problems(pair, PROBLEMS, seed=20)
    texts = [f"{problem.prompt} {problem.solution} {lab.EOS}" for problem in problems]
    ids = models.tokenizer(texts, return_tensors="pt").input_ids
    length = len(problems[0].solution.split()) + 1
    with torch.inference_mode():
        draft, target = (
            torch.cat(
                [model(rows[:, :-1], logits_to_keep=length).logits for rows in ids.split(500)]
            ).softmax(-1)
            for model in (models.draft, models.target)
        )
    tokens = ids[:, -length:]
    step = Step(
        draft_tokens=tokens[:, :-1],
        num_draft_tokens=torch.full((PROBLEMS,), length - 1),
        draft_probs=draft,
        target_probs=target,
    )
    return models, problems, tokens, step


@pytest.mark.parametrize(("pair", "name"), CASES)
def test_decoded_accuracy_is_the_laws(pair, name):
    models, problems, tokens, step = reference(pair)
    rule = rules(pair)[name]
    texts = generate(
        *(models.target, models.draft, [problem.prompt for problem in problems]),
        tokenizer=models.tokenizer,
        rule=rule,
        gamma=GAMMA,
        max_new_tokens=lab.MAX_NEW_TOKENS,
        batch_size=250,
    )
    pairs = zip(texts, tokens.tolist(), strict=True)
    hits = sum(list(text.token_ids) == right for text, right in pairs)
    solved = rule.law(step).gather(-1, tokens[..., None])[..., 0].double().prod(-1)
    z = (hits - solved.sum()) / (solved * (1 - solved)).sum().sqrt()
    assert abs(z) < LIMIT, f"{hits} right, {solved.sum():.1f} expected, z = {z:.2f}"
