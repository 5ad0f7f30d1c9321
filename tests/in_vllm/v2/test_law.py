"""The law of emitted tokens: of vLLM's V2 kernels, against the closed form.

Triton's interpreter verifies 20 to 50 tokens a second, too few for a chi-square test of the power
it has on a GPU. So the law is computed as well: a token that the open gate refuses is replaced by
what the kernel's own residual logits say, which are exact.
"""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from scipy.stats import chi2
from vllm import SamplingParams
from vllm.config import VllmConfig
from vllm.v1.worker.gpu.input_batch import expand_idx_mapping
from vllm.v1.worker.gpu.sample.sampler import Sampler
from vllm.v1.worker.gpu.spec_decode import rejection_sampler, rejection_sampler_utils
from vllm.v1.worker.gpu.states import RequestState

from easd.core.rules import EASD, make_rule
from easd.core.step import Step
from easd.integrations.vllm import worker_v2
from easd.integrations.vllm.serving import Serving

VOCAB = 12
RULE = EASD(tau_h=0.5, tau_o=0.6)
SERVING = Serving(rule=RULE)
POOL = {"tau_h": 0.5, "tau_o": 0.6, "a": 1.3, "b": -0.7, "pick": "sample"}
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SAMPLES, SAMPLES_OF_BUGS = (400, 250) if DEVICE.type == "cpu" else (200_000, 10_000)
interpreted = pytest.mark.skipif(DEVICE.type != "cpu", reason="looks into the interpreter")


def pair(kind, dtype=torch.float32):
    """Draft's and target's logits [V]: where the gate is open, and where it is closed."""
    generator = torch.Generator().manual_seed(5)
    target = torch.randn(VOCAB, generator=generator) * 1.2
    draft = target + torch.randn(VOCAB, generator=generator) * 0.4
    if kind == "closed":
        draft = -draft  # little overlap
    return draft.to(dtype), target.to(dtype)


def law(draft_logits, target_logits, kind, rule=RULE):
    draft_probs, target_probs = (
        draft_logits.double().softmax(-1),
        target_logits.double().softmax(-1),
    )
    step = Step(
        draft_tokens=torch.zeros(1, 1, dtype=torch.int64),
        num_draft_tokens=torch.ones(1, dtype=torch.int64),
        draft_probs=torch.stack([draft_probs, torch.zeros_like(draft_probs)])[None],
        target_probs=torch.stack([target_probs, target_probs])[None],
    )
    assert RULE.signals(step)["gate"][0, 0] == float(kind == "open")
    return rule.law(step)[0, 0]


def verify(draft_tokens, draft_logits, target_logits, *, serving=SERVING, seed=0, **sampling):
    """First tokens that V2's sampler emits, one request for each draft token."""
    rows = len(draft_tokens)
    states = RequestState(rows, 16, 16, 1, VOCAB, DEVICE)
    config = SimpleNamespace(
        num_speculative_tokens=1,
        enable_adaptive_verification=False,
        rejection_sample_method="block" if serving.coupling == "block" else "standard",
    )
    sampler = Sampler(VllmConfig(), rows, VOCAB, DEVICE, states, num_speculative_tokens=2)
    verifier = rejection_sampler.RejectionSampler(sampler, config, DEVICE)
    worker_v2.follow(worker_v2.Slots(serving, rows, DEVICE), verifier)
    for row in range(rows):
        verifier.sampler.add_request(row, SamplingParams(seed=seed + row, **sampling))
    sampler.apply_staged_writes()
    slots = torch.randperm(rows, generator=torch.Generator().manual_seed(1))
    on_device = slots.to(DEVICE)
    begins = torch.arange(rows + 1, dtype=torch.int32, device=DEVICE) * 2
    expanded, local = expand_idx_mapping(on_device, 2 * rows, begins, 2)
    tokens = torch.stack([torch.zeros_like(draft_tokens), draft_tokens], 1).flatten().to(DEVICE)
    _, sampled, _ = verifier._verify(
        target_logits.to(DEVICE).repeat(2 * rows, 1),
        draft_logits.to(DEVICE).repeat(rows, 1, 1),
        tokens,
        torch.arange(2 * rows, device=DEVICE),
        begins,
        on_device,
        slots.numpy(),
        expanded,
        local,
        torch.full((rows,), 9).numpy(),
        tokens,
    )
    return sampled[:, 0].cpu()


@contextmanager
def residuals():
    """Collects what the kernel redraws from, by row of the target's logits."""
    stock, seen = rejection_sampler_utils._seeded_resample_argmax, {}

    def spy(logits, block, mask, row, *args, **kwargs):
        seen[int(row.handle.data.item())] = torch.from_numpy(logits.handle.data[:VOCAB].copy())
        return stock(logits, block, mask, row, *args, **kwargs)

    rejection_sampler_utils._seeded_resample_argmax = spy
    try:
        yield seen
    finally:
        rejection_sampler_utils._seeded_resample_argmax = stock


