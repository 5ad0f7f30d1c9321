"""Summary tables of an evaluation, against numbers worked out by hand."""

import math
import subprocess
import sys
from typing import get_args

import numpy as np
import pyarrow as pa
import pytest
from evaluations import EASD, Evaluation, graded, rule_of

from easd.errors import ConfigError
from easd.report import metrics
from easd.report.metrics import POOLED, frames
from easd.report.metrics.accuracy import equal_lists, split
from easd.report.metrics.columns import Kind
from easd.stats import paired_difference

RIGHT, WRONG = True, False


def row(table, **wanted):
    """The one row with these values."""
    found = table[(table[list(wanted)] == list(wanted.values())).all(axis=1)]
    assert len(found) == 1, f"{len(found)} rows with {wanted}"
    return found.iloc[0]


def test_accuracy_counts_failed_gradings_as_wrong():
    made = graded({"target": [RIGHT, RIGHT, WRONG]})
    made.sample("target", "sums", 3, correct=None, failure="timed out")
    made.sample("target", "sums", 4, correct=False, failure="no number", finish_reason="length")
    found = row(metrics.accuracy(frames(made.run())), system="target")
    assert found["accuracy"] == pytest.approx(2 / 5)
    assert (found["samples"], found["problems"], found["failed"]) == (5, 5, 2)
    assert found["cut_off"] == pytest.approx(1 / 5)
    assert found["accuracy_low"] < 2 / 5 < found["accuracy_high"]


def test_several_tasks_are_pooled_by_sample():
    made = graded({"target": [RIGHT, RIGHT, RIGHT]}, tasks={"sums": 3, "words": 1})
    made.sample("target", "words", 0, correct=False)
    found = metrics.accuracy(frames(made.run()))
    assert list(found["task"]) == ["sums", "words", POOLED]
    assert row(found, task=POOLED)["accuracy"] == pytest.approx(3 / 4)
    assert row(found, task=POOLED)["problems"] == 4


def test_items_of_different_tasks_with_the_same_name_are_different_problems():
    made = Evaluation(systems={"target": rule_of("target")}, tasks={"one": 2, "two": 2})
    for task in made.tasks:
        for index in range(2):
            made.sample("target", task, index, item=f"item-{index}")
    assert row(metrics.accuracy(frames(made.run())), task=POOLED)["problems"] == 4


def test_coverage_says_what_is_missing():
    made = graded(
        {"target": [RIGHT] * 4, "easd": [RIGHT] * 3, "speculative": [WRONG]}, tasks={"sums": 5}
    )
    found = metrics.coverage(frames(made.run())).set_index("system")
    assert found["missing"].to_dict() == {"target": 1, "easd": 2, "speculative": 4}
    # One sample of four is too little to hold all others to; three of four are kept.
    assert found["paired"].to_dict() == {"target": 3, "easd": 3, "speculative": 0}


def test_differences_are_those_of_the_common_samples():
    made = graded(
        {
            "target": [RIGHT, RIGHT, WRONG, WRONG, RIGHT, RIGHT],
            "easd": [WRONG, RIGHT, RIGHT, WRONG, WRONG],
        }
    )
    found = row(metrics.differences(frames(made.run())), system="easd")
    assert found["pairs"] == 5  # The sixth item has no partner.
    assert found["difference"] == pytest.approx(-1 / 5)
    assert (found["gained"], found["lost"]) == (1, 2)
    expected = paired_difference([0, 1, 1, 0, 0], [1, 1, 0, 0, 1])
    assert found["difference_low"] == pytest.approx(expected.low)
    assert found["p_value"] == pytest.approx(expected.p_value)
    assert found["same_text"] == pytest.approx(2 / 5)


@pytest.mark.parametrize(
    ("easd", "finding"),
    [
        ([RIGHT] * 40, "same texts"),
        ([WRONG] * 20 + [RIGHT] * 20, "worse"),
        ([WRONG] + [RIGHT] * 39, "cannot tell"),
    ],
)
def test_a_finding_says_no_more_than_the_tests(easd, finding):
    made = graded({"target": [RIGHT] * 40, "easd": easd})
    assert row(metrics.differences(frames(made.run())), system="easd")["finding"] == finding


def test_a_small_difference_among_many_is_equivalent():
    flips = [index % 500 == 0 for index in range(4000)]
    made = graded({"target": [RIGHT] * 4000, "easd": [not flip for flip in flips]})
    found = row(metrics.differences(frames(made.run()), margin=0.01), system="easd")
    assert found["difference"] == pytest.approx(-8 / 4000)
    assert found["p_equivalent"] < 0.05


