"""The kernels against the torch functions that they stand for."""

import pytest
import torch
from torch.testing import assert_close

from easd.core import kernels
from easd.core.hashing import mix_key, random_bits
from easd.core.noise import _EMIT, Noise, _exponential, race
from easd.core.signals import entropy, shared_top_tokens
from easd.core.triton_kernels import BLOCK, STEPS

PIECE = BLOCK * STEPS
VOCABULARIES = [1, 2, 109, BLOCK + 1, PIECE, 2 * PIECE + 77]
# Sums of up to 20,000 float32 numbers in another order; the GPU's logarithm is good to 2^-22.
NATS = {"rtol": 1e-6, "atol": 2e-6}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def pair(*shape, device, spread=3.0):
    """Draft and target rows that resemble each other, both as peaked as a language model's."""
    logits = spread * torch.randn(*shape)
    nudged = logits + torch.randn(*shape)
    return logits.softmax(-1).to(device), nudged.softmax(-1).to(device)


def by_torch(draft, target, top_n):
    return {
        "draft_entropy": entropy(draft),
        "target_entropy": entropy(target),
        "shared_top": shared_top_tokens(draft, target, top_n),
    }


def check_signals(found, wanted):
    assert found.keys() == wanted.keys()
    for name in ("draft_entropy", "target_entropy"):
        assert_close(found[name], wanted[name], **NATS)
        assert not found[name].signbit().any()
    assert torch.equal(found["shared_top"], wanted["shared_top"])


def exact_odds(draft, target):
    """`sum_of_odds` in float64."""
    draft, target = draft.double(), target.double()
    top = target.argmax(-1, keepdim=True)
    others = target.scatter(-1, top, 0).sum(-1, keepdim=True)
    rest = (draft / (1 - target)).scatter(-1, top, 0).sum(-1)
    return rest, top[..., 0], (draft.gather(-1, top) / others)[..., 0]


def check_odds(found, wanted):
    for ours, exact in ((found[0], wanted[0]), (found[2], wanted[2])):
        assert_close(ours.double(), exact, rtol=1e-6, atol=1e-30)
    assert torch.equal(found[1], wanted[1])


def both(draft, target, top_n):
    return kernels.gate_signals(draft, target, top_n), kernels.sum_of_odds(draft, target)


@pytest.mark.parametrize("top_n", [1, 5, 16])
@pytest.mark.parametrize("vocab_size", VOCABULARIES)
def test_the_signals_are_those_of_torch(vocab_size, top_n, device):
    rows = pair(2, 3, vocab_size, device=device)
    check_signals(kernels.gate_signals(*rows, top_n), by_torch(*rows, top_n))


@pytest.mark.parametrize("vocab_size", VOCABULARIES[1:])
def test_the_odds_are_exact(vocab_size, device):
    rows = pair(2, 3, vocab_size, device=device)
    check_odds(kernels.sum_of_odds(*rows), exact_odds(*rows))


def test_the_largest_vocabularies(device):
    rows = pair(1, 262_144, device=device)
    signals, odds = both(*rows, 5)
    check_signals(signals, by_torch(*rows, 5))
    check_odds(odds, exact_odds(*rows))


def test_certain_and_empty_rows(device):
    """Rows of zeros stand at bonus positions; zeros are never shared, and no entropy is -0."""
    one, other, none = torch.zeros(3, PIECE + 9, device=device).unbind()
    one[3] = other[PIECE + 4] = 1
    draft, target = torch.stack([one, one, none, none]), torch.stack([one, other, one, none])
    found = kernels.gate_signals(draft, target, 5)
    check_signals(found, by_torch(draft, target, 5))
    assert found["shared_top"].tolist() == [1, 0, 0, 0]
    assert found["target_entropy"].tolist() == [0, 0, 0, 0]
    rest, token, odds = kernels.sum_of_odds(draft[:3], target[:3])
    assert token.tolist() == [3, PIECE + 4, 3]
    assert rest.tolist() == [0, 1, 0]
    assert odds[0] == torch.inf
    assert odds[1:].isnan().all()


def test_few_possible_tokens(device):
    """After truncation: fewer possible tokens than the top has places."""
    draft, target = torch.zeros(2, 1, 3 * PIECE, device=device).unbind()
    draft[0, [5, PIECE, 3 * PIECE - 1]] = torch.tensor([0.5, 0.25, 0.25], device=device)
    target[0, [5, PIECE + 1, 3 * PIECE - 1]] = torch.tensor([0.2, 0.2, 0.6], device=device)
    found = kernels.gate_signals(draft, target, 5)
    check_signals(found, by_torch(draft, target, 5))
    assert found["shared_top"].item() == 2


@pytest.mark.parametrize("stride", [1, BLOCK, PIECE])
@pytest.mark.parametrize("falls", [True, False])
def test_tops_in_one_block_one_column_or_all_pieces(stride, falls, device):
    """The target's falls or, its largest entry so far changing most often, rises."""
    draft, target = pair(2, 8 * PIECE, device=device, spread=1.0)
    rising = 0.01 * torch.arange(1.0, 9, device=device)
    places = torch.arange(8, device=device) * stride
    draft[:, places], target[:, places] = rising, rising.flip(0)
    draft, target = (rows / rows.sum(-1, keepdim=True) for rows in (draft, target))
    rows = (draft, target) if falls else (draft.flip(-1), target.flip(-1))
    found = kernels.gate_signals(*rows, 5)
    check_signals(found, by_torch(*rows, 5))
    assert found["shared_top"].tolist() == [2, 2]
    check_odds(kernels.sum_of_odds(*rows), exact_odds(*rows))


