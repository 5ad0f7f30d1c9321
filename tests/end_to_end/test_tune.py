"""Tuning: the pass against laws applied directly, forecasts, the command and its file."""

import json
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from models import llama_pair, prompts, word_tokenizer

from easd import EASD, Settings
from easd.core.rules.pool_everywhere import PoolEverywhere
from easd.core.rules.single_model import TargetOnly
from easd.diagnose import candidates, reference_pass, tuning_pass
from easd.diagnose.candidates import DRAFT_TEMPERATURES, TARGET, TEMPERATURES, cut
from easd.diagnose.gate_trial import gate_trials
from easd.diagnose.positions import Positions
from easd.diagnose.reference_pass import read_steps
from easd.diagnose.tuning import tokens_per_forward, tune
from easd.diagnose.tuning_pass import read
from easd.diagnose.tuning_printing import answer
from easd.engine.pair import Pair
from easd.errors import ConfigError, InputError
from easd.runs import open_run
from easd.stats import Estimate

PROMPT = "3 + 4 + 5 - 6 * 7 ?"


@pytest.fixture(scope="module")
def pair():
    target, draft = llama_pair()
    return Pair(name="tiny", target=target, draft=draft, tokenizer=word_tokenizer())


@pytest.fixture(scope="module")
def texts():
    asked = prompts(7, seed=1)
    return [(asked[n], tuple(range(3 + n, 6 + 2 * n)), f"text {n}") for n in range(7)]


@pytest.fixture(scope="module")
def reading(pair, texts):
    """Read with several forwards of a text, several steps of each, and groups of positions."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference_pass, "_MOST_PROBS", 2 * len(texts) * pair.vocab_size)
        patch.setattr(reference_pass, "_POSITIONS_AT_ONCE", 2)
        patch.setattr(tuning_pass, "_MOST_PROBS", 3 * pair.vocab_size)
        return read(pair, texts, Settings())


def directly(pair, texts, rule, temperature, draft_temperature):
    """Each position's law of the right token, and what a draft token has of being accepted."""
    found = {}
    settings = Settings(temperature=temperature)
    for read_step in read_steps(pair, texts, settings):
        law = rule.law(read_step.step)[:, :-1]
        draft = read_step.step.draft_probs[:, :-1]
        if temperature and draft_temperature:
            draft = draft ** (temperature / draft_temperature)
            draft = draft / draft.sum(-1, keepdim=True)
        elif temperature:
            draft = torch.nn.functional.one_hot(draft.argmax(-1), draft.shape[-1]).to(draft)
        right = law.gather(-1, read_step.right[..., None])[..., 0]
        accepted = torch.minimum(law, draft).sum(-1)
        for row, number in enumerate(read_step.batch.numbers):
            for place in range(int(read_step.there[row].sum())):
                at = number, read_step.begin + place
                found[at] = float(right[row, place]), float(accepted[row, place])
    return np.array([found[at] for at in sorted(found)]).T


@pytest.mark.parametrize("plausible", [0.02, 0.3])
@pytest.mark.parametrize("drawn", [False, True], ids=["greedy", "sampled"])
def test_pools_are_the_rules_law(pair, texts, reading, drawn, plausible):
    narrowed, place = cut(reading.positions, plausible)
    powers = np.tile((1.4, -0.6), (len(narrowed), 1))
    right, accepted = candidates._pooled(reading, narrowed, place, powers, drawn=drawn)
    rule = PoolEverywhere(a=1.4, b=-0.6, plausible=plausible)
    for at, draft_temperature in enumerate(DRAFT_TEMPERATURES):
        wanted = directly(pair, texts, rule, float(drawn), draft_temperature)
        assert np.allclose(right, wanted[0], atol=1e-9)
        assert np.allclose(accepted[:, at], wanted[1], atol=1e-9)