def test_equal_lists_compares_every_token():
    lists = pa.chunked_array([[[1, 2, 3], [1, 2, 3], [1, 2, 4]], [[1, 2], [], []], [[9, 2, 3]]])
    rows = np.array([0, 0, 0, 4, 0, 3])
    others = np.array([1, 2, 3, 5, 6, 0])
    expected = [lists[int(a)] == lists[int(b)] for a, b in zip(rows, others, strict=True)]
    assert equal_lists(lists, rows, others).tolist() == expected
    assert expected == [True, False, False, True, False, False]


def test_speed_is_relative_to_the_baseline_by_token():
    made = graded({"target": [RIGHT] * 4, "easd": [RIGHT] * 4})
    made.units = []
    for first in (0, 4, 8, 16, 20):
        made.unit("target", "sums", first, tokens=20, seconds=1.0)
        made.unit("easd", "sums", first, tokens=40, seconds=4.0)
    made.unit("easd", "sums", 12, tokens=1, seconds=100.0)  # The baseline has no such unit yet.
    found = row(metrics.speed(frames(made.run())), system="easd")
    assert found["improvement"] == pytest.approx(0.5)
    assert found["improvement_low"] == pytest.approx(0.5)
    parts = sum(found[f"{part}_ms"] for part in ("draft", "target", "verify", "other"))
    assert parts == pytest.approx(1000 * found["seconds"] / found["tokens"])
    # Four units of 0.2 s a part: 160 draft forwards, 40 of the target.
    assert found["cost"] == pytest.approx((0.8 / 160) / (0.8 / 40))
    assert found["acceptance"] == pytest.approx(3 / 5)


def test_theorem_3_8():
    # (1 - 0.8^5) / (0.2 * (4 * 0.1 + 1)), and gamma + 1 tokens where all is accepted.
    assert metrics.expected_improvement(0.8, 0.1, 4) == pytest.approx(2.4011, abs=1e-4)
    assert metrics.expected_improvement(1.0, 0.25, 4) == pytest.approx(2.5)
    assert math.isnan(metrics.expected_improvement(math.nan, 0.1, 4))


def test_work_counts_positions_of_both_models():
    made = graded({"target": [RIGHT] * 2, "speculative": [RIGHT] * 2, "draft": [RIGHT] * 2})
    found = metrics.work(frames(made.run()))
    # 1,000 and 100 parameters; 8 proposed, 2 blocks and 5 tokens a text.
    target, drafted, draft = (row(found, system=s) for s in ("target", "speculative", "draft"))
    assert target["flops_per_token"] == 2 * 1000
    assert drafted["flops_per_token"] == pytest.approx(2 * (1000 * 10 + 100 * 8) / 5)
    assert drafted["relative_flops"] == pytest.approx(drafted["flops_per_token"] / 2000)
    assert (drafted["by_draft"], drafted["by_target"]) == (6, 4)
    assert draft["flops_per_token"] == 2 * 100
    assert (draft["target_forwards"], draft["draft_forwards"]) == (0, 10)


def test_only_verified_tokens_have_an_acceptance_rate():
    made = graded({"target": [RIGHT] * 2, "speculative": [RIGHT] * 2, "draft": [RIGHT] * 2})
    found = metrics.drafting(frames(made.run()))
    assert row(found, system="speculative")["acceptance"] == pytest.approx(3 / 5)
    assert row(found, system="speculative")["utilisation"] == pytest.approx(3 / 8)
    assert row(found, system="speculative")["block_efficiency"] == pytest.approx(5 / 2)
    assert math.isnan(row(found, system="target")["acceptance"])
    assert math.isnan(row(found, system="draft")["acceptance"])


def test_firing_rates_are_shares_of_examined_positions():
    made = Evaluation(systems={s: rule_of(s) for s in ("target", "easd")}, tasks={"sums": 4})
    for index in range(4):
        made.sample("target", "sums", index)
        made.sample("easd", "sums", index, gate_open=1.0, penalised=index % 2, over_draft_entropy=3)
    found = metrics.firing(frames(made.run()))
    assert list(found["system"]) == ["easd"]
    easd = row(found, system="easd")
    assert easd["gate_rate"] == pytest.approx(4 / 20)
    assert easd["penalty_rate"] == pytest.approx(2 / 20)
    assert easd["draft_entropy_rate"] == pytest.approx(12 / 20)
    assert not easd["no_op"]


