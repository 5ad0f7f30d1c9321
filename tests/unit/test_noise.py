"""Keyed noise: each number uniform, numbers independent, and a function of its key alone."""

import math

import pytest
import scipy.stats
import torch

from easd.core.hashing import random_bits
from easd.core.noise import Noise, _clock_blocks, _exponential, race, request_key

GOLDEN_CLOCKS = [
    *(0.0237474516, 0.7383764386, 0.2112822682, 1.4250524044, 0.6765210629, 2.6713855267),
    *(2.8025257587, 1.1000757217, 0.4453114271, 0.7177413106, 2.0719585419, 0.3700308502),
]
GOLDEN_UNIFORMS = [
    *(0.05748903751373291, 0.5946403741836548, 0.12373489141464233, 0.42276203632354736),
]

LEAST_P = 1e-4  # every test here has a fixed seed and fails below this p-value


def noise(requests, *, start=0, seed=0, shared=False):
    keys = torch.tensor([request_key(seed, request) for request in requests])
    return Noise(keys=keys, start=torch.full((len(keys),), start), shared=shared)


def emitted(requests, positions, vocab_size, **options):
    at = torch.arange(positions).expand(len(requests), -1)
    return noise(requests, **options).emit(at, vocab_size)


def uniform(exponential):
    return (-torch.expm1(-exponential.double())).flatten().numpy()


def ks(values):
    return scipy.stats.kstest(values, "uniform").pvalue


def correlation(a, b):
    """P-value of zero correlation of two samples of standard exponentials."""
    return scipy.stats.pearsonr(uniform(a), uniform(b)).pvalue


def test_acceptance_uniforms_are_uniform():
    values = noise(range(400)).accept(250)
    assert values.dtype == torch.float32
    assert (values >= 0).all()
    assert (values < 1).all()
    assert ks(values.flatten().numpy()) > LEAST_P
    bins = torch.histc(values, 64, 0, 1).numpy()
    assert scipy.stats.chisquare(bins).pvalue > LEAST_P


def test_race_clocks_are_standard_exponentials():
    clocks = emitted(range(20), 10, 500)
    assert (clocks > 0).all()
    assert torch.isfinite(clocks).all()
    assert ks(uniform(clocks)) > LEAST_P


@pytest.mark.parametrize("stride", [2, 64, 128, 4096])
def test_clocks_are_uniform_along_every_stride_of_the_vocabulary(stride):
    values = uniform(emitted([3], 1, 1 << 18)[..., ::stride])
    assert ks(values) > LEAST_P


def test_neighbours_are_independent():
    clocks = emitted(range(40), 40, 64)
    assert correlation(clocks[..., 1:], clocks[..., :-1]) > LEAST_P  # tokens
    assert correlation(clocks[:, 1:], clocks[:, :-1]) > LEAST_P  # positions
    assert correlation(clocks[1:], clocks[:-1]) > LEAST_P  # requests
    # One position and the next may share no number either, shifted by any few tokens.
    for shift in range(1, 8):
        assert not (clocks[:, 1:, shift:] == clocks[:, :-1, :-shift]).float().mean() > 1e-3


def test_pairs_of_neighbours_fill_the_square():
    values = torch.from_numpy(uniform(emitted(range(20), 20, 256))).view(-1, 256)
    for a, b in ((values[:, 1:], values[:, :-1]), (values[1:], values[:-1])):
        cells = (a * 16).long() * 16 + (b * 16).long()
        counts = torch.bincount(cells.flatten(), minlength=256).numpy()
        assert scipy.stats.chisquare(counts).pvalue > LEAST_P


def test_purposes_are_independent():
    plain = noise(range(60))
    at = torch.arange(60).expand(60, -1)
    emit, draft = plain.emit(at, 30), plain.draft(at, 30)
    assert correlation(emit, draft) > LEAST_P
    accept = plain.accept(60)
    for token in range(3):
        for race_noise in (emit, draft):
            u = torch.from_numpy(uniform(race_noise[..., token]))
            assert scipy.stats.pearsonr(accept.flatten(), u).pvalue > LEAST_P


