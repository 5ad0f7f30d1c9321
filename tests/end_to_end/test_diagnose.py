"""From models and reference texts to a diagnosis: the table against rules applied directly."""

import re
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from models import llama_pair, prompts, word_tokenizer
from transformers.generation import logits_process as hf

from easd import EASD, Settings, load_pair, make_rule
from easd.core.step import Step
from easd.diagnose import pool_fit, reference_pass
from easd.diagnose.diagnosis import diagnose
from easd.diagnose.draft_temperature import draft_temperatures
from easd.diagnose.positions import Positions, gate, positions_schema
from easd.diagnose.reference_pass import judged_rules, read_positions
from easd.engine.pair import Pair
from easd.errors import ConfigError, InputError, NumericsError
from easd.pairs import lab

TAU_H, TAU_O = 1.5, 0.6
OPEN, UNGATED = judged_rules()
POSITIONS = positions_schema(OPEN, UNGATED)
FIELDS = {
    "easd-draft-top": ("easd", {"penalise": "draft_top"}),
    "easd-on-accepted": ("easd", {"gate_on": "accepted"}),
    "draft-token": ("fly", {"window": 0}),
}
KINDS = {
    "drawn": {},
    "warped": {"temperature": 0.7, "top_k": 9, "top_p": 0.95, "min_p": 0.02},
    "penalised": {"temperature": 1.3, "repetition_penalty": 1.8},
    "greedy": {"temperature": 0},
}


def tiny_pair():
    target, draft = llama_pair()
    return Pair(name="tiny", target=target, draft=draft, tokenizer=word_tokenizer())


def tiny_texts(count=7):
    asked = prompts(count, seed=1)
    references = [tuple(range(3 + n, 3 + n + length)) for n, length in enumerate((5, 1, 9, 4, 6))]
    return [(asked[n], references[n % 5], f"text {n}") for n in range(count)]


@cache
def tiny_table(kind):
    return read_positions(tiny_pair(), tiny_texts(), Settings(**KINDS[kind]))


def directly(kind):
    """Every position as a step of its own, from plain forwards and transformers' processors."""
    settings, pair = KINDS[kind], tiny_pair()
    processors = []
    if "repetition_penalty" in settings:
        processors.append(hf.RepetitionPenaltyLogitsProcessor(settings["repetition_penalty"]))
    warpers = []
    if settings.get("temperature", 1.0) not in (0, 1):
        warpers.append(hf.TemperatureLogitsWarper(settings["temperature"]))
    if "top_k" in settings:
        warpers.append(hf.TopKLogitsWarper(settings["top_k"]))
        warpers.append(hf.TopPLogitsWarper(settings["top_p"]))
        warpers.append(hf.MinPLogitsWarper(settings["min_p"]))
    found = {"draft": [], "target": [], "draft_raw": [], "target_raw": [], "right": []}
    for prompt, reference, _ in tiny_texts():
        ids = torch.tensor([[*prompt, *reference]])
        for name, model in (("target", pair.target), ("draft", pair.draft)):
            with torch.inference_mode():
                logits = model(ids).logits[0]
            for place in range(len(prompt), ids.shape[1]):
                scores = logits[place - 1][None].clone()
                for processor in processors:
                    scores = processor(ids[:, :place], scores)
                found[f"{name}_raw"].append(scores[0].softmax(-1))
                for warper in warpers:
                    scores = warper(ids[:, :place], scores)
                probs = scores[0].softmax(-1)
                if kind == "greedy":
                    probs = torch.zeros_like(probs).index_fill_(0, probs.argmax(), 1.0)
                found[name].append(probs)
        found["right"] += reference
    one = {name: torch.stack(found[name])[:, None].expand(-1, 2, -1) for name in list(found)[:4]}
    right = torch.tensor(found["right"])
    count = len(right)
    return Step(
        draft_tokens=right[:, None],
        num_draft_tokens=torch.ones(count, dtype=torch.long),
        draft_probs=one["draft"],
        target_probs=one["target"],
        raw_draft_probs=one["draft_raw"],
        raw_target_probs=one["target_raw"],
        greedy=torch.ones(count, dtype=torch.bool) if kind == "greedy" else None,
    )


def law_of_right(rule, step):
    return rule.law(step)[:, 0].gather(-1, step.draft_tokens)[:, 0].numpy()


