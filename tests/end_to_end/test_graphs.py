"""Forwards replayed as graphs write what plain ones write, also when a model changes meanwhile.

On a CPU, a trace of PyTorch's operations stands in for a CUDA graph. Like one, it holds the
addresses and Python values of one call, and refuses to read a number from a tensor.
"""

import gc
import warnings
import weakref
from dataclasses import replace

import pytest
from models import (
    DEVICE,
    fresh_pair,
    llama_pair,
    prompts,
    requests,
    sliding,
    texts,
)
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

from easd import EASD, RULES, Speculative
from easd.core.rules import gated, refusal
from easd.engine.generate import make_engine
from easd.engine.models import graphs
from easd.engine.models.graphs import map_tensors, tensors_of
from easd.engine.pair import Pair
from easd.engine.settings import Settings

PAIRS = {
    "llama": llama_pair,
    "gemma3": lambda: sliding("gemma3"),
}
ASKED = requests(prompts(4, longest=20), max_new_tokens=24)


def traced(function, given):
    function(*given)
    inputs, outputs = tensors_of(given), []

    def flat(*tensors):
        left = iter(tensors)
        outputs.append(function(*map_tensors(given, lambda _: next(left))))
        return tensors_of(outputs[0])

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trace = make_fx(flat)(*inputs)

    def replay():
        left = iter(trace(*inputs))
        return map_tensors(outputs[0], lambda _: next(left))

    return replay


@pytest.fixture
def recordings(monkeypatch):
    """The calls that are recorded."""
    made, real = [], graphs.record if DEVICE != "cpu" else traced

    def record(function, given):
        made.append([tuple(tensor.shape) for tensor in tensors_of(given)])
        return real(function, given)

    monkeypatch.setattr(graphs, "serve", lambda device: True)
    for module in (gated, refusal):  # as on a GPU, without branches on values
        monkeypatch.setattr(module, "on_host", lambda values: False)
    monkeypatch.setattr(graphs, "record", record)
    return made


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("name", PAIRS)
def test_the_texts_are_those_of_plain_forwards(name, batch_size, recordings, monkeypatch):
    pair, settings = PAIRS[name](), {"rule": Speculative(), "batch_size": batch_size, "gamma": 3}
    replayed = texts(pair, ASKED, **settings)
    forwards = [shapes for shapes in recordings if len(shapes) == 2]
    assert bool(forwards) == (name == "llama"), "forwards of Llama's shape are written here"
    monkeypatch.setattr(graphs, "serve", lambda device: False)
    assert replayed == texts(pair, ASKED, **settings)


WAYS = {
    "easd": {"rule": EASD(tau_h=1.0, tau_o=0.4)},
    "easd maximal": {"rule": EASD(tau_h=1.0, tau_o=0.4), "coupling": "maximal"},
    "pool": {"rule": RULES["pool-everywhere"](a=1.2, b=0.4)},
    "block": {"rule": Speculative(), "coupling": "block"},
    "shared": {"rule": Speculative(), "coupling": "shared"},
    "greedy": {"rule": EASD(tau_h=1.0, tau_o=0.4), "temperature": 0.0},
    "tempered": {"rule": Speculative(), "draft_temperature": 0.5, "top_k": 9},
    "adaptive": {"rule": Speculative(), "least_block_prob": 0.3},
    "constrained": {"rule": Speculative(), "repetition_penalty": 1.3},
}


@pytest.mark.parametrize("way", WAYS)
def test_so_do_drafting_and_verification(way, recordings, monkeypatch):
    settings = {**WAYS[way], "batch_size": 2, "gamma": 3}
    processing = Settings(**settings).processing(0, [], [])
    asked = [replace(request, processing=processing) for request in ASKED]
    replayed = texts(llama_pair(), asked, **settings)
    drawn, verified = (
        sum(shapes.count((2, length, 24)) for shapes in recordings) for length in (1, 4)
    )
    assert verified
    assert bool(drawn) == (way != "constrained")
    monkeypatch.setattr(graphs, "serve", lambda device: False)
    assert replayed == texts(llama_pair(), asked, **settings)


def test_batches_are_padded_to_powers_of_two(recordings):
    lengths = (4, 8, 12, 12, 16, 20)
    asked = [replace(ASKED[0], number=n, max_new_tokens=each) for n, each in enumerate(lengths)]
    texts(llama_pair(), asked, rule=RULES["target"](), batch_size=6)
    forwards = [shapes[0] for shapes in recordings if len(shapes) == 2]
    assert forwards == [(6, 1), (4, 1), (2, 1), (1, 1)]


