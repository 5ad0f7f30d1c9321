"""`verify` is one graph, and thresholds and batch sizes do not multiply it."""

import pytest
import torch

from easd.core.noise import Noise, race, request_key
from easd.core.rules import EASD, RandomRefusal, Speculative
from easd.core.step import Step
from easd.core.verify import verify

K, V = 3, 400
RULES = {
    "speculative": lambda threshold: Speculative(),
    "easd": lambda threshold: EASD(tau_h=threshold),
    "easd overlap": lambda threshold: EASD(tau_h=threshold, tau_o=threshold / 5),
    "easd maximal": lambda threshold: EASD(tau_h=threshold, draft_at_bonus=True),
    "random refusal": lambda threshold: RandomRefusal(rate=threshold / 5),
}


@pytest.fixture
def compiled():
    """Compiles `verify` with a backend that counts graphs; a graph break is an error."""
    torch.compiler.reset()
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    yield torch.compile(verify, fullgraph=True, backend=count), graphs
    torch.compiler.reset()


def make(batch, coupling):
    generator = torch.Generator().manual_seed(batch)
    target = torch.randn(batch, K + 1, V, generator=generator).softmax(-1)
    draft = (target.log() + 0.3 * torch.randn(batch, K + 1, V, generator=generator)).softmax(-1)
    keys = torch.tensor([request_key(0, request) for request in range(batch)])
    noise = Noise(keys=keys, start=torch.full((batch,), 7), shared=coupling == "shared")
    tokens = race(draft[:, :K], noise.draft(torch.arange(K).expand(batch, -1), V))
    step = Step(
        draft_tokens=tokens,
        num_draft_tokens=torch.arange(batch) % K + 1,
        draft_probs=draft,
        target_probs=target,
    )
    # A batch of one is specialised by the compiler; the others share a graph from the start.
    tensors = (tokens, step.num_draft_tokens, draft, target, noise.keys, noise.start)
    for tensor in tensors if batch > 1 else ():
        torch._dynamo.mark_dynamic(tensor, 0)
    return step, noise


def assert_same(found, expected):
    for field in ("num_accepted", "next_token", "penalised"):
        assert torch.equal(getattr(found, field), getattr(expected, field))
    assert set(found.judgement.signals) == set(expected.judgement.signals)
    torch.testing.assert_close(found.judgement.accept_prob, expected.judgement.accept_prob)


@pytest.mark.parametrize(
    ("name", "coupling"),
    [
        ("speculative", "maximal"),
        ("easd", "published"),
        ("easd overlap", "maximal"),
        ("easd maximal", "maximal"),
        ("random refusal", "published"),
        ("easd", "shared"),
    ],
)
def test_thresholds_and_batch_sizes_cost_two_compilations(name, coupling, compiled):
    run, graphs = compiled
    for threshold in (0.9, 1.5, 3.0, 4.5):
        for batch in (2, 3, 5, 8, 16):
            rule, (step, noise) = RULES[name](threshold), make(batch, coupling)
            assert_same(run(rule, step, noise, coupling), verify(rule, step, noise, coupling))
    assert len(graphs) <= 2


def test_a_batch_of_one_costs_one_more(compiled):
    run, graphs = compiled
    for batch in (1, 2, 8):
        step, noise = make(batch, "published")
        assert_same(run(EASD(), step, noise), verify(EASD(), step, noise))
    assert len(graphs) == 2


@pytest.mark.usefixtures("compiled")
def test_functionalised_graphs_decide_the_same():
    """Through AOTAutograd, which rewrites in-place steps; what every machine-code backend gets."""
    run = torch.compile(verify, fullgraph=True, backend="aot_eager")
    rule = EASD(tau_h=1.5, draft_at_bonus=True)
    for batch in (2, 5):
        step, noise = make(batch, "published")
        assert_same(run(rule, step, noise, "maximal"), verify(rule, step, noise, "maximal"))
