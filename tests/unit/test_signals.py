"""Signals against independent computations, and at the edges of float32."""

import numpy as np
import pytest
import scipy.stats
import torch

from easd.core.gate import Gate
from easd.core.signals import (
    entropy,
    exclude,
    residual,
    shared_top_tokens,
    sum_of_odds,
    top_tokens,
)

SIZES = [2, 5, 63, 64, 65, 1000, 1300, 4160, 49152, 152064, 152065]


def random_probs(*shape, seed=0, scale=3.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return (
        (scale * torch.randn(*shape, generator=generator, dtype=torch.float64))
        .softmax(-1)
        .to(dtype)
    )


@pytest.mark.parametrize("vocab_size", SIZES)
def test_entropy_is_scipys(vocab_size):
    probs = random_probs(3, vocab_size)
    expected = scipy.stats.entropy(probs.numpy(), axis=-1)
    np.testing.assert_allclose(entropy(probs).numpy(), expected, atol=1e-11, rtol=0)
    np.testing.assert_allclose(entropy(probs.float()).numpy(), expected, atol=5e-5, rtol=0)


def test_entropy_is_in_nats_and_zero_tokens_add_nothing():
    half = torch.tensor([0.5, 0.5, 0.0, 0.0])
    assert entropy(half).item() == pytest.approx(np.log(2))
    assert entropy(torch.full((1000,), 1e-3, dtype=torch.float64)).item() == pytest.approx(
        np.log(1000)
    )


def test_entropy_of_certain_and_empty_rows_is_zero_without_a_sign():
    rows = torch.zeros(2, 40)
    rows[0, 7] = 1
    assert entropy(rows).tolist() == [0, 0]
    assert not torch.signbit(entropy(rows)).any()


def test_entropy_leaves_its_input_alone_and_takes_any_leading_shape():
    probs = random_probs(2, 3, 4, 50)
    before = probs.clone()
    assert entropy(probs).shape == (2, 3, 4)
    assert torch.equal(probs, before)
    assert torch.isnan(entropy(torch.tensor([0.5, torch.nan])))


@pytest.mark.parametrize("n", [1, 5, 10])
@pytest.mark.parametrize("vocab_size", SIZES)
def test_top_tokens_are_topk_as_a_set(vocab_size, n):
    probs = random_probs(2, 3, vocab_size, dtype=torch.float32)
    values, indices = top_tokens(probs, n)
    expected = probs.topk(min(n, vocab_size), dim=-1)
    assert torch.equal(values, expected.values)
    assert torch.equal(indices.sort(-1).values, expected.indices.sort(-1).values)


@pytest.mark.parametrize("vocab_size", [1000, 2000, 2048])
def test_top_tokens_wherever_they_lie(vocab_size):
    """All in one chunk, at both ends, in the tail that fills no chunk."""
    for places in (
        [0, 1, 2, 3, 4],
        [63, 64, 127, 128, 999],
        [995, 996, 997, 998, 999],
        [0, 999, 500, 64, 1],
    ):
        probs = random_probs(vocab_size, scale=0.1) / 2
        at = torch.tensor(places) + (vocab_size - 1000)
        probs[at] = torch.tensor([0.1, 0.2, 0.05, 0.15, 0.12], dtype=torch.float64)
        values, indices = top_tokens(probs, 5)
        assert sorted(indices.tolist()) == sorted(at.tolist())
        assert torch.equal(probs[indices], values)


@pytest.mark.parametrize("vocab_size", [7, 2000])
def test_top_tokens_of_tied_rows_are_distinct(vocab_size):
    values, indices = top_tokens(torch.full((2, vocab_size), 1 / vocab_size), 5)
    assert all(len(set(row)) == 5 for row in indices.tolist())
    assert torch.equal(values, torch.full((2, 5), 1 / vocab_size))


def test_overlap_counts_shared_members():
    draft = torch.tensor([0.3, 0.25, 0.2, 0.15, 0.1, 0.0, 0.0])
    target = torch.tensor([0.1, 0.15, 0.2, 0.25, 0.0, 0.3, 0.0])
    assert shared_top_tokens(draft, target, 5) == 4
    assert shared_top_tokens(draft, draft, 5) == 5
    assert shared_top_tokens(draft, target, 1) == 0
    assert shared_top_tokens(draft, target, 100) == 4


def test_four_of_five_meets_an_overlap_of_point_eight():
    assert Gate(tau_o=0.8).required_shared == 4


@pytest.mark.parametrize("vocab_size", [8, 2000])
def test_tokens_of_probability_zero_are_never_shared(vocab_size):
    draft, target = torch.zeros(vocab_size), torch.zeros(vocab_size)
    draft[0], target[1] = 1, 1
    assert shared_top_tokens(draft, target, 5) == 0
    target[0] = 0.5
    assert shared_top_tokens(draft, target, 5) == 1
    assert shared_top_tokens(torch.zeros(vocab_size), target, 5) == 0


def test_residual_is_what_the_target_has_more():
    target = torch.tensor([[0.5, 0.3, 0.2], [0.5, 0.3, 0.2]])
    draft = torch.tensor([[0.2, 0.5, 0.3], [0.5, 0.3, 0.2]])
    expected = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.3, 0.2]])
    torch.testing.assert_close(residual(target, draft), expected)
    torch.testing.assert_close(residual(target, torch.zeros_like(draft)), target)