@pytest.mark.parametrize("kind", KINDS)
def test_columns_are_the_rules_laws(kind):
    positions, step = Positions.of(tiny_table(kind)), directly(kind)
    values = positions.values
    is_open = gate(positions, TAU_H, TAU_O)
    assert 3 <= is_open.sum() < len(positions) - 3
    assert np.array_equal(values["token"], step.draft_tokens[:, 0].numpy())
    thresholds = {"tau_h": TAU_H, "tau_o": TAU_O}
    signals = EASD(**thresholds).signals(step)
    for name in ("draft_entropy", "target_entropy", "shared_top"):
        assert np.allclose(values[name], signals[name][:, 0].numpy(), atol=1e-9)
    assert np.array_equal(is_open, signals["gate"][:, 0].numpy() > 0)
    for name in OPEN:
        registered, fields = FIELDS.get(name, (name, {}))
        if registered == "fly":  # its own gate is wider: it asks the target's entropy only
            law = law_of_right(make_rule(registered, **fields, tau_h=TAU_H), step)
            law = np.where(is_open, law, values["target_prob"])
        else:
            law = law_of_right(make_rule(registered, **fields, **thresholds), step)
        told = np.where(is_open, values[f"open_{name}"], values["target_prob"])
        assert np.allclose(told, law, atol=1e-9), name
    for name in UNGATED:
        assert np.allclose(values[f"law_{name}"], law_of_right(make_rule(name), step), atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("powers", [(1.0, 0.0), (1.3, 0.9), (2.0, -1.1)])
def test_pool_of_any_powers_is_the_rules_law(kind, powers):
    positions, step = Positions.of(tiny_table(kind)), directly(kind)
    is_open = gate(positions, TAU_H, TAU_O)
    best, drawn = pool_fit.pool_laws(positions, is_open, *powers)
    fields = {"tau_h": TAU_H, "tau_o": TAU_O, "a": powers[0], "b": powers[1]}
    for law, pick in ((best, "argmax"), (drawn, "sample")):
        if kind == "greedy" and pick == "sample":
            continue  # greedy rows emit the best
        rule = make_rule("pool", **fields, pick=pick)
        assert np.allclose(law, law_of_right(rule, step)[is_open], atol=1e-9)


@pytest.mark.parametrize("room", [24, 24 * 32 * 3])
def test_pieces_and_company_change_nothing(monkeypatch, room):
    """One position of one text at a time, and three texts at a time."""
    together = tiny_table("penalised")
    monkeypatch.setattr(reference_pass, "_MOST_PROBS", room)
    calls = []
    apart = read_positions(
        tiny_pair(),
        tiny_texts(),
        Settings(**KINDS["penalised"]),
        on_progress=lambda *call: calls.append(call),
    )
    assert len(calls) > 2
    assert calls[-1] == (len(together), len(together))
    for name in POSITIONS.names:
        ours, theirs = (table[name].combine_chunks() for table in (apart, together))
        if name in ("pool_target_probs", "pool_draft_probs"):
            assert ours.offsets.equals(theirs.offsets)
            ours, theirs = ours.flatten(), theirs.flatten()
        ours, theirs = ours.to_pylist(), theirs.to_pylist()
        assert ours == (pytest.approx(theirs, abs=1e-9) if name != "pool_right" else theirs), name


def test_rows_come_in_the_order_given():
    table = tiny_table("drawn")
    wanted = [
        (number, name, place, token)
        for number, (_, reference, name) in enumerate(tiny_texts())
        for place, token in enumerate(reference)
    ]
    columns = ("text", "id", "position", "token")
    assert list(zip(*(table[c].to_pylist() for c in columns), strict=True)) == wanted
    assert table.schema.equals(POSITIONS)


def lab_texts(pair, name, count):
    def ids(text):
        return pair.tokenizer(text).input_ids

    return [
        (ids(p.prompt), ids(f"{p.solution} {lab.EOS}"), p.id) for p in lab.problems(name, count, 20)
    ]


def test_exact_accuracy_on_lab():
    """Products of the law over whole solutions, from a plain forward, as in lab_exact."""
    pair = load_pair("lab-m", device="cpu")
    texts = lab_texts(pair, "lab-m", 200)
    found = diagnose(read_positions(pair, texts), tau_h=0.6, rates=(0.02,), unique_solution=True)
    length = len(texts[0][1])
    ids = torch.tensor([[*prompt, *reference] for prompt, reference, _ in texts])
    with torch.inference_mode():
        draft, target = (
            model(ids[:, :-1]).logits[:, -length:].softmax(-1)
            for model in (pair.draft, pair.target)
        )
    right = ids[:, -length:]
    step = Step(
        draft_tokens=right[:, :-1],
        num_draft_tokens=torch.full((200,), length - 1),
        draft_probs=draft,
        target_probs=target,
    )

    def solved(probs):
        return probs.gather(-1, right[..., None])[..., 0].double().prod(-1)

    before = solved(target)
    assert found.target_accuracy.value == pytest.approx(before.mean().item(), abs=1e-5)
    for at in found.thresholds:
        rule = EASD(tau_h=at.tau_h, draft_at_bonus=True)
        change = (solved(rule.law(step)) - before).mean().item()
        assert abs(change) > 1e-4
        assert at.effects[0].change.value == pytest.approx(change, abs=1e-5)
    assert found.thresholds[1].fired.value == pytest.approx(0.02, abs=1e-3)


def test_verdicts_on_lab():
    """EASD hurts where the draft is a second opinion; a shared misconception is its case."""
    for name, outcome, meaning in (
        ("lab-a", "hurt", "second opinion"),
        ("lab-m", "help", "warning"),
    ):
        pair = load_pair(name, device="cpu")
        table = read_positions(pair, lab_texts(pair, name, 1000))
        found = diagnose(table, tau_h=1.5, rates=(0.02,), unique_solution=True)
        assert found.verdict.outcome == "nothing"
        assert found.thresholds[1].verdict.outcome == outcome
        assert found.thresholds[1].pool.meaning == meaning


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        ([], "no reference texts"),
        ([((3,), (), "a")], "the reference of text 'a' is empty"),
        ([((), (3,), "b")], "the prompt of text 'b' is empty"),
        ([((3,), (24,), "c")], "token ids from 24 to 24 and the vocabulary 24"),
        ([((3,) * 2000, (3,) * 100, "d")], r"2000 \+ 100 tokens, more than the context window"),
    ],
)
def test_bad_texts_are_refused(texts, says):
    with pytest.raises(InputError, match=says):
        read_positions(tiny_pair(), texts)