def test_a_gate_that_never_opens_is_a_no_op():
    made = graded({"target": [RIGHT] * 4, "easd": [RIGHT] * 4})
    assert row(metrics.firing(frames(made.run())), system="easd")["no_op"]


def test_four_of_five_meet_an_overlap_of_four_fifths():
    made = graded({"target": [RIGHT] * 2, "easd": [RIGHT] * 2})
    for position, overlap in enumerate((0.6, 0.8, 1.0)):
        made.token("easd", "sums", 0, position, "accepted", overlap=overlap, draft_entropy=2.0)
    made.token("easd", "sums", 0, 9, "discarded", overlap=1.0)
    found = metrics.joint_conditions(frames(made.run()))
    met = row(found, overlap_met=True)
    assert (met["positions"], met["share"]) == (2, pytest.approx(2 / 3))
    assert met["draft_entropy_met"]
    assert not met["target_entropy_met"]


def test_a_replacement_belongs_to_the_refused_token_at_its_place():
    made = graded({"target": [RIGHT] * 2, "easd": [RIGHT] * 2})
    for request, token, instead in ((0, 5, 6), (1, 5, 7), (2, 8, 5)):
        made.token("easd", "sums", request, 3, "penalised", token=token, target_prob=0.25)
        made.token("easd", "sums", request, 3, "replacement", token=instead)
    made.token("easd", "sums", 3, 3, "accepted", token=5)
    made.token("easd", "sums", 4, 3, "rejected", token=5)
    made.token("easd", "sums", 4, 3, "replacement", token=1)
    pairs = metrics.replacements(frames(made.run()))
    assert sorted(pairs["replacement"]) == [" t5", " t6", " t7"]
    five = row(metrics.refused_tokens(frames(made.run())), refused=" t5")
    assert (five["count"], five["examined"]) == (2, 4)
    assert five["refusal_rate"] == pytest.approx(0.5)
    assert five["target_prob"] == pytest.approx(0.25)
    assert five["share"] == pytest.approx(2 / 3)


def test_texts_with_penalties_are_set_beside_the_baselines_of_the_same_items():
    made = graded({"target": [RIGHT] * 6, "easd": [RIGHT] * 6})
    for sample in made.samples:
        if sample["system"] == "easd" and sample["index"] < 4:
            sample |= {"penalised": 1, "correct": sample["index"] == 0}
    found = metrics.penalised_samples(frames(made.run()))
    some, none = (row(found, penalties=name) for name in ("some", "none"))
    assert (some["samples"], some["accuracy"], some["baseline_accuracy"]) == (4, 0.25, 1.0)
    assert (none["samples"], none["difference"]) == (2, 0.0)


def test_correlation_of_entropy_with_correctness():
    rng = np.random.default_rng(0)
    entropies = rng.random(200)
    correct = rng.random(200) > entropies
    made = graded({"target": correct.tolist()})
    for index, entropy in enumerate(entropies):
        for position in (0, 1):
            value = entropy * (0.5 + position)  # Mean over both tokens: entropy itself.
            made.token("target", "sums", index, position, "bonus", target_entropy=value)
    made.token("target", "sums", 0, 2, "discarded", target_entropy=50.0)
    found = row(metrics.entropy_correlation(frames(made.run())), system="target")
    expected = np.corrcoef(entropies, correct)[0, 1]
    assert found["correlation"] == pytest.approx(expected, abs=1e-6)
    assert found["correlation_low"] < expected < found["correlation_high"] < 0
    fifths = metrics.correctness_by_entropy(frames(made.run()))
    assert list(fifths["samples"]) == [40] * 5
    order = np.argsort(entropies)
    means = [correct[order[40 * k : 40 * k + 40]].mean() for k in range(5)]
    assert list(fifths["accuracy"]) == pytest.approx(means)


def test_histograms_count_emitted_positions_of_each_model():
    made = graded({"target": [RIGHT] * 2, "easd": [RIGHT] * 2})
    for position, entropy in enumerate((0.1, 0.1, 3.0)):
        made.token("easd", "sums", 0, position, "accepted", target_entropy=entropy)
    made.token("easd", "sums", 0, 3, "penalised", target_entropy=2.0)
    found = metrics.entropy_histogram(frames(made.run()))
    target = found[found["model"] == "target"]
    assert target["positions"].sum() == 3
    assert target.iloc[-1]["positions"] == 1
    assert target.iloc[-1]["high"] == pytest.approx(3.0)
    summary = row(metrics.entropy_summary(frames(made.run())), model="target")
    assert summary["above_tau_h"] == pytest.approx(1 / 3)


