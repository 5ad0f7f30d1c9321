"""A diagnosis as a function of its table: the pool's fit, effects, verdicts, bad tables."""

import json
import re
import subprocess
import sys
from io import StringIO

import numpy as np
import pyarrow as pa
import pytest
from rich.console import Console

from easd.core.rules import RULES
from easd.core.rules.pool import MOST_POWER
from easd.diagnose import pool_fit
from easd.diagnose.diagnosis import diagnose
from easd.diagnose.pool_fit import fit_pool
from easd.diagnose.positions import TOP_N, Positions, gate, positions_schema, threshold_for
from easd.diagnose.printing import render, verdicts
from easd.diagnose.reference_pass import judged_rules
from easd.errors import ConfigError, InputError

OPEN, UNGATED = judged_rules()
POSITIONS = positions_schema(OPEN, UNGATED)


def make_table(num_texts=60, length=20, seed=0, **columns):
    """Positions that all lie at the gate and where no rule changes anything, but for `columns`."""
    count = num_texts * length
    rng = np.random.default_rng(seed)
    half = np.full(count, 0.5)
    values = {
        "text": np.repeat(np.arange(num_texts), length),
        "id": np.repeat([f"text {n}" for n in range(num_texts)], length),
        "position": np.tile(np.arange(length), num_texts),
        "token": rng.integers(0, 9, count),
        "draft_prob": half,
        "target_prob": half,
        "draft_best": np.ones(count, dtype=bool),
        "target_best": np.ones(count, dtype=bool),
        "draft_entropy": np.full(count, 2.0),
        "target_entropy": np.full(count, 2.0),
        "shared_top": np.full(count, TOP_N),
        **{f"open_{name}": half for name in OPEN},
        **{f"law_{name}": half for name in UNGATED},
        "pool_target_probs": [[0.5]] * count,
        "pool_draft_probs": [[0.5]] * count,
        "pool_right": np.zeros(count, dtype=int),
        **columns,
    }
    return pa.table([pa.array(values[f.name]).cast(f.type) for f in POSITIONS], schema=POSITIONS)


def simulated(a, b, *, num_texts=80, length=10, seed=0, spread=0.0):
    """Choices with odds p^a q^b; `spread` makes the powers differ from text to text."""
    rng = np.random.default_rng(seed)
    powers = np.array([a, b]) + spread * rng.standard_normal((num_texts, 1, 1, 2))
    probs = rng.dirichlet(np.ones(4), size=(num_texts, length, 2))  # the target's, the draft's
    scores = (powers @ np.log(probs)).reshape(-1, 4)
    right = (scores + rng.gumbel(size=scores.shape)).argmax(1)
    table = make_table(
        num_texts,
        length,
        pool_target_probs=pa.array(list(probs[:, :, 0].reshape(-1, 4))),
        pool_draft_probs=pa.array(list(probs[:, :, 1].reshape(-1, 4))),
        pool_right=right,
    )
    return Positions.of(table)


def everywhere(positions):
    return np.ones(len(positions), dtype=bool)


@pytest.mark.parametrize(
    ("a", "b", "meaning"),
    [
        (1.0, 1.4, "second opinion"),
        (1.5, -2.4, "warning"),
        (0.7, 0.0, "no effect detected"),
    ],
)
def test_fit_recovers_the_powers(a, b, meaning):
    positions = simulated(a, b, num_texts=200, seed=1)  # one seed in 20 sees something in nothing
    fit = fit_pool(positions, everywhere(positions))
    assert fit.fallback is None
    assert abs(fit.a - a) < 3 * fit.a_error
    assert abs(fit.b - b) < 3 * fit.b_error
    assert max(fit.a_error, fit.b_error) < 0.15
    assert fit.meaning == meaning
    assert (fit.n, fit.n_texts, fit.n_outside) == (2000, 200, 0)


def test_fit_is_the_maximum():
    positions = simulated(1.2, -0.6)
    is_open = everywhere(positions)
    fit = fit_pool(positions, is_open)

    def likelihood(a, b):
        return np.log(pool_fit.pool_laws(positions, is_open, a, b)[1]).sum()

    assert likelihood(fit.a, fit.b) == pytest.approx(fit.log_likelihood)
    for da, db in ((0.01, 0), (-0.01, 0), (0, 0.01), (0, -0.01)):
        assert likelihood(fit.a + da, fit.b + db) < fit.log_likelihood


