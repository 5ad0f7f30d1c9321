"""The plugin's tensors against the rules they stand for; needs no vLLM."""

import json

import pytest
import torch

from easd.config import parse_rule
from easd.core.rules import EASD, make_rule
from easd.core.rules.gated import gate_signals
from easd.core.step import Step
from easd.diagnose.calibration_file import CalibrationFile
from easd.errors import ConfigError, EasdError
from easd.integrations.vllm import gate
from easd.integrations.vllm.gate import Tally, ask, light_signals, penalise_, rows_of
from easd.integrations.vllm.serving import Serving

COUNTS = torch.tensor([3, 0, 1, 2])
TOTAL = 6
VOCAB = 9


def recorded(seed=0):
    """Draft tokens [N], draft probabilities and target logits [N, V] of a ragged batch."""
    generator = torch.Generator().manual_seed(seed)
    target_logits = torch.randn(TOTAL, VOCAB, generator=generator) * 0.4
    draft_logits = target_logits + torch.randn(TOTAL, VOCAB, generator=generator) * 0.2
    draft_probs = draft_logits.softmax(-1)
    return draft_probs.multinomial(1, generator=generator)[:, 0], draft_probs, target_logits


def core_step(draft_tokens, draft_probs, target_logits):
    """The same positions as easd's engine would pass them: padded, with a bonus position."""
    rows, longest = len(COUNTS), int(COUNTS.max())
    tokens = torch.zeros(rows, longest, dtype=torch.int64)
    draft = torch.zeros(rows, longest + 1, VOCAB)
    target = torch.full((rows, longest + 1, VOCAB), 1 / VOCAB)
    row, position = rows_of(COUNTS, TOTAL)
    tokens[row, position] = draft_tokens
    draft[row, position] = draft_probs
    target[row, position] = target_logits.softmax(-1)
    step = Step(
        draft_tokens=tokens, num_draft_tokens=COUNTS, draft_probs=draft, target_probs=target
    )
    return step, row, position


@pytest.mark.parametrize(
    "rule",
    [
        EASD(tau_h=2.0, tau_o=0.8),
        EASD(tau_h=2.05, tau_o=0.4),
        make_rule("easd-without-overlap", tau_h=2.0),
    ],
)
def test_decisions_are_those_of_the_core(rule):
    opened = 0
    for seed in range(20):
        given = recorded(seed)
        step, row, position = core_step(*given)
        wanted = rule.published().judge(step).penalty_prob[row, position]
        gates = ask([rule.gate], torch.zeros(TOTAL, dtype=torch.int64), *given)
        assert torch.equal(gates.open, wanted == 1)
        opened += int(gates.open.sum())
    assert 0 < opened < 20 * TOTAL


def test_arrays_hold_the_same_values_as_tensors(monkeypatch):
    """Bit for bit, with copies for few entries and without; also what a penalty makes of them."""
    gates = [EASD(tau_h=2.0, tau_o=0.8).gate, EASD(tau_h=1.9, tau_o=0.5, top_n=4).gate]
    seen = set()
    for seed in range(20):
        draft_tokens, draft_probs, target_logits = recorded(seed)
        target_logits[seed % TOTAL, 1:4] = -torch.inf
        draft_probs[0] = 0
        draft_probs[0, seed % VOCAB] = 1
        rule_of = torch.arange(TOTAL) % 3
        monkeypatch.setattr(gate, "FEW_ENTRIES", seed % 2 * 2**15)
        found = []
        for values in (rule_of, rule_of.numpy()):
            probs, logits = draft_probs.clone(), target_logits.clone()
            judged = ask(gates, values, draft_tokens, probs, logits)
            penalise_(judged.open, draft_tokens, probs, logits)
            tally = Tally(torch.device("cpu"))
            row, position = rows_of(COUNTS, TOTAL)
            emitted = torch.tensor([2, 1, 1, 3])
            layout = [row, position, emitted]
            if values is not rule_of:
                layout = [each.numpy() for each in layout]
            tally.add(judged, *layout)
            found.append((judged, probs, logits, tally.read()))
        (tensors, *changed, counts), (arrays, *other, others) = found
        assert not isinstance(arrays.open, torch.Tensor)
        assert isinstance(tensors.open, torch.Tensor)
        assert arrays.open.tolist() == tensors.open.tolist()
        assert arrays.asked.tolist() == tensors.asked.tolist()
        for condition, holds in tensors.met.items():
            assert arrays.met[condition].tolist() == holds.tolist()
        assert all(map(torch.equal, changed, other))
        assert counts == others
        seen.update(arrays.open.tolist())
    assert seen == {False, True}


@pytest.mark.parametrize("few", [0, 2**15])
def test_signals_in_few_calls_are_those_of_the_core(monkeypatch, few):
    monkeypatch.setattr(gate, "FEW_ENTRIES", few)
    for vocab in (3, 9, 700, 17_000):
        generator = torch.Generator().manual_seed(vocab)
        draft, target = (
            (torch.randn(5, vocab, generator=generator) * 2).softmax(-1) for _ in range(2)
        )
        draft[0, 1:], target[1, :2] = 0, 0
        wanted = gate_signals(draft, target, 5)
        found = light_signals(draft, target, 5)
        assert list(found) == list(wanted)
        for name, values in wanted.items():
            assert torch.equal(torch.from_numpy(found[name]), values), name


