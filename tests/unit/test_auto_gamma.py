"""The choice of gamma against synthetic costs and acceptance; no clock, and fixed seeds."""

import random

import pytest

from easd.engine.auto_gamma import MOST_AUTO_GAMMA, AutoGamma, expected_tokens

# Seconds of a step with `rows` rows and g draft tokens: a target forward over rows (g + 1) tokens
# and g draft forwards, both bound by reading weights up to some number of tokens.
FEW = 8


def seconds(rows, gamma, cost=0.15):
    return _forward(rows * (gamma + 1)) + gamma * cost * _forward(rows)


def _forward(tokens):
    return max(1.0, tokens / FEW)


def best_fixed(rows, rates, cost):
    speeds = [
        tokens / seconds(rows, gamma, cost)
        for gamma, tokens in enumerate(expected_tokens(rates[:MOST_AUTO_GAMMA]))
    ]
    return max(range(len(speeds)), key=speeds.__getitem__), max(speeds)


class World:
    """Decodes in time of its own; `noise` is the spread of a step's time."""

    def __init__(self, chooser, *, seed=0, noise=0.05):
        self.chooser, self.noise = chooser, noise
        self.random = random.Random(seed)
        self.behind = 0

    def steps(self, count, rows, rates, cost=0.15):
        """Expected tokens of a row, and seconds, of `count` steps."""
        tokens = taken = 0.0
        for _ in range(count):
            gamma = self.chooser.choose(rows, self.behind)
            accepted = [self._accepted(gamma, rates) for _ in range(rows)]
            step = seconds(rows, gamma, cost) * self.random.lognormvariate(0, self.noise)
            if gamma and self.behind > MOST_AUTO_GAMMA + 1:
                step += cost * _forward(rows * self.behind)
            taken += step
            blocks = [(gamma, count + 1) for count in accepted]
            self.chooser.observe(rows, blocks, step, behind=self.behind)
            self.behind = max(accepted) + 1 if gamma else self.behind + 1
            tokens += expected_tokens(rates)[gamma]
        return tokens, taken

    def _accepted(self, gamma, rates):
        for count in range(gamma):
            if self.random.random() >= rates[count]:
                return count
        return gamma


CASES = {
    "never draft": (16, 0.5, 0.6),
    "never draft, one row": (1, 0.6, 1.0),
    "one token": (1, 0.5, 0.2),
    "a few tokens": (1, 0.8, 0.1),
    "as many as can be": (1, 0.98, 0.02),
    "hardly any difference": (4, 0.6, 0.1),
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("rows", "rate", "cost"), CASES.values(), ids=CASES)
def test_the_speed_is_nearly_that_of_the_best_fixed_number(rows, rate, cost, seed):
    rates = [rate] * MOST_AUTO_GAMMA
    tokens, taken = World(AutoGamma(), seed=seed).steps(800, rows, rates, cost)
    assert tokens / taken > 0.975 * best_fixed(rows, rates, cost)[1]


def test_the_same_observations_lead_to_the_same_choices():
    def chosen():
        chooser = AutoGamma()
        world = World(chooser, seed=4)
        return [world.steps(1, 2, [0.7] * MOST_AUTO_GAMMA) for _ in range(200)]

    assert chosen() == chosen()


def test_where_texts_become_hard_to_draft_it_drafts_less_and_then_more_again():
    chooser = AutoGamma()
    world = World(chooser, seed=1)
    found = []
    for rate in (0.95, 0.2, 0.95):
        world.steps(600, 1, [rate] * MOST_AUTO_GAMMA, 0.1)
        found.append(chooser.gamma)
    assert found[0] >= 4
    assert found[1] <= 2
    assert found[2] >= 4


def test_it_drafts_again_once_few_texts_are_left():
    rates = [0.8] * MOST_AUTO_GAMMA
    chooser = AutoGamma()
    world = World(chooser, seed=2)
    world.steps(300, 32, rates, 0.3)
    assert chooser.gamma == 0
    assert chooser.paused
    world.behind = 5  # New texts, hardly begun.
    world.steps(300, 1, rates, 0.3)
    assert chooser.gamma >= 2
    assert not chooser.paused


def test_trials_take_a_hundredth_of_the_time():
    chooser = AutoGamma()
    world = World(chooser, seed=3, noise=0.0)
    world.steps(50, 16, [0.3] * MOST_AUTO_GAMMA, 0.5)
    assert chooser.gamma == 0
    lost, least = 0.0, seconds(16, 0)
    for _ in range(2000):
        _, taken = world.steps(1, 16, [0.3] * MOST_AUTO_GAMMA, 0.5)
        lost += taken - least
    assert lost < 0.015 * 2000 * least


def test_a_draft_that_is_always_asked_is_never_paused():
    chooser = AutoGamma(draft_at_bonus=True)
    World(chooser).steps(300, 16, [0.3] * MOST_AUTO_GAMMA, 0.6)
    assert chooser.gamma == 0
    assert not chooser.paused


def test_tokens_that_were_not_proposed_are_not_expected():
    """Prompt lookup finds nothing in half of the steps, and then proposes nothing."""
    chooser, chance = AutoGamma(), random.Random(5)
    for _ in range(600):
        gamma = chooser.choose(1)
        accepted = gamma if chance.random() < 0.5 else 0
        chooser.observe(1, [(gamma, accepted + 1)], 1 + 0.3 * gamma)
    assert chooser.gamma >= 5  # 1 + .5 g tokens in 1 + .3 g.


def test_expected_tokens_are_those_of_the_theorem():
    for gamma, tokens in enumerate(expected_tokens([0.8] * 5)):
        assert tokens == pytest.approx((1 - 0.8 ** (gamma + 1)) / (1 - 0.8))