@pytest.mark.parametrize("spread", [0.0, 1.0])
def test_standard_errors_cover(spread):
    """200 data sets: the share of 95 % intervals that hold b; p = 0.0003 to fail by chance.

    Where powers differ by text, the curve that is fitted has other powers than their mean, so
    those of one large sample stand for the truth; errors that took positions as independent would
    cover it in 72 % only.
    """
    truth = 0.8
    if spread:
        large = simulated(1.0, 0.8, num_texts=20_000, seed=999, spread=spread)
        truth = fit_pool(large, everywhere(large)).b
    covered = 0
    for seed in range(200):
        positions = simulated(1.0, 0.8, num_texts=40, seed=seed, spread=spread)
        fit = fit_pool(positions, everywhere(positions))
        covered += fit.b_low < truth < fit.b_high
    assert 178 <= covered <= 199


def test_fit_falls_back_with_the_reason():
    positions = simulated(1.0, 1.0)
    closed = np.zeros(len(positions), dtype=bool)
    few = closed.copy()
    few[:49] = True
    one_text = positions.texts < 9
    for is_open, reason in ((closed, "never opens"), (few, "49 gated"), (one_text, "9 texts")):
        fit = fit_pool(positions, is_open)
        assert (fit.a, fit.b, fit.b_error, fit.meaning) == (1, 0, None, "unknown")
        assert reason in fit.fallback


def test_fit_falls_back_where_the_choices_tell_nothing():
    """Two models that say the same, and a target that is always right."""
    lists = pa.array([[0.6, 0.3], [0.2, 0.7]] * 600)
    best, either = [0, 1] * 600, [0, 1, 1, 0] * 300
    other = pa.array([[0.5, 0.5], [0.4, 0.6], [0.9, 0.1]] * 400)
    for draft, right in ((lists, either), (other, best)):
        table = make_table(pool_target_probs=lists, pool_draft_probs=draft, pool_right=right)
        positions = Positions.of(table)
        fit = fit_pool(positions, everywhere(positions))
        assert (fit.a, fit.b) == (1, 0)
        assert "do not determine the powers" in fit.fallback


def test_standard_errors_are_those_of_clusters_and_the_interval_students():
    """Bread, meat by text, bread, n / (n - 1); and t of 9 degrees for 10 texts."""
    positions = simulated(1.0, 0.5, num_texts=10, length=40, seed=3)
    fit = fit_pool(positions, everywhere(positions))
    logs = np.stack([positions.target_logs, positions.draft_logs], 1).reshape(400, 4, 2)
    scores = logs @ np.array([fit.a, fit.b])
    shares = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    around = logs - (shares[..., None] * logs).sum(1, keepdims=True)
    bread = np.linalg.inv(np.einsum("nc,nci,ncj->ij", shares, around, around))
    chosen = around[np.arange(400), positions.right - positions.starts[:-1]]
    by_text = chosen.reshape(10, 40, 2).sum(1)
    a_error, b_error = np.sqrt(np.diag(bread @ by_text.T @ by_text @ bread) * 10 / 9)
    assert (fit.a_error, fit.b_error) == pytest.approx((a_error, b_error))
    half = (fit.b_high - fit.b_low) / 2
    assert half / fit.b_error == pytest.approx(2.262157, abs=1e-5)
    assert (fit.b_low + fit.b_high) / 2 == pytest.approx(fit.b)


def test_of_equal_tokens_the_pool_writes_the_first():
    lists = [[0.4, 0.4]] * 1200
    right = [0, 1] * 600
    table = make_table(pool_target_probs=lists, pool_draft_probs=lists, pool_right=right)
    positions = Positions.of(table)
    best, drawn = pool_fit.pool_laws(positions, everywhere(positions), 1.0, 0.5)
    assert best.tolist() == [1.0, 0.0] * 600
    assert drawn.tolist() == pytest.approx([0.5] * 1200)