def test_flips_go_both_ways_and_part_at_the_first_different_token():
    made = graded({"target": [RIGHT, WRONG, RIGHT], "easd": [WRONG, RIGHT, RIGHT]})
    for token in (0, 1, 2, 3, 9):
        made.token("target", "sums", 0, token, "bonus", token=token)
    found = metrics.flips(frames(made.run()))
    assert set(found["direction"]) == {"lost", "gained"}
    lost = row(found, direction="lost")
    assert (lost["item"], lost["prompt"], lost["answers"]) == ("sums/0", "What is 0?", ["0"])
    assert (lost["shared"], lost["place"]) == (" t0", 1)
    assert (lost["baseline_token"], lost["token"], lost["rest"]) == (" t2", " t9", " t3")
    assert (lost["baseline_answer"], lost["answer"]) == ("2", "9")


def test_texts_of_unknown_tokens_part_at_the_first_different_character():
    place, shared, ends = split([1, 2], [1, 3], ("the sum", "the rest"), {1: "the"})
    assert (place, shared) == (1, "the ")
    assert ends == [("", "sum"), ("", "rest")]


def test_a_text_that_ends_early_parts_where_it_ends():
    place, shared, ends = split([1], [1, 2], ("a", "a b"), {1: "a", 2: " b"})
    assert (place, shared, ends) == (1, "a", [("", ""), (" b", "")])


def test_systems_that_differ_in_thresholds_alone_are_a_grid():
    rules = {
        f"easd {tau_h} {tau_o}": {**EASD, "tau_h": tau_h, "tau_o": tau_o}
        for tau_h in (0.5, 1.0)
        for tau_o in (0.6, 0.8)
    }
    other = {"easd null": {**EASD, "redraw": "target"}, "target": {"name": "target"}}
    made = Evaluation(systems={**rules, **other}, tasks={"sums": 2})
    for number, system in enumerate(made.systems):
        for index in range(2):
            made.sample(system, "sums", index, correct=index < number)
    found = metrics.sensitivity(frames(made.run()))
    assert set(found["system"]) == set(rules)
    assert row(found, tau_h=0.5, tau_o=0.8)["accuracy"] == pytest.approx(0.5)


def test_the_baseline_is_target_only_unless_named():
    made = graded({"easd": [RIGHT] * 2, "speculative": [RIGHT] * 2, "target": [RIGHT] * 2})
    assert frames(made.run()).baseline == "target"
    assert frames(made.run(), "easd").baseline == "easd"
    with pytest.raises(ConfigError, match=r"'taget' is not a system.*easd, speculative, target"):
        frames(made.run(), "taget")


def test_close_ups_are_of_the_first_easd_that_fires():
    made = Evaluation(
        systems={s: rule_of(s) for s in ("target", "easd idle", "easd busy")}, tasks={"sums": 1}
    )
    for system in made.systems:
        made.sample(system, "sums", 0, penalised=int(system == "easd busy"))
    assert frames(made.run()).focus == "easd busy"
    made.samples[-1]["penalised"] = 0
    assert frames(made.run()).focus == "easd idle"


def test_settings_name_every_field_and_every_skipped_line():
    made = graded({"target": [RIGHT] * 2, "easd": [RIGHT] * 2}, skipped=["line 3: no answer"])
    fields = row(metrics.system_settings(frames(made.run())), system="easd")["fields"]
    assert fields == "tau_h 1, tau_o 0.8, top_n 5, redraw exclude, draft_at_bonus False"
    task = row(metrics.task_settings(frames(made.run())), task="sums")
    assert (task["skipped"], task["skipped_lines"]) == (1, "line 3: no answer")


def test_metrics_need_no_model_library():
    code = (
        "import sys, easd.report\nprint([m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_every_column_has_a_known_kind_and_a_definition():
    assert len(metrics.COLUMNS) > 100
    for name, column in metrics.COLUMNS.items():
        assert column.kind in get_args(Kind), name
        assert column.heading, name
        assert column.definition, name
        assert "{" not in column.definition, name