def test_seeds_are_independent():
    base = emitted(range(20), 20, 100)
    for seed in (1, 2, 1 << 20, -1):
        assert correlation(base, emitted(range(20), 20, 100, seed=seed)) > LEAST_P
    # Request r of seed s is not request s of seed r.
    assert request_key(1, 2) != request_key(2, 1)
    assert request_key(1, 12) != request_key(11, 2)


def test_shared_coupling_drafts_with_the_emitted_tokens_numbers():
    at = torch.arange(4).expand(3, -1)
    shared, independent = (noise(range(3), shared=shared) for shared in (True, False))
    assert torch.equal(shared.draft(at, 50), shared.emit(at, 50))
    assert torch.equal(shared.emit(at, 50), independent.emit(at, 50))
    assert not torch.equal(independent.draft(at, 50), independent.emit(at, 50))


def test_batch_mates_and_order_do_not_matter():
    together, alone = emitted(range(6), 3, 100), [emitted([r], 3, 100) for r in range(6)]
    assert torch.equal(together, torch.cat(alone))
    order = [4, 0, 5, 2, 1, 3]
    assert torch.equal(emitted(order, 3, 100), together[order])
    assert torch.equal(noise(order).accept(5), noise(range(6)).accept(5)[order])


def test_blocks_do_not_matter_only_absolute_positions():
    whole = emitted(range(3), 10, 40)
    later = emitted(range(3), 4, 40, start=6)
    assert torch.equal(whole[:, 6:], later)
    assert torch.equal(noise(range(3)).accept(10)[:, 6:], noise(range(3), start=6).accept(4))
    one = noise(range(3)).emit(torch.full((3,), 7), 40)
    assert torch.equal(one, whole[:, 7])


def test_a_longer_vocabulary_keeps_the_first_tokens_numbers():
    assert torch.equal(emitted([1], 2, 152064)[..., :49152], emitted([1], 2, 49152))


def test_huge_vocabularies_and_positions():
    clocks = emitted([0], 1, 1 << 22, start=1 << 40)
    assert torch.isfinite(clocks).all()
    assert (clocks > 0).all()
    # The least of n exponentials is itself exponential with mean 1/n: deep lower tails exist.
    assert clocks.min() < 20 / (1 << 22)
    assert ks(uniform(clocks[..., ::16])) > LEAST_P


def test_the_numbers_never_change():
    """Golden values: a text drawn today is the text drawn tomorrow, on any device."""
    clocks = emitted([0, 1], 2, 3).flatten().tolist()
    assert clocks == pytest.approx(GOLDEN_CLOCKS, rel=1e-6)
    assert noise([0, 1]).accept(2).flatten().tolist() == GOLDEN_UNIFORMS


LAWS = {
    "even": torch.full((40,), 1 / 40),
    "geometric": 0.7 ** torch.arange(60.0),
    "one heavy": torch.cat([torch.tensor([0.97]), torch.full((30,), 1e-3)]),
    "with zeros": torch.tensor([0.0, 0.4, 0.0, 0.1, 0.5, 0.0]),
    "two": torch.tensor([0.25, 0.75]),
}


@pytest.mark.parametrize("name", LAWS)
def test_races_are_won_as_often_as_the_law_says(name):
    """100,000 draws, over requests and positions; chi-square."""
    law = (LAWS[name] / LAWS[name].sum()).float()
    at = torch.arange(100).expand(1000, -1)
    draws = race(law, noise(range(1000)).emit(at, len(law))).flatten()
    assert p_of(draws, law) > LEAST_P
    tilted = law * torch.linspace(0.5, 1.5, len(law))
    assert p_of(draws, tilted / tilted.sum()) < 1e-6  # the test can tell a law that is a little off