def test_a_missing_draft_and_broken_numbers_are_refused():
    pair = tiny_pair()
    with pytest.raises(ConfigError, match="name a draft"):
        read_positions(replace(pair, draft=None), tiny_texts())
    weights = pair.draft.get_output_embeddings().weight
    kept = weights.detach().clone()
    try:
        with torch.no_grad():
            weights[3] = float("nan")
        with pytest.raises(NumericsError, match=re.escape("the draft's logits are NaN")):
            read_positions(pair, tiny_texts())
    finally:
        with torch.no_grad():
            weights.copy_(kept)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_acceptance_by_draft_temperature_is_that_of_every_position(temperature):
    """Against plain forwards: the mean overlap of the target with the draft at each temperature."""
    found = draft_temperatures(tiny_pair(), tiny_texts(), Settings(temperature=temperature))
    overlaps = {0.0: [], 0.5: [], 1.0: [], 2.0: []}
    for prompt, reference, _ in tiny_texts():
        ids, places = torch.tensor([[*prompt, *reference]]), slice(len(prompt) - 1, -1)
        with torch.inference_mode():
            target, draft = (
                m(ids).logits[0, places] for m in (tiny_pair().target, tiny_pair().draft)
            )
        for share, rows in overlaps.items():
            proposal = (draft / (temperature * share)).softmax(-1) if share else None
            if proposal is None:
                proposal = torch.nn.functional.one_hot(draft.argmax(-1), draft.shape[-1])
            rows += torch.minimum((target / temperature).softmax(-1), proposal).sum(-1).tolist()
    accepted = dict(zip(found.temperatures, found.acceptance, strict=True))
    for share, rows in overlaps.items():
        value = accepted[round(share * temperature, 6)].value
        assert value == pytest.approx(np.mean(rows), abs=1e-5)
    best = max(found.acceptance, key=lambda each: each.value)
    assert accepted[found.best.value] == best
    own = accepted[temperature]
    assert found.gain.value == pytest.approx(best.value - own.value)
    assert own.low < own.value < own.high


def test_greedy_decoding_has_no_draft_temperature():
    with pytest.raises(ConfigError, match="draws nothing"):
        draft_temperatures(tiny_pair(), tiny_texts(), Settings(temperature=0))