def test_the_target_at_every_temperature(pair, texts, reading):
    for place, temperature in enumerate(TEMPERATURES):
        # The draft's temperatures are its own, whatever the target's.
        for at, draft_temperature in enumerate(DRAFT_TEMPERATURES):
            found = directly(pair, texts, TargetOnly(), temperature, draft_temperature)
            assert np.allclose(reading.right_at[:, place], found[0], atol=1e-9)
            assert np.allclose(reading.accepted_at[:, place, at], found[1], atol=1e-9)


def test_easd_where_its_gate_is_open(pair, texts, reading):
    rule = EASD(conditions=("overlap",), tau_o=0.0)
    for place, temperature in enumerate((0.0, 1.0)):
        wanted = directly(pair, texts, rule, temperature, 1.0)[0]
        assert np.allclose(reading.easd[:, place], wanted, atol=1e-9)


def positions_of(lengths):
    """Texts of these lengths, with nothing but their places."""
    texts = np.repeat(np.arange(len(lengths)), lengths)
    none = np.zeros(0)
    return Positions({}, texts, len(lengths), none, none, np.zeros(len(texts) + 1, int), texts)


def test_tokens_per_forward_by_following_every_outcome():
    rng, lengths, gamma = np.random.default_rng(0), (5, 1, 8), 3
    accepted = rng.random(sum(lengths))

    def blocks(kept, length):
        at = count = 0
        while at < length:
            count += 1
            for _ in range(gamma):
                at += 1
                if at > length or not kept[at - 1]:
                    break
            else:
                at += 1  # the bonus token
        return count

    expected, first = 0.0, 0
    for length in lengths:
        own = accepted[first : first + length]
        for kept in product((False, True), repeat=length):
            prob = np.where(kept, own, 1 - own).prod()
            expected += prob * blocks(kept, length)
        first += length
    found = tokens_per_forward(positions_of(lengths), accepted, gamma)
    assert found == pytest.approx(sum(lengths) / expected)


def test_too_few_texts_are_refused(pair, texts):
    with pytest.raises(InputError, match="reference texts given: 1"):
        read(pair, texts[:1], Settings())


def drawn_positions(b_open, b_closed, *, seed=0, n_texts=200, length=30):
    """Four plausible tokens, the right one drawn from p^1.2 q^b, with b by the gate."""
    rng = np.random.default_rng(seed)
    n = n_texts * length
    logs = np.log(rng.dirichlet(np.ones(4), (2, n)))
    is_open = rng.random(n) < 0.1
    scores = 1.2 * logs[0] + np.where(is_open, b_open, b_closed)[:, None] * logs[1]
    right = (scores + rng.gumbel(size=scores.shape)).argmax(1)
    height = np.where(is_open, 2.0, 0.1) + 0.01 * rng.random(n)
    return Positions(
        values={
            "draft_entropy": height,
            "target_entropy": height,
            "shared_top": np.full(n, 5),
        },
        texts=np.repeat(np.arange(n_texts), length),
        n_texts=n_texts,
        target_logs=logs[0].ravel(),
        draft_logs=logs[1].ravel(),
        starts=np.arange(n + 1) * 4,
        right=np.arange(n) * 4 + right,
    )


def test_a_gate_that_tells_something_is_told_from_one_that_does_not():
    for b_open, tells in ((-0.8, True), (0.5, False)):
        trials, nats = gate_trials(drawn_positions(b_open, 0.5))
        by_rate = next(each for each in trials if each.threshold == "8 % firing")
        assert (by_rate.nats.low > 0) == tells
        assert nats["pool"].value < nats["target, best temperature"].value
        assert nats["target, best temperature"].value < nats["target, T = 1"].value


def test_a_target_that_is_sure_of_all_texts_but_one_leaves_the_gate_untried():
    drawn = drawn_positions(0.5, 0.5)
    sure = replace(drawn, right=np.where(drawn.texts == 0, drawn.right, -1))
    assert gate_trials(sure) == ((), {})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tuned")