def test_ties_go_to_the_lower_token(device):
    """`torch.topk` takes any of the equal ones, so a stable sort says what is right."""
    vocab_size, top_n = 2 * PIECE + 77, 5
    draft, target = (torch.randint(1, 50, (2, 4, vocab_size)) / 1e6).to(device)
    draft[0, 3::BLOCK] = target[0, 3::BLOCK] = 1e-4  # in one column, too
    lists = [rows.sort(dim=-1, descending=True, stable=True).indices for rows in (draft, target)]
    draft_top, target_top = (tokens[:, :top_n] for tokens in lists)
    wanted = (draft_top[:, :, None] == target_top[:, None, :]).sum((-1, -2))
    assert torch.equal(kernels.gate_signals(draft, target, top_n)["shared_top"], wanted)
    same = kernels.gate_signals(draft, draft, top_n)["shared_top"]
    assert same.tolist() == [top_n] * 4
    assert torch.equal(kernels.sum_of_odds(draft, target)[1], target_top[:, 0])


@pytest.mark.parametrize("rest", [1e-6, 1e-9, 1e-30])
def test_an_almost_certain_token_is_weighed_exactly(rest, device):
    """In float32 1 minus its probability is 0 or wrong in the first digit."""
    draft, target = pair(2, PIECE + 9, device=device)
    target = target * rest
    target[:, PIECE + 2] = 1
    check_odds(kernels.sum_of_odds(draft, target), exact_odds(draft, target))


def test_rows_that_do_not_lie_side_by_side(device):
    draft, target = pair(2, 4, 7, device=device)
    views = [
        (draft[:, :2], target[:, 1:3]),
        (draft[0].expand(2, -1, -1), target),
        (draft.transpose(0, 1), target.transpose(0, 1)),
        (draft.mT, target.mT),
        (draft[0, 0], target[0, 0]),
        (draft[None], target[None]),
        (draft[:, :0], target[:, :0]),
    ]
    keys = torch.randint(-(2**63), 2**63 - 1, (8,), device=device)
    for rows in views:
        signals, odds = both(*rows, 5)
        whole_signals, whole_odds = both(*map(torch.clone, rows), 5)
        check_signals(signals, by_torch(*rows, 5))
        assert all(torch.equal(signals[name], whole_signals[name]) for name in signals)
        assert all(map(torch.equal, odds, whole_odds))
        key = keys[: rows[1].shape[-2]] if rows[1].ndim > 1 else keys[0]
        wanted = by_clocks(rows[1], key.expand(rows[1].shape[:-1]))
        assert torch.equal(kernels.race(rows[1], key), wanted)


def test_a_row_does_not_depend_on_its_batch(device):
    draft, target = pair(4, 2, PIECE + 48, device=device)
    signals, odds = both(draft, target, 5)
    alone_signals, alone_odds = both(draft[2, 1], target[2, 1], 5)
    assert all(torch.equal(signals[name][2, 1], alone_signals[name]) for name in signals)
    assert all(torch.equal(a[2, 1], b) for a, b in zip(odds, alone_odds, strict=True))


def by_clocks(probs, key):
    tokens = torch.arange(probs.shape[-1], dtype=torch.int32, device=probs.device)
    return race(probs, _exponential(random_bits(key, tokens)))


@pytest.mark.parametrize("vocab_size", VOCABULARIES)
@pytest.mark.parametrize("spread", [0.0, 3.0, 60.0])
def test_the_race_is_that_of_the_clocks(vocab_size, spread, device):
    """Flat rows try every clock, peaked ones hold many zeros."""
    probs, _ = pair(20, vocab_size, device=device, spread=spread)
    key = torch.randint(-(2**63), 2**63 - 1, (20,), device=device)
    assert torch.equal(kernels.race(probs, key), by_clocks(probs, key))


def test_the_race_is_that_of_the_engine(device):
    noise = Noise(
        keys=torch.tensor([2**62 + 5, -7, 0], device=device),
        start=torch.tensor([0, 10**6, 3], device=device),
    )
    at = torch.arange(4, device=device).expand(3, -1)
    probs, _ = pair(3, 4, PIECE + 9, device=device)
    wanted = race(probs, noise.emit(at, PIECE + 9))
    key = mix_key(noise.keys[:, None], noise.start[:, None] + at, _EMIT)
    assert torch.equal(kernels.race(probs, key), wanted)


def test_impossible_tokens_never_win(device):
    probs = torch.zeros(40, PIECE + 9, device=device)
    probs[:, [7, PIECE + 1]] = 0.5
    key = torch.arange(40, device=device) * 2**40
    found = kernels.race(probs, key)
    assert set(found.tolist()) == {7, PIECE + 1}
    assert torch.equal(found, by_clocks(probs, key))
    assert kernels.race(torch.zeros(PIECE + 9, device=device), key[0]) == 0


def test_which_tensors_are_taken(monkeypatch):
    from torch._subclasses import FakeTensorMode

    with FakeTensorMode():  # tensors of a GPU that need not be there
        monkeypatch.setenv("EASD_KERNELS", "0")
        assert not kernels.usable(torch.empty(2, 3, device="cuda"))
        monkeypatch.delenv("EASD_KERNELS")
        assert kernels.usable(torch.empty(2, 3, device="cuda"))
        assert not kernels.usable(torch.empty(2, 3, device="cuda", dtype=torch.float64))
        assert not kernels.usable(torch.empty(2, 3, device="cuda", dtype=torch.bfloat16))
    assert not kernels.usable(torch.empty(2, 3))