def test_races_between_tiny_probabilities():
    """A token of probability 1e-6 wins as often as it should among 4 million draws."""
    law = torch.tensor([1 - 3e-6, 1e-6, 2e-6])
    at = torch.arange(2000).expand(2000, -1)
    wins = torch.bincount(race(law, noise(range(2000)).emit(at, 3)).flatten(), minlength=3)
    for token, expected in ((1, 4), (2, 8)):
        assert scipy.stats.poisson.cdf(wins[token], expected) > LEAST_P
        assert scipy.stats.poisson.sf(wins[token] - 1, expected) > LEAST_P


def test_float64_probabilities_race_the_same():
    law = torch.rand(50, generator=torch.Generator().manual_seed(0)).softmax(-1)
    clocks = emitted(range(50), 50, 50)
    assert torch.equal(race(law, clocks), race(law.double(), clocks))


def p_of(draws, law):
    """Chi-square p-value of draws from `law`; rare tokens pooled to an expected count of 5."""
    counts = torch.bincount(draws, minlength=len(law)).double()
    expected = law.double() * len(draws)
    if counts[expected == 0].any():
        return 0.0
    rare = expected < 5
    cells = torch.cat([counts[~rare], counts[rare].sum()[None]])
    means = torch.cat([expected[~rare], expected[rare].sum()[None]])
    cells, means = cells[means > 0], means[means > 0]
    statistic = ((cells - means) ** 2 / means).sum().item()
    return math.nan if len(cells) < 2 else scipy.stats.chi2.sf(statistic, len(cells) - 1)


def test_clocks_in_blocks_are_the_whole_table_bit_for_bit():
    keys = torch.tensor([[request_key(3, r) + 7 * k for k in range(3)] for r in range(4)])
    for vocab_size in (1, 6, 10_000, 49_157):
        tokens = torch.arange(vocab_size, dtype=torch.int32)
        blocks = [clocks.clone() for clocks in _clock_blocks(keys, tokens)]
        assert torch.equal(
            torch.cat(blocks).view(4, 3, -1), _exponential(random_bits(keys, tokens))
        )


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_drawing_without_a_table_is_the_race(shared, dtype):
    run = noise(range(7), start=3, shared=shared)
    at = torch.arange(4).expand(7, -1)
    for vocab_size in (1, 6, 20_000):  # of 20,000 only three rows at a time stay in cache
        probs = torch.rand(7, 4, vocab_size, dtype=dtype)
        probs[..., ::3] = 0
        probs[..., -1] = 0.1
        for drawn, table in ((run.emitted, run.emit), (run.drafted, run.draft)):
            assert torch.equal(drawn(probs, at), race(probs, table(at, vocab_size)))
            assert torch.equal(drawn(probs[:, 2], at[:, 2]), drawn(probs, at)[:, 2])


@pytest.mark.parametrize("shared", [False, True])
def test_tokens_without_probability_need_no_clock(shared):
    run, known = noise(range(9), start=5, shared=shared), torch.tensor([3, 40, 41, 77, 2999])
    at = torch.arange(3).expand(9, -1)
    probs = torch.zeros(9, 3, 3000)
    probs[..., known] = 0.5 + torch.rand(9, 3, 5, generator=torch.Generator().manual_seed(1))
    drawn = run.drafted(probs, at, known)
    assert torch.equal(drawn, run.drafted(probs, at))
    assert set(drawn.flatten().tolist()) == set(known.tolist())


@pytest.mark.parametrize("shared", [False, True])
def test_a_table_ahead_has_the_clocks_of_each_draft_token(shared):
    run = noise(range(5), start=3, shared=shared)
    table = run.drafts(4, 60)
    for offset in range(4):
        at = torch.full((5,), offset)
        assert torch.equal(table[:, offset], run.draft(at, 60))
    assert run.drafts(4, 60_000) is None