def test_great_powers_overflow_nowhere():
    lists = [[0.9, 1e-300]] * 1200
    positions = Positions.of(
        make_table(pool_target_probs=lists, pool_draft_probs=lists, pool_right=[0, 1] * 600)
    )
    for powers in ((-90.0, -10.0), (90.0, 10.0)):
        best, drawn = pool_fit.pool_laws(positions, everywhere(positions), *powers)
        assert np.isfinite(drawn).all()
        assert best.sum() == drawn.sum() == 600


def test_powers_that_run_away_are_not_fitted(monkeypatch):
    """Beyond what the pool rule takes, whatever their standard errors."""
    close = 0.5 * np.exp([0.0, 0.002])
    odds = 1 / (1 + np.exp(-0.002 * 150))
    rng = np.random.default_rng(0)
    count = 40_000
    other = rng.uniform(0.2, 0.4, (count, 2))
    table = make_table(
        400,
        100,
        pool_target_probs=[close.tolist()] * count,
        pool_draft_probs=other.tolist(),
        pool_right=(rng.random(count) < odds).astype(int),
    )
    positions = Positions.of(table)
    assert "do not determine the powers" in fit_pool(positions, everywhere(positions)).fallback
    monkeypatch.setattr(pool_fit, "MOST_POWER", 1000)
    assert fit_pool(positions, everywhere(positions)).a > 100


def test_right_token_outside_the_pool_is_counted_and_never_written():
    right = pa.array([0, None] * 600, pa.int32())
    positions = Positions.of(make_table(pool_right=right))
    is_open = everywhere(positions)
    assert fit_pool(positions, is_open).n_outside == 600
    for law in pool_fit.pool_laws(positions, is_open, 1.0, 0.5):
        assert law.tolist() == [1.0, 0.0] * 600


def test_held_out_pool_knows_nothing_of_the_judged_text():
    """Other right tokens in a text change how it is judged, but not the pool that judges it."""
    positions = simulated(1.0, 1.0, num_texts=50)
    is_open = everywhere(positions)
    before = pool_fit.held_out_laws(positions, is_open)[1]
    first = positions.texts == 0
    swapped = np.where(first, positions.starts[:-1], positions.right)
    after = pool_fit.held_out_laws(
        Positions(
            positions.values,
            positions.texts,
            positions.n_texts,
            positions.target_logs,
            positions.draft_logs,
            positions.starts,
            swapped,
        ),
        is_open,
    )[1]
    same = first & (swapped == positions.right)
    assert same.any()
    assert np.array_equal(before[same], after[same])
    assert not np.array_equal(before[~first], after[~first])  # it helped to judge the others


def test_gate_is_the_rules_gate():
    rng = np.random.default_rng(3)
    count = 1200
    table = make_table(
        draft_entropy=rng.uniform(0, 3, count),
        target_entropy=rng.uniform(0, 3, count),
        shared_top=rng.integers(0, 6, count),
    )
    positions = Positions.of(table)
    values = positions.values
    for tau_o in (0.0, 0.6, 0.8, 1.0):
        wanted = (values["draft_entropy"] > 1.5) & (values["target_entropy"] > 1.5)
        wanted &= values["shared_top"] >= TOP_N * tau_o - 1e-9
        assert np.array_equal(gate(positions, 1.5, tau_o), wanted)
    for rate in (0.005, 0.02, 0.05):
        assert gate(positions, threshold_for(positions, rate)).mean() == pytest.approx(rate)
    assert threshold_for(positions, 0.9) == 0  # only a third has the overlap
    assert pool_fit.MOST_POWER == MOST_POWER


def uneven(mean, *, seed=5, spread=0.05):
    """Probabilities of EASD's open law around `mean`, different from text to text."""
    rng = np.random.default_rng(seed)
    return np.clip(np.repeat(mean + spread * rng.standard_normal(60), 20), 0.01, 0.99)


