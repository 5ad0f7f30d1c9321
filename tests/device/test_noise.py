"""The noise of a request is the same numbers on every device."""

import torch
from models import DEVICE

from easd.core.noise import Noise


def noise(device, shared=False):
    return Noise(
        keys=torch.tensor([2**62 + 5, -7, 0], device=device),
        start=torch.tensor([0, 10**6, 3], device=device),
        shared=shared,
    )


def test_uniforms_are_equal_bit_for_bit():
    assert torch.equal(noise(DEVICE).accept(9).cpu(), noise("cpu").accept(9))


def test_clocks_are_equal_to_the_logarithms_last_digits():
    at = torch.arange(4).expand(3, -1)
    ours, theirs = noise(DEVICE).emit(at.to(DEVICE), 50_000).cpu(), noise("cpu").emit(at, 50_000)
    torch.testing.assert_close(ours, theirs, rtol=3e-7, atol=0)


def test_so_are_the_tokens_that_are_drawn():
    torch.manual_seed(0)
    probs = (4 * torch.randn(3, 4, 50_000)).softmax(-1)
    at = torch.arange(4).expand(3, -1)
    for shared in (False, True):
        here, there = noise(DEVICE, shared), noise("cpu", shared)
        moved, places = probs.to(DEVICE), at.to(DEVICE)
        assert torch.equal(here.emitted(moved, places).cpu(), there.emitted(probs, at))
        assert torch.equal(here.drafted(moved, places).cpu(), there.drafted(probs, at))