def test_prompts_that_wait_are_not_overwritten(recordings, monkeypatch):
    """Rows that a graph is padded with hold prompts that are cached in turns."""

    def written():
        engine = make_engine(Pair.of(*llama_pair()), Settings(rule=Speculative()), num_rows=4)
        for request in requests(prompts(12, longest=40), max_new_tokens=20):
            engine.submit(request)
        done = {}
        while engine.busy:
            for record in engine.step(prefill_tokens=5):
                done |= {row.request.number: row.ids for row in record.rows if row.finished}
        return done

    replayed = written()
    assert any(shapes[0][0] == 4 for shapes in recordings if len(shapes) == 2)
    monkeypatch.setattr(graphs, "serve", lambda device: False)
    assert replayed == written()


def changed_in_place(model):
    model.model.layers[0].mlp.up_proj.weight.data.mul_(-1)


def moved(model):
    weight = model.model.layers[0].mlp.up_proj.weight
    weight.data = -weight.data


def replaced(model):
    linear = model.model.layers[0].mlp.up_proj
    linear.weight = nn.Parameter(-linear.weight.detach())


def other_module(model):
    old = model.model.layers[0].mlp.up_proj
    new = nn.Linear(old.in_features, old.out_features, bias=False)
    new.weight = nn.Parameter(-old.weight.detach())
    model.model.layers[0].mlp.up_proj = new.eval()


def hooked(model):
    model.model.layers[0].mlp.up_proj.register_forward_hook(lambda _, given, out: -out)


def other_forward(model):
    linear = model.model.layers[0].mlp.up_proj
    linear.forward = lambda rows: -nn.functional.linear(rows, linear.weight)


CHANGES = [changed_in_place, moved, replaced, other_module, hooked, other_forward]


@pytest.mark.parametrize("change", CHANGES)
def test_changes_of_a_model_between_two_steps_are_seen(change, recordings, monkeypatch):
    def written():
        pair = fresh_pair()
        engine = make_engine(Pair.of(*pair), Settings(rule=Speculative()), num_rows=1)
        engine.submit(requests(prompts(1), max_new_tokens=50)[0])
        for _ in range(8):
            (record,) = engine.step()
        change(pair[0])
        while engine.busy:
            (record,) = engine.step()
        return record.rows[0].ids

    replayed = written()
    assert recordings
    monkeypatch.setattr(graphs, "serve", lambda device: False)
    assert replayed == written()


def test_hooks_run_in_every_forward(recordings):
    """A graph would run their Python only once."""
    target, draft = fresh_pair()
    calls = []
    target.model.layers[0].mlp.register_forward_hook(lambda *_: calls.append(1))
    engine = make_engine(Pair.of(target, draft), Settings(rule=RULES["target"]()), num_rows=1)
    engine.submit(requests(prompts(1), max_new_tokens=12)[0])
    steps = 0
    while engine.busy:
        engine.step()
        steps += 1
    assert len(calls) == steps == 12


def test_what_cannot_be_recorded_runs_plainly(recordings, monkeypatch):
    def refuse(function, given):
        raise RuntimeError("operation not permitted when stream is capturing\nmore lines")

    monkeypatch.setattr(graphs, "record", refuse)
    settings = {"rule": Speculative(), "batch_size": 2}
    with pytest.warns(UserWarning, match="without a CUDA graph .*capturing.*slower"):
        written = texts(llama_pair(), ASKED, **settings)
    monkeypatch.setattr(graphs, "serve", lambda device: False)
    assert written == texts(llama_pair(), ASKED, **settings)


def test_the_next_engine_records_nothing_anew(recordings):
    """Unless a model has changed or the batch has another size; no model is kept alive."""
    models = list(fresh_pair())
    settings = {"rule": Speculative(), "batch_size": 2, "gamma": 3}

    def forwards():
        recordings.clear()
        found = texts(models, ASKED, **settings)
        return found, sum(len(shapes) == 2 for shapes in recordings)

    first, recorded = forwards()
    assert recorded
    forwards()  # Records what it now calls for the second time.
    assert forwards() == (first, 0)
    models[0].lm_head.weight = nn.Parameter(-models[0].lm_head.weight)
    other, recorded = forwards()
    assert other != first
    assert recorded
    settings["batch_size"] = 3
    assert forwards()[1]
    for model in models:
        model.float()  # The slots that were kept are float64.
    assert forwards()[1]
    target = weakref.ref(models[0])
    models.clear()
    gc.collect()
    assert target() is None