@pytest.mark.parametrize("unique_solution", [True, False])
@pytest.mark.parametrize(
    ("columns", "outcome", "says"),
    [
        ({"open_easd": uneven(0.4)}, "hurt", "EASD will hurt on this pair"),
        ({"open_easd": uneven(0.6)}, "help", "EASD will help on this pair"),
        ({"open_easd": uneven(0.5, spread=1e-9)}, "nothing", "within ±0.05"),
        ({"draft_entropy": np.zeros(1200)}, "nothing", "its gate opens at 0.0 % of positions"),
    ],
)
def test_verdicts(columns, outcome, says, unique_solution):
    at = np.zeros(1200, dtype=bool)
    at[::20] = True  # a gated position a text, so that products of 20 halves do not vanish
    half = {"target_prob": np.where(at, 0.5, 0.99), "draft_entropy": np.where(at, 2.0, 0.0)}
    found = diagnose(make_table(**{**half, **columns}), tau_h=1.5, unique_solution=unique_solution)
    assert found.verdict.outcome == outcome
    assert says in found.verdict.sentence
    assert "on this pair at tau_h 1.5" in found.verdict.sentence


def test_verdict_cannot_tell_without_enough_texts():
    found = diagnose(make_table(open_easd=uneven(0.5, spread=0.3)), tau_h=1.5)
    assert found.verdict.outcome == "cannot tell"
    assert "give more texts" in found.verdict.sentence


def test_best_rule_is_named_with_its_gain():
    rng = np.random.default_rng(0)
    better = np.clip(0.7 + 0.05 * rng.standard_normal(1200), 0, 1)
    found = diagnose(make_table(open_sharpened=better, open_easd=uneven(0.3)), tau_h=1.5)
    effect = {e.rule: e for e in found.thresholds[0].effects}["sharpened"]
    wanted = (better - 0.5).reshape(60, 20).sum(1)
    assert effect.change.value == pytest.approx(wanted.mean())
    assert effect.where_it_acts.value == pytest.approx((better - 0.5).mean())
    assert effect.log_likelihood.value == pytest.approx(np.log(better / 0.5).mean())
    half = 2.001 * wanted.std(ddof=1) / 60**0.5  # Student's with 59 degrees of freedom
    assert effect.change.high - effect.change.value == pytest.approx(half, rel=1e-3)
    assert effect.p_value < 1e-10
    assert found.verdict.best == "pool"  # a right token that is the only plausible one
    assert "Best rule with a gate is pool: +1000.00 right tokens" in found.verdict.advice
    assert "Best without a gate is half temperature" in found.verdict.advice
    alone = max(
        e.change.value
        for e in found.thresholds[0].effects
        if e.rule in ("greedy everywhere", "half temperature")
    )
    words = f"The target alone gains {100 * alone:+.2f} right tokens in 100 texts at a lower"
    assert words in found.verdict.advice


def test_rules_that_change_nothing_are_never_best():
    certain = np.ones(1200)
    same = {name: certain for name in POSITIONS.names if name.startswith(("open_", "law_"))}
    found = diagnose(make_table(target_prob=certain, **same), tau_h=1.5)
    assert found.verdict.best is None
    assert found.verdict.advice == "No rule with a gate has a significant gain."
    assert {effect.p_value for effect in found.thresholds[0].effects} == {1.0}


def test_a_rule_that_can_give_zero_has_no_likelihood():
    law = np.tile([0.9, 0.0], 600)
    found = diagnose(make_table(**{"open_easd-draft-top": law}), tau_h=1.5)
    effect = found.thresholds[0].effects[1]
    assert (effect.rule, effect.log_likelihood) == ("easd-draft-top", None)
    assert effect.can_be_zero
    assert effect.where_it_acts.value == pytest.approx(-0.05)


def test_tokens_the_target_cannot_write_are_left_out_of_likelihoods_and_told():
    target = np.tile([0.5, 0.5, 0.5, 0.0], 300)
    columns = {name: target for name in POSITIONS.names if name.startswith(("open_", "law_"))}
    found = diagnose(make_table(target_prob=target, **columns), tau_h=1.5)
    assert found.impossible == 0.25
    assert found.thresholds[0].effects[0].log_likelihood.value == 0
    assert any("25.00%" in line for line in found.caveats)


def test_exact_accuracy_is_the_product_over_a_text():
    rng = np.random.default_rng(2)
    target, law = rng.uniform(0.8, 1, (2, 60, 20))
    entropy = rng.choice([0.0, 2.0], 1200)
    found = diagnose(
        make_table(
            target_prob=target.ravel(), open_easd=law.ravel(), target_entropy=entropy, length=20
        ),
        tau_h=1.0,
        unique_solution=True,
    )
    written = np.where(entropy.reshape(60, 20) > 1, law, target).prod(1)
    change = found.thresholds[0].effects[0].change
    assert change.value == pytest.approx((written - target.prod(1)).mean())
    assert found.target_accuracy.value == pytest.approx(target.prod(1).mean())