def computed_law(draft_logits, target_logits, **sampling):
    """By one request for each token that the draft can propose."""
    with residuals() as seen:
        verify(torch.arange(VOCAB), draft_logits, target_logits, **sampling)
    redrawn = torch.stack([seen[2 * token] for token in range(VOCAB)]).double().softmax(-1)
    temperature = sampling.get("temperature", 1.0)
    return (draft_logits.double() / temperature).softmax(-1) @ redrawn


@pytest.fixture(scope="module", autouse=True)
def attached():
    stock = rejection_sampler.rejection_sample
    if not getattr(stock, "asks_easd", False):
        rejection_sampler.rejection_sample = worker_v2.gated(stock)
    yield
    rejection_sampler.rejection_sample = stock


@interpreted
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_computed_law_is_the_closed_form(dtype):
    draft, target = pair("open", dtype)
    assert torch.allclose(computed_law(draft, target), law(draft, target, "open"), atol=1e-6)


@interpreted
def test_the_computed_law_after_temperature_and_truncation():
    draft, target = pair("open")
    ninth = target.topk(9).values[-1]
    truncated = (target / 1.4).masked_fill(target < ninth, -torch.inf)
    found = computed_law(draft, target, temperature=1.4, top_k=9)
    assert torch.allclose(found, law(draft / 1.4, truncated, "open"), atol=1e-6)


@interpreted
@pytest.mark.parametrize("coupling", ["maximal", "block"])
@pytest.mark.parametrize("name", ["pool", "easd"])
def test_a_law_is_what_the_last_draft_is_redrawn_from(name, coupling):
    """Whichever token was drafted, where the rule holds behind the block too."""
    fields = POOL if name == "pool" else {"tau_h": 0.5, "tau_o": 0.6}
    rule = make_rule(name, **fields, draft_at_bonus=True)
    draft, target = pair("open")
    serving = Serving(rule=rule, coupling=coupling)
    with residuals() as seen:
        verify(torch.arange(VOCAB), draft, target, serving=serving)
    wanted = law(draft, target, "open", rule)
    for token in range(VOCAB):
        torch.testing.assert_close(seen[2 * token].double().softmax(-1), wanted, atol=1e-6, rtol=0)


@pytest.mark.parametrize("coupling", ["maximal", "block"])
def test_laws_take_the_targets_place(coupling):
    rule = make_rule("pool", **POOL)
    counts = emitted("open", SAMPLES, serving=Serving(rule=rule, coupling=coupling))
    assert p_value(counts, law(*pair("open"), "open", rule)) > 0.001


@pytest.mark.parametrize("kind", ["open", "closed"])
def test_emitted_tokens_follow_the_closed_form(kind):
    assert p_value(emitted(kind, SAMPLES), law(*pair(kind), kind)) > 0.001


@pytest.mark.parametrize("bug", ["draft not replaced", "token not excluded", "gate ignored"])
def test_a_planted_bug_is_found(monkeypatch, bug):
    penalised = worker_v2.penalised

    def buggy(gate, drafted, draft_logits, target_logits):
        if bug == "gate ignored":
            return penalised(torch.zeros_like(gate), drafted, draft_logits, target_logits)
        if bug == "draft not replaced":
            return penalised(gate, drafted, draft_logits.clone(), target_logits)
        return penalised(gate, drafted, draft_logits, target_logits.clone())

    monkeypatch.setattr(worker_v2, "penalised", buggy)
    assert p_value(emitted("open", SAMPLES_OF_BUGS), law(*pair("open"), "open")) < 1e-6


@pytest.mark.parametrize("coupling", ["maximal", "block"])
def test_drafts_at_a_temperature_of_their_own_leave_the_law(coupling):
    rule = make_rule("easd", tau_h=0.5, tau_o=0.6)
    serving = Serving(rule=rule, coupling=coupling, draft_temperature=0.5)
    wanted = law(*pair("open"), "open", rule)
    found = emitted("open", SAMPLES, drawn_at=0.5, serving=serving)
    assert p_value(found, wanted) > 0.001
    bug = emitted("open", SAMPLES, serving=serving)  # Drawn at 1, and verified as drawn at 0.5.
    assert p_value(bug, wanted) < 1e-3


def emitted(kind, samples, drawn_at=1.0, **settings):
    """Counts [V] of first tokens, drafts drawn from the draft."""
    draft, target = pair(kind)
    generator = torch.Generator().manual_seed(5)
    drawn = (
        (draft / drawn_at).softmax(-1).multinomial(samples, replacement=True, generator=generator)
    )
    return torch.bincount(verify(drawn, draft, target, seed=100, **settings), minlength=VOCAB)


def p_value(counts, law):
    assert counts[law == 0].sum() == 0
    counts, law = counts[law > 0], law[law > 0]
    expected = law * counts.sum()
    assert expected.min() > 1
    statistic = ((counts - expected) ** 2 / expected).sum()
    return chi2.sf(float(statistic), len(law) - 1)