def test_each_row_follows_its_own_rule():
    given = recorded()
    rules = [EASD(tau_h=0.0, tau_o=0.0).gate, EASD(tau_h=float("inf")).gate]
    row, _ = rows_of(COUNTS, TOTAL)
    gates = ask(rules, torch.tensor([0, 0, -1, 1])[row], *given)
    assert gates.open.tolist() == [True] * 3 + [False] * 3
    assert gates.asked.tolist() == [True] * 3 + [False] + [True] * 2


def test_rules_of_other_conditions_and_top_tokens_share_a_batch():
    """Each token is judged as in a batch of its rule alone."""
    rules = [
        EASD(tau_h=2.0, tau_o=0.8).gate,
        EASD(tau_h=1.9, tau_o=0.75, top_n=2).gate,
        make_rule("easd-without-overlap", tau_h=2.0).gate,
    ]
    rule_of = torch.arange(TOTAL) % 3
    told_apart = 0
    for seed in range(20):
        given = recorded(seed)
        together = ask(rules, rule_of, *given)
        alone = [ask([rule], torch.zeros_like(rule_of), *given) for rule in rules]
        opened = torch.stack([each.open for each in alone])
        assert torch.equal(together.open, opened.gather(0, rule_of[None])[0])
        overlap = torch.stack([each.met["overlap"] for each in alone])
        assert torch.equal(together.met["overlap"], overlap.gather(0, rule_of[None])[0])
        told_apart += int((opened[0] != opened.gather(0, rule_of[None])[0]).sum())
    assert told_apart > 5


def test_placeholders_are_not_judged():
    draft_tokens, draft_probs, target_logits = recorded()
    draft_tokens[1] = -1
    everywhere = torch.zeros(TOTAL, dtype=torch.int64)
    gates = ask([EASD(tau_h=0, tau_o=0).gate], everywhere, draft_tokens, draft_probs, target_logits)
    assert gates.open.tolist() == [True, False, True, True, True, True]
    before = target_logits[1].clone()
    penalise_(gates.open, draft_tokens, draft_probs, target_logits)
    assert torch.equal(target_logits[1], before)


def test_a_penalty_leaves_the_target_without_the_token():
    draft_tokens, draft_probs, target_logits = recorded()
    opened = torch.tensor([True, False, True, False, False, True])
    wanted = target_logits.softmax(-1)
    wanted[opened, draft_tokens[opened]] = 0
    wanted /= wanted.sum(-1, keepdim=True)
    draft_before = draft_probs.clone()
    penalise_(opened, draft_tokens, draft_probs, target_logits)
    torch.testing.assert_close(target_logits.softmax(-1), wanted)
    assert torch.equal(draft_probs, draft_before * ~opened[:, None])


def test_a_redrawn_token_is_no_penalty():
    given = recorded()
    row, position = rows_of(COUNTS, TOTAL)
    gates = ask([EASD(tau_h=0, tau_o=0).gate], torch.zeros(TOTAL, dtype=torch.int64), *given)
    tally = Tally(torch.device("cpu"))
    redrawn = torch.tensor([False, False, True, False, False, False])
    tally.add(gates, row, position, torch.tensor([3, 1, 1, 3]), redrawn)
    assert (tally.read()["examined"], tally.read()["penalised"]) == (6, 1)


def test_the_tally_stops_at_the_first_refusal():
    given = recorded()
    row, position = rows_of(COUNTS, TOTAL)
    rules = [EASD(tau_h=0, tau_o=0).gate]
    gates = ask(rules, torch.tensor([0, 0, 0, -1])[row], *given)
    tally = Tally(torch.device("cpu"))
    tally.add(gates, row, position, torch.tensor([1, 1, 1, 2]))
    tally.add_unasked(5)
    assert tally.read() == {
        "examined": 2,
        "draft_entropy": 2,
        "target_entropy": 2,
        "overlap": 2,
        "penalised": 2,
        "unasked": 5,
    }


@pytest.mark.parametrize(
    ("asked", "wanted"),
    [
        ({}, EASD(tau_h=1.2)),
        ({"easd": True}, EASD(tau_h=1.2)),
        ({"easd": False}, None),
        ({"easd": 0}, None),
        ({"easd": "false"}, None),
        ({"easd": {"tau_h": 0.5}}, EASD(tau_h=0.5)),
        ({"easd": json.dumps({"tau_o": 0.6})}, EASD(tau_h=1.2, tau_o=0.6)),
        ({"other": 1}, EASD(tau_h=1.2)),
        ({"easd": {"top_n": 3}}, EASD(tau_h=1.2, top_n=3)),
        ({"easd": {"name": "pool", "a": 2.0}}, make_rule("pool", a=2.0)),
        ({"easd": '{"name": "speculative"}'}, None),
    ],
)
def test_a_request_sets_its_rule(asked, wanted):
    assert Serving.parse({"tau_h": 1.2}).rule_for(asked) == wanted


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"tau": 1}, "no field 'tau'"),
        ({"redraw": "target"}, "redraw = 'target' is not served"),
        ({"name": "draft"}, "runs one model alone"),
        ({"tau_h": -1}, "tau_h = -1.0 is not an entropy"),
        ("yes please", "is not understood"),
        (2, "is not understood"),
        (None, "is not understood"),
        ([1], "is not understood"),
    ],
)
def test_a_request_that_does_not_fit_is_refused(asked, says):
    with pytest.raises(EasdError, match=says):
        Serving.parse({}).rule_for({"easd": asked})