@pytest.fixture
def tuned(easd, folder):
    """A file of lab-a, where the pool helps."""
    path = folder / "tuned.json"
    if not path.exists():
        out, err = easd("tune", "--pair", "lab-a", "--task", "lab-a:800", "--out", path)
        assert "helps" in out.splitlines()[0]
        assert "EASD as published" in out
        assert "Trial of the gate, the paper's rule" in out
        assert "Tuning needs reference text" in out
        assert "pool" in err
    return path


def test_the_file_decodes_and_is_checked(easd, refused, tuned, folder):
    found = json.loads(tuned.read_text())
    assert found["kind"] == "tuning"
    name = found["fields"]["name"]
    assert name.startswith("pool-")
    assert found["decoding"] == {"temperature": 0.0}
    lab = ("--pair", "lab-a", "--device", "cpu")
    easd("generate", *lab, "--calibration", tuned, "-q", PROMPT)
    line = refused("generate", *lab, "--calibration", tuned, "--temperature", "1", PROMPT)
    assert "this tuning was made at temperature = 0.0" in line
    line = refused("generate", "--pair", "lab-c", "--calibration", tuned, PROMPT)
    assert "another one" in line
    judge = ("eval", *lab, "--calibration", tuned, "--set", "trace=0", "--out", folder / "run")
    line = refused(*judge, "--task", "lab-a:50")
    assert "tuned on 50 of these items of lab-a" in line
    easd(*judge, "--task", "lab-a:900-940")
    run = open_run(folder / "run").run
    rule = next(each["rule"] for each in run["systems"] if each["rule"]["name"] == name)
    assert rule["b"] == found["fields"]["b"]
    line = refused("sweep", *lab, "--task", "lab-a:20", "--calibration", tuned)
    assert "holds no tau_h" in line or name == "pool-by-gate"


def test_what_is_tuned_is_not_given(refused):
    line = refused("tune", "--pair", "lab-a", "--task", "lab-a:20", "--temperature", "0.5")
    assert "temperature is what tuning finds" in line


def test_a_pair_that_nothing_helps(reading):
    """Seven short texts of a random pair; the answer is the target, speculated."""
    found = tune(reading, gamma=4, unique_solution=False)
    assert found.best == TARGET
    assert found.chosen.rule == {"name": "speculative"}
    assert found.pool.fallback


def test_a_draft_is_needed(pair, texts):
    alone = Pair(name="alone", target=pair.target, draft=None, tokenizer=pair.tokenizer)
    with pytest.raises(ConfigError, match="two models"):
        read(alone, texts, Settings())


def test_where_nothing_is_shown_the_nearest_is_named(reading):
    """With the number of texts at which its gain would be as wide as its interval is now."""
    found = tune(reading, gamma=3, unique_solution=False)
    name = "pool everywhere, greedy"
    gains = {name: Estimate(value=0.02, low=-0.04, high=0.08, level=0.95, n=7, n_clusters=7)}
    candidates = tuple(replace(each, gain=gains.get(each.name)) for each in found.candidates)
    lines = answer(replace(found, candidates=candidates, best=TARGET, texts=200), {})
    assert lines[1] == (
        f"The nearest is {name}: +2.00 [-4.00, +8.00] points. If that is its true gain, about "
        "1,800 texts would show it; this run read 200."
    )


@pytest.mark.parametrize(("p_value", "says"), [(0.3, "no significant difference"), (0.01, "hurts")])
def test_that_easd_hurts_takes_more_than_its_own_interval(reading, p_value, says):
    """Holm's p decides, as for every other candidate, and not the unadjusted interval."""
    found = tune(reading, gamma=3, unique_solution=False)
    gain = Estimate(value=-0.1, low=-0.19, high=-0.01, level=0.95, n=7, n_clusters=7)
    candidates = tuple(
        replace(each, gain=gain, p_value=p_value) if each.rule["name"] == "easd" else each
        for each in found.candidates
    )
    (line,) = [line for line in answer(replace(found, candidates=candidates), {}) if "EASD" in line]
    assert says in line
    assert f"-10.00 [-19.00, -1.00] points, Holm-adjusted p {p_value}" in line