def test_no_gated_position_is_no_error():
    found = diagnose(make_table(draft_entropy=np.zeros(1200)), tau_h=1.5)
    at = found.thresholds[0]
    assert (at.gated, at.gated_texts, at.criterion) == (0, 0, None)
    assert at.effects[0].where_it_acts is None
    assert "the gate never opens" in printed(render, found)


def test_what_is_printed_is_what_the_data_says():
    found = diagnose(make_table(open_easd=uneven(0.4)), tau_h=1.5)
    told = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert told["thresholds"][0]["verdict"]["outcome"] == "hurt"
    console = Console(width=80, file=StringIO())
    render(found, console)
    printed = console.file.getvalue()
    for sentence in (found.verdict.sentence, *found.caveats):
        assert " ".join(sentence.split()) in " ".join(printed.split())
    wide = 100 * found.thresholds[0].effects[0].change.value
    assert re.search(rf"^easd +{wide:.0f} ±\d+\* ", printed, re.MULTILINE)
    assert "easd-without-draft-entropy" in printed


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda table: table.drop_columns(["open_easd"]), "lacks open_easd"),
        (lambda table: table.slice(0, 0), "texts given: 0;"),
        (lambda table: table.slice(0, 20), "texts given: 1;"),
    ],
)
def test_bad_tables_are_refused(change, says):
    with pytest.raises(InputError, match=says):
        diagnose(change(make_table()), tau_h=1.5)


def test_bad_settings_are_refused():
    with pytest.raises(ConfigError, match="tau_h = -1"):
        diagnose(make_table(), tau_h=-1)
    with pytest.raises(ConfigError, match="tau_o = 2"):
        diagnose(make_table(), tau_h=1, tau_o=2)
    with pytest.raises(InputError, match="rate = 2"):
        diagnose(make_table(), tau_h=1, rates=(2,))


def test_a_diagnosis_loads_no_torch():
    code = "import sys; import easd.diagnose.diagnosis; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_new_rule_is_judged_without_being_listed(monkeypatch):
    monkeypatch.setitem(RULES, "gated one", RULES["sharpened"])
    monkeypatch.setitem(RULES, "other one", RULES["lenience"])
    gated, ungated = judged_rules()
    assert "gated one" in gated
    assert "other one" in ungated
    table = make_table()
    for name in ("open_gated one", "law_other one"):
        table = table.append_column(name, pa.array(uneven(0.1)))
    found = diagnose(table, tau_h=1.5)
    effects = {effect.rule: effect for effect in found.thresholds[0].effects}
    assert effects["gated one"].gated
    assert not effects["other one"].gated


def printed(show, found):
    out = StringIO()
    show(found, Console(file=out, width=200))
    return " ".join(out.getvalue().split())


def test_a_rate_that_no_threshold_reaches_is_said_to_be_out_of_reach():
    shared = np.where(np.arange(1200) % 5 == 0, TOP_N, 0)
    found = diagnose(make_table(shared_top=shared), tau_h=1.0, rates=[0.1, 0.9])
    said = printed(render, found)
    assert "no threshold reaches 90.0 % of positions; the gate opens at 20.0 % at most" in said
    assert said.count("no threshold reaches") == 1


def test_quiet_prints_a_verdict_a_threshold_and_no_table():
    found = diagnose(make_table(), tau_h=1.0, rates=[0.1])
    said = printed(verdicts, found)
    assert said.count("EASD will") == 2
    assert "Gated positions" not in said
    assert len(said) < len(printed(render, found)) / 3


def test_the_unit_on_free_text_is_explained():
    table = make_table(length=20)
    said = printed(render, diagnose(table, tau_h=1.0))
    assert "A text has 20 tokens on average, so +1 means: of the 2,000 tokens of 100 texts" in said
    known = printed(render, diagnose(table, tau_h=1.0, unique_solution=True))
    assert "A text has 20 tokens" not in known