def test_a_tuned_rule_is_served(tmp_path):
    found = {"name": "pool-everywhere", "a": 1.4, "b": 0.6}
    nothing = {"fingerprints": {}, "sampling": {}, "data": [], "estimates": {}}
    CalibrationFile(kind="tuning", fields=found, pair="lab-a", **nothing).save(tmp_path / "t.json")
    values = {"calibration": str(tmp_path / "t.json")}
    serving = Serving.parse(values)
    assert serving.rule == parse_rule(found)
    assert serving.rule_for({"easd": {"b": 0.1}}) == parse_rule({**found, "b": 0.1})
    assert Serving.parse({**values, "b": 0.2}).rule == parse_rule({**found, "b": 0.2})
    assert serving.draft_temperature is None
    for wrong, says in ((3, "give a file's path"), ("no.json", "cannot read")):
        with pytest.raises(ConfigError, match=says):
            Serving.parse({"calibration": wrong})


@pytest.mark.parametrize(
    ("asked", "served"),
    [({}, 0.5), ({"draft_temperature": 2}, 2.0), ({"name": "pool", "a": 1}, None)],
    ids=str,
)
def test_a_tuned_rule_brings_its_draft_temperature(asked, served, tmp_path):
    nothing = {"fingerprints": {}, "sampling": {}, "data": [], "estimates": {}}
    decoding = {"temperature": 1.0, "draft_temperature": 0.5}
    CalibrationFile(
        kind="tuning",
        fields={"name": "pool-everywhere", "a": 1.4, "b": 0.6},
        pair="lab-a",
        decoding=decoding,
        **nothing,
    ).save(tmp_path / "t.json")
    serving = Serving.parse({"calibration": str(tmp_path / "t.json"), **asked})
    assert serving.draft_temperature == served


def test_a_draft_temperature_is_served_with_laws():
    serving = Serving.parse({"name": "pool", "draft_temperature": 0.6})
    assert serving.draft_temperature == 0.6
    with pytest.raises(ConfigError, match="would change what easd emits"):
        serving.rule_for({"easd": {"name": "easd"}})
    drawn = Serving.parse({"coupling": "maximal", "draft_temperature": 0.6})
    assert drawn.rule_for(None) == EASD()


def test_lossless_only_refuses_every_gate_that_can_open():
    serving = Serving.parse({"lossless_only": True})
    assert serving.rule_for(None) is None
    assert serving.rule_for({"easd": False}) is None
    assert serving.rule_for({"easd": {"tau_h": "inf"}}) == EASD(tau_h=float("inf"))
    for asked in (True, {}, {"tau_h": 3.0}, '{"tau_o": 1.0}', {"name": "mars"}):
        with pytest.raises(ConfigError, match="lossless_only"):
            serving.rule_for({"easd": asked})


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"tau_hh": 1}, "no field 'tau_hh'"),
        ({"lossless_only": "yes"}, "lossless_only = 'yes' does not fit"),
        ({"name": "draft"}, "rule draft runs one model alone"),
        ({"name": "fly"}, "rule fly has no law"),
        ({"name": "pool", "entropy_of": "raw"}, "needs probabilities before temperature"),
        ({"name": "pool", "coupling": "published"}, "for easd and its ablations, not for pool"),
        ({"coupling": "shared"}, "coupling = 'shared' is not served in vLLM"),
        ({"redraw": "target"}, "redraw = 'target' is not served"),
        ({"gate_on": "accepted"}, "gate_on = 'accepted' is not served"),
        ({"penalise": "draft_top"}, "penalise = 'draft_top' is not served"),
        ({"draft_at_bonus": True}, "draft_at_bonus = True is not served"),
        ({"entropy_of": "raw"}, "needs probabilities before temperature"),
        ({"conditions": ["overlap"]}, "add 'target_entropy'"),
        (1.5, "is no mapping"),
        ({"draft_temperature": 0.6}, "would change what easd emits: .* coupling = 'maximal'"),
        ({"name": "pool", "draft_temperature": 0}, "draft_temperature = 0 is not served"),
        ({"name": "pool", "draft_temperature": "cold"}, "draft_temperature = 'cold' is not served"),
        ({"name": "pool", "draft_temperature": True}, "draft_temperature = True is not served"),
    ],
)
def test_what_cannot_be_served_is_refused(values, says):
    with pytest.raises(EasdError, match=says):
        Serving.parse(values)