def test_exclude_renormalises_and_falls_back_where_nothing_is_left():
    probs = torch.tensor([[0.5, 0.3, 0.2], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    expected = torch.tensor([[0.0, 0.6, 0.4], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    torch.testing.assert_close(exclude(probs, torch.tensor([0, 0, 0])), expected)


@pytest.mark.parametrize("small", [1e-3, 1e-7, 1e-12, 1e-30])
def test_exclude_keeps_full_precision_next_to_certainty(small):
    probs = torch.tensor([1 - small, small / 4, 3 * small / 4], dtype=torch.float32)
    torch.testing.assert_close(exclude(probs, torch.tensor(0)), torch.tensor([0, 0.25, 0.75]))


@pytest.mark.parametrize("top", [0.5, 0.999, 1 - 1e-6, 1 - 1e-12])
@pytest.mark.parametrize("vocab_size", [3, 300, 20_000])
def test_odds_do_not_cancel_at_a_nearly_certain_token(top, vocab_size):
    generator = torch.Generator().manual_seed(vocab_size)
    others = torch.rand(4, vocab_size - 1, generator=generator, dtype=torch.float64)
    others *= (1 - top) / others.sum(-1, keepdim=True)
    place = vocab_size // 2
    target = torch.cat([others[:, :place], torch.full((4, 1), top), others[:, place:]], -1)
    draft = torch.rand(4, vocab_size, generator=generator, dtype=torch.float64)
    rest, token, top_odds = sum_of_odds(draft.float(), target.float())
    assert (token == place).all()
    odds = draft / (1 - target)
    odds[:, place] = 0
    torch.testing.assert_close(rest[:, 0].double(), odds.sum(-1), rtol=1e-5, atol=0)
    exact = draft[:, place] / others.sum(-1)
    torch.testing.assert_close(top_odds[:, 0].double(), exact, rtol=1e-5, atol=0)


def test_the_odds_of_a_certain_token_are_not_finite():
    certain = torch.tensor([[0.0, 1.0, 0.0]])
    for draft in ([[0.2, 0.7, 0.1]], [[1.0, 0.0, 0.0]]):
        assert not sum_of_odds(torch.tensor(draft), certain)[2].isfinite().any()


def test_a_rows_entropy_does_not_depend_on_how_many_are_summed():
    probs = (3 * torch.randn(16, 3, 49_152, generator=torch.Generator().manual_seed(0))).softmax(-1)
    together = entropy(probs)
    assert torch.equal(together, torch.stack([entropy(row) for row in probs]))
    assert torch.equal(together[:, 1], entropy(probs[:, 1]))
