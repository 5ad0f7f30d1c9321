"""A step reads numbers from the device once: the tokens that come back.

Every other read, and every tensor that is not uploaded by `upload`, would have a GPU's host wait.
"""

import sys

import pytest
import torch
from models import DEVICE, llama_pair, prompts, requests
from torch.utils._python_dispatch import TorchDispatchMode

from easd import EASD, RULES, Speculative
from easd.core.rules import gated, refusal
from easd.engine.generate import make_engine
from easd.engine.pair import Pair
from easd.engine.settings import Settings

pytestmark = pytest.mark.skipif(DEVICE != "cpu", reason="benchmarks/gpu_steps.py counts on a GPU")

GATE = EASD(tau_h=1.0, tau_o=0.4)
WAYS = {
    "target": {"rule": RULES["target"]()},
    "speculative": {"rule": Speculative()},
    "block": {"rule": Speculative(), "coupling": "block"},
    "shared": {"rule": Speculative(), "coupling": "shared"},
    "tempered": {"rule": Speculative(), "draft_temperature": 0.5},
    "cut": {"rule": Speculative(), "top_k": 9, "top_p": 0.9, "min_p": 0.01},
    "greedy": {"rule": GATE, "temperature": 0.0},
}
OURS = [name for name, kind in RULES.items() if kind.models == "both" and "easd" in kind.__module__]
_READ = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "unique")


class Reads(TorchDispatchMode):
    """Counts operations that read numbers from a device or depend on how many there are."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        chosen = args[1] if name in ("index", "index_put_", "index_put") else ()
        if name.startswith(_READ) or any(t is not None and t.dtype == torch.bool for t in chosen):
            self.found.append(name)
        return function(*args, **(kwargs or {}))


@pytest.fixture
def reads(monkeypatch):
    counting = Reads()
    tolist, tensor = torch.Tensor.tolist, torch.tensor

    def read(self):
        counting.found.append("tolist")
        return tolist(self)

    def made(*given, **named):
        if not sys._getframe(1).f_code.co_filename.endswith("upload.py"):
            counting.found.append("tensor")
        return tensor(*given, **named)

    monkeypatch.setattr(torch.Tensor, "tolist", read)
    monkeypatch.setattr(torch, "tensor", made)
    for module in (gated, refusal):  # as on a GPU, without branches on values
        monkeypatch.setattr(module, "on_host", lambda values: False)
    return counting


def reads_of_steps(reads, settings):
    engine = make_engine(Pair.of(*llama_pair()), settings, num_rows=2)
    processing = settings.processing(0, [], [])
    for request in requests(prompts(2), max_new_tokens=60, processing=processing):
        engine.submit(request)
    for _ in range(3):
        engine.step()
    counts = []
    for _ in range(5):
        before = len(reads.found)
        with reads:
            engine.step()
        counts.append(reads.found[before:])
    return counts


@pytest.mark.parametrize("way", WAYS)
def test_a_step_reads_once(way, reads):
    assert reads_of_steps(reads, Settings(gamma=3, **WAYS[way])) == [["tolist"]] * 5


@pytest.mark.parametrize("name", OURS)
def test_so_it_does_by_every_rule(name, reads):
    rule = RULES[name].example()
    assert reads_of_steps(reads, Settings(gamma=3, rule=rule)) == [["tolist"]] * 5


def test_a_read_more_would_be_seen(reads, monkeypatch):
    monkeypatch.setattr(gated, "on_host", lambda values: True)
    counts = reads_of_steps(reads, Settings(gamma=3, rule=GATE))
    assert any(len(found) > 1 for found in counts)
