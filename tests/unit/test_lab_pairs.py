"""The `lab` grammars and the packaged models."""

import re
from itertools import pairwise

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from easd.errors import ModelError
from easd.pairs import lab

PAIRS = sorted(lab.RECIPES)
ROLES = ("target", "draft")
MODELS = [(pair, role) for pair in PAIRS for role in ROLES]


def spelled_out(problem):
    """Running totals of a prompt, computed from its text alone."""
    first, *rest = problem.prompt.removesuffix(" ?").split()
    totals, total = [], int(first)
    for symbol, operand in zip(rest[::2], rest[1::2], strict=True):
        total = eval(f"({total} {symbol} {int(operand)}) % 100")
        totals.append(f"{total:02}" if problem.id.startswith("lab-t") else str(total))
    return totals


def computed_tokens(problem):
    """The solution's tokens that are computed, rather than copied or formatting."""
    words = problem.solution.split()
    if "=" not in words:
        return words
    return [after for word, after in pairwise(words) if word == "="]


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("split", ["train", "calibration", "test"])
def test_solution_is_right_arithmetic(pair, split):
    for problem in lab.problems(pair, 200, seed=3, split=split):
        words = problem.solution.split()
        totals = computed_tokens(problem)
        assert totals == spelled_out(problem)
        assert problem.answer == totals[-1] == words[-1]


def test_full_steps_copy_the_prompt():
    for problem in lab.problems("lab-c", 50, seed=3):
        steps = re.sub(r" = \d+", "", problem.solution.partition(" #")[0])
        assert problem.prompt.split(maxsplit=1)[1] == f"{steps} ?"


@pytest.mark.parametrize("pair", PAIRS)
def test_grading(pair):
    for problem in lab.problems(pair, 50, seed=4):
        for text in (problem.solution, f" {problem.solution} {lab.EOS}"):
            assert lab.grade(problem, text)
        wrong = lab.recipe(pair).number((int(problem.answer) + 1) % 100)
        assert not lab.grade(problem, wrong)
        assert not lab.grade(problem, "")


def test_grade_forgives_a_wrong_step():
    problem = lab.problems("lab-a", 1, seed=0)[0]
    words = problem.solution.split()
    detour = " ".join([str((int(words[0]) + 1) % 100), *words[1:]])
    assert lab.grade(problem, detour)


@pytest.mark.parametrize("pair", PAIRS)
def test_streams_are_deterministic_and_prefix_independent(pair):
    assert lab.problems(pair, 20, seed=5) == lab.problems(pair, 50, seed=5)[:20]
    ids = {
        p.id for s in ("train", "test") for seed in (5, 6) for p in lab.problems(pair, 9, seed, s)
    }
    assert len(ids) == 36


def test_splits_and_seeds_differ():
    prompts = [
        tuple(p.prompt for p in lab.problems("lab-a", 20, seed, split))
        for split in ("train", "calibration", "test")
        for seed in (1, 2)
    ]
    assert len(set(prompts)) == len(prompts)


def test_multiplication_is_rarer_in_test_than_in_training():
    def share(split):
        words = " ".join(p.prompt for p in lab.problems("lab-a", 2000, 1, split)).split()
        return words.count("*") / sum(map(words.count, lab.OPERATIONS))

    assert share("train") == pytest.approx(1 / 3, abs=0.02)
    assert share("test") == pytest.approx(0.1, abs=0.02)


def test_slips_are_carries_mostly_forgotten():
    straight = lab.problems("lab-m", 3000, seed=1, split="train")
    slipping = lab.stream("lab-m", 1, "train", slip_rate=1.0)
    slips = forgotten = 0
    for right, wrong in zip(straight, slipping, strict=False):
        assert right.prompt == wrong.prompt
        total = int(right.prompt.split()[0])
        steps = iter(wrong.solution.split()[:-2])
        for symbol, operand, _, written in zip(*[steps] * 4, strict=True):
            truth = eval(f"({total} {symbol} {operand}) % 100")
            ones, digit = total % 10, int(operand) % 10
            carries = {"+": ones + digit > 9, "-": ones < digit, "*": False}[symbol]
            tempting = carries and digit in (7, 8)
            assert (int(written) != truth) == tempting
            total, slips = int(written), slips + tempting
            forgotten += tempting and (total - truth) % 100 == {"+": 90, "-": 10}[symbol]
    assert slips > 600
    assert forgotten / slips == pytest.approx(0.85, abs=0.05)


def test_alias_and_unknown_pair():
    assert lab.recipe("lab") is lab.RECIPES["lab-a"]
    with pytest.raises(ModelError, match=r"'lab-x'.*lab-a"):
        lab.problems("lab-x", 1, seed=0)


def test_packaged_pairs_are_small():
    data = lab.folder("lab", "target").parents[1]
    size = sum(f.stat().st_size for p in PAIRS for f in (data / p).rglob("*") if f.is_file())
    assert size <= 4e6


@pytest.mark.parametrize(("pair", "role"), [each for each in MODELS if each[0] != "lab-t"])
def test_tokenizer_round_trip(pair, role):
    tokenizer = AutoTokenizer.from_pretrained(lab.folder(pair, role))
    for problem in lab.problems(pair, 20, seed=2):
        text = f"{problem.prompt} {problem.solution}"
        ids = tokenizer(text).input_ids
        assert tokenizer.decode(ids) == text
        assert len(ids) == len(text.split())
    assert tokenizer("42 7").input_ids == [42, 7]
    assert tokenizer.eos_token == lab.EOS


def test_numbers_are_one_token_or_one_for_each_digit():
    target, draft = (AutoTokenizer.from_pretrained(lab.folder("lab-t", role)) for role in ROLES)
    for problem in lab.problems("lab-t", 20, seed=2):
        words = f"{problem.prompt} {problem.solution}".split()
        split = [part for word in words for part in (word[:1], word[1:]) if part]
        for tokenizer, expected in ((target, split), (draft, words)):
            ids = tokenizer(" ".join(words)).input_ids
            assert tokenizer.decode(ids).split() == words
            assert [tokenizer.decode(token).strip() for token in ids] == expected
    for tokenizer in (target, draft):
        assert tokenizer.decode(tokenizer("naïve 🙂").input_ids).strip() == "naïve 🙂"


@pytest.mark.parametrize(("pair", "role"), MODELS)
def test_models_load_and_solve(pair, role):
    folder = lab.folder(pair, role)
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.config.model_type == "gpt2"
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    problems = lab.problems(pair, 300, seed=1)
    inputs = tokenizer([p.prompt for p in problems], return_tensors="pt")
    with torch.inference_mode():
        ids = model.generate(**inputs, do_sample=False, max_new_tokens=24)
    texts = tokenizer.batch_decode(ids[:, inputs.input_ids.shape[1] :], skip_special_tokens=True)
    solved = sum(lab.grade(p, text) for p, text in zip(problems, texts, strict=True)) / 300
    assert solved > (0.7 if role == "target" else 0.35)
