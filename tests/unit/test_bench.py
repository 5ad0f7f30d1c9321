"""Benchmarks: what a table makes of timings, and a small run from its command to its folder."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest

from easd.cli.root import command_line
from easd.errors import ConfigError, EasdError, TraceError
from easd.pairs.loading import load_pair
from easd.runs import Tally
from easd.runs.schema import PARTS
from easd.runs.tally import COUNTED
from easd.speed.bench import System, lines, read_timings
from easd.speed.bench.limits import check_memory
from easd.speed.bench.roofline import rooflines
from easd.speed.bench.systems import ADAPTIVE, KINDS, THEIRS, UNDRAFTED, VLLM, Timing
from easd.speed.plan import CostModel, Hardware, Shape

COUNTS = ("tokens", *COUNTED)


def row(number, system, *, batch=1, context=None, **values):
    own = {"round": number, "batch": batch, "context": context, "system": system, "gamma": 0}
    counts = {name: values.pop(name) for name in list(values) if name in COUNTS}
    counts["seconds"] = values.pop("parts", dict.fromkeys(PARTS, 0.0))
    return own | Timing(tally=Tally(**counts), **values).to_row()


def by_name(rows, clock="wall"):
    return {line.system: line for line in lines(pd.DataFrame(rows), clock)}


def test_ratios_are_taken_round_by_round():
    rows = []
    for number, slow in enumerate([1.0, 3.0, 10.0]):  # The machine slows down for both alike.
        rows.append(row(number, "target", tokens=100, seconds=slow))
        rows.append(row(number, "speculative 4", tokens=150, seconds=slow))
    found = by_name(rows)["speculative 4"].over["target"]
    assert (found.value, found.low, found.high) == pytest.approx((1.5, 1.5, 1.5))


def test_intervals_hold_the_truth_as_often_as_they_say():
    """Binomial limits at 4 standard deviations; intervals of 1.96 in Student's place miss 12 %."""
    draws, studies = np.random.default_rng(0), 500
    held = 0
    for _ in range(studies):
        noise = np.exp(0.2 * draws.standard_normal((5, 2)))
        rows = [
            row(number, name, tokens=100, seconds=seconds)
            for number, pair in enumerate(noise)
            for name, seconds in zip(("target", "speculative 4"), pair, strict=True)
        ]
        found = by_name(rows)["speculative 4"].over["target"]
        held += found.low <= 1 <= found.high
    assert abs(held / studies - 0.95) < 4 * (0.95 * 0.05 / studies) ** 0.5


def test_one_round_has_no_interval():
    rows = [row(0, name, tokens=1, seconds=1.0) for name in ("target", "speculative 4")]
    found = by_name(rows)["speculative 4"].over["target"]
    assert (found.value, found.low, found.high) == (1, 0, np.inf)


def test_ratios_are_made_of_the_clock_asked_for():
    rows = [
        row(0, "target", tokens=10, seconds=4.0, cpu_seconds=1.0),
        row(0, "speculative 4", tokens=10, seconds=1.0, cpu_seconds=2.0),
    ]
    ratios = [by_name(rows, c)["speculative 4"].over["target"].value for c in ("wall", "cpu")]
    assert ratios == pytest.approx([4, 0.5])


def test_a_ratio_is_tokens_of_a_step_times_steps_a_second():
    rows = []
    for number in range(3):
        ours = {"forwards": 10 + number, "seconds": 2.0 + number}
        rows.append(row(number, "speculative 2", tokens=20, **ours))
        rows.append(row(number, "easd 2", tokens=18, forwards=12, seconds=2.0))
    found = by_name(rows)["easd 2"].over["speculative"]
    assert found.tokens == pytest.approx(1.5 / (20 / 10 * 20 / 11 * 20 / 12) ** (1 / 3))
    assert found.tokens * found.steps == pytest.approx(found.value)


def test_systems_are_compared_with_the_same_gamma_or_the_fastest():
    speeds = {"speculative 2": 10, "speculative 4": 20, "easd 2": 5, "easd 4": 5, "adaptive": 5}
    rows = [row(0, name, tokens=speed, seconds=1.0) for name, speed in speeds.items()]
    found = {name: line.over for name, line in by_name(rows).items()}
    ratios = {name: over["speculative"].value for name, over in found.items() if over}
    assert ratios == pytest.approx({"easd 2": 0.5, "easd 4": 0.25, "adaptive": 0.25})


def test_limits_are_the_theorems():
    """Acceptance .5, gamma 2, a draft of a tenth of the target, a block scored at 1.2 tokens."""
    alone = {"full": 10, "full_target": 10.0, "forwards": 10, "tokens": 10, "seconds": 10.0}
    ours = {"full": 10, "full_target": 12.0, "full_draft": 2.0, "full_proposed": 20}
    ours |= {"examined": 100, "accepted": 50, "forwards": 10, "tokens": 14, "seconds": 10.0}
    line = by_name([row(0, "target", **alone), row(0, "speculative 2", **ours)])["speculative 2"]
    assert line.theorem == pytest.approx(1.75 / 1.2)
    assert line.bound == pytest.approx(1.75 / 1.4)
    assert line.efficiency(line.bound) == pytest.approx(1.4 / (1.75 / 1.4))


def test_efficiency_leaves_the_reading_of_prompts_out():
    parts = dict.fromkeys(PARTS, 0.0) | {"prefill": 90.0}
    alone = {"full": 10, "full_target": 10.0, "forwards": 10, "tokens": 10}
    ours = {"full": 10, "full_target": 12.0, "full_draft": 2.0, "full_proposed": 20}
    ours |= {"examined": 100, "accepted": 50, "forwards": 10, "tokens": 14}
    rows = [row(0, "target", **alone, seconds=100.0, parts=parts)]
    rows += [row(0, "speculative 2", **ours, seconds=100.0, parts=parts)]
    line = by_name(rows)["speculative 2"]
    assert line.over["target"].value == pytest.approx(1.4)
    assert line.efficiency(line.bound) == pytest.approx(1.4 / (1.75 / 1.4))


def test_cells_are_kept_apart():
    rows = [
        row(0, "target", batch=batch, context=context, tokens=batch, seconds=1.0)
        for batch in (1, 8)
        for context in (100.0, 200.0)
    ]
    found = list(lines(pd.DataFrame(rows)))
    cells = [(line.batch, line.context, line.speed) for line in found]
    assert cells == [
        (1, 100, 1),
        (1, 200, 1),
        (8, 100, pytest.approx(8)),
        (8, 200, pytest.approx(8)),
    ]


def test_floors_count_weights_once_and_texts_each():
    on = Hardware(name="x", memory_gb=1, bandwidth_gbs=1, tflops=1, bandwidth_share=1)
    plain = {"parameters": 10**6, "products": 10**6, "width": 4, "layers": 2, "vocab_size": 10}
    shape = Shape(name="x", cached=100, attended=200, **plain)
    costs = CostModel(hardware=on, target=shape, draft=shape)
    timings = pd.DataFrame([row(0, "target", batch=8, full=5, full_target=1.0, forwards=5)])
    floor, step = rooflines(timings, costs, 8, 50)
    assert floor.gigabytes == pytest.approx((10**6 + 8 * 50 * 100) * 4 / 1e9)
    assert floor.gigaflops == pytest.approx(8 * (2 * 10**6 + 50 * 200) / 1e9)
    assert floor.least_ms == pytest.approx(1000 * floor.gigabytes)
    assert floor.taken_ms == pytest.approx(200)
    assert (step.what, step.gigabytes) == ("step of target", floor.gigabytes)


def run_command(arguments):
    command_line(["bench"])(arguments)


ARGUMENTS = ["bench", "--pair", "lab-a", "--tokens", "6", "--texts", "1"]


def test_tempered_systems_need_a_draft_temperature(tmp_path):
    with pytest.raises(ConfigError, match="add --draft-temperature"):
        run_command([*ARGUMENTS, "--system", "tempered", "--out", str(tmp_path / "run")])


def test_a_run_leaves_a_folder_with_every_system_in_every_round(tmp_path, capsys):
    out = tmp_path / "run"
    grid = ["--batch", "1", "--batch", "2", "--gamma", "1", "--gamma", "2", "--rounds", "2"]
    kinds = set(KINDS) - set(VLLM)
    systems = [word for kind in sorted(kinds) for word in ("--system", kind)]
    tempered = ["--draft-temperature", "0.5", *systems]
    run_command([*ARGUMENTS, *grid, *tempered, "--out", str(out)])
    timings = read_timings(out)
    undrafted = kinds & {*UNDRAFTED, *ADAPTIVE}
    names = {System(kind).name for kind in undrafted}
    names |= {System(kind, g).name for kind in kinds - undrafted for g in (1, 2)}
    assert set(timings["system"]) == names
    assert len(timings) == len(names) * 2 * 2
    assert (timings["tokens"] > 0).all()
    assert (timings[["seconds", "cpu_seconds"]] > 0).all(axis=None)
    theirs = timings["system"].str.startswith(THEIRS)
    ours = timings[~theirs]
    parts = ours[[column for column in ours if column.endswith("_s")]].sum(axis=1)
    assert (parts <= ours["seconds"]).all()
    operations = timings[timings["batch"] == 1].groupby("system")["operations"].median()
    assert operations["target"] < operations["speculative 1"] < operations["speculative 2"]
    assert timings["operations"].isna().equals(theirs)
    assert json.loads((out / "run.json").read_text())["config"]["rounds"] == 2
    assert (out / "ratios.svg").stat().st_size > 1000
    assert "/ target" in capsys.readouterr().out


def test_any_rule_with_fields_is_a_system(tmp_path, capsys):
    out = tmp_path / "run"
    certain, pool = "pool-everywhere:a=1,b=0", "pool-everywhere:a=0.3,b=-3,plausible=0"
    systems = [w for kind in ("speculative", certain, pool) for w in ("--system", kind)]
    load = ["--temperature", "0", "--rounds", "1", "--batch", "8", "--gamma", "3"]
    run_command([*ARGUMENTS, *load, *systems, "--out", str(out)])
    timings = read_timings(out).set_index("system")
    assert set(timings.index) == {"speculative 3", f"{certain} 3", f"{pool} 3"}
    same = ["tokens", "accepted", "blocks"]
    assert (timings.loc[f"{certain} 3", same] == timings.loc["speculative 3", same]).all()
    assert (timings.loc[f"{pool} 3", same] != timings.loc["speculative 3", same]).any()
    assert "a=0.3" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("system", "message"),
    [
        ("spekulative", "choose from target, .*, or name a rule"),
        ("pool-everywhere:c=1", "c"),
        ("pool-everywhere:a=often", "a"),
    ],
)
def test_a_system_that_is_no_rule_is_refused(tmp_path, system, message):
    with pytest.raises(EasdError, match=message):
        run_command([*ARGUMENTS, "--system", system, "--out", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()


def test_target_and_speculation_write_the_same_number_of_tokens_a_text(tmp_path):
    """Lengths are the law's: the mean over many texts does not depend on how they are decoded."""
    out = tmp_path / "run"
    kinds = ("target", "speculative", "adaptive", "generate")
    systems = [word for kind in kinds for word in ("--system", kind)]
    load = ["--batch", "16", "--texts", "8", "--rounds", "1", "--tokens", "40"]
    asked = [*ARGUMENTS[:3], *systems, *load, "--out", str(out)]
    run_command(asked)
    tokens = read_timings(out).set_index("system")["tokens"]
    assert tokens.max() < 1.1 * tokens.min()


def invoke(out, *more):
    run_command([*ARGUMENTS, *more, "--out", str(out)])


def test_a_killed_run_goes_on_where_it_was(tmp_path):
    out = tmp_path / "run"
    grid = ["--rounds", "100", "--system", "target", "--system", "speculative", "--threads", "1"]
    command = [sys.executable, "-m", "easd", *ARGUMENTS, *grid, "--out", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not list(out.glob("timings/*.parquet")):
            assert process.poll() is None
            time.sleep(0.01)
        time.sleep(0.3)  # One part after the other is written now.
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    before = read_timings(out)
    assert 0 < len(before) < 200
    invoke(out, *grid)
    after = read_timings(out)
    turns = ["round", "system"]
    kept = after.set_index(turns).loc[before.set_index(turns).index].reset_index()
    pd.testing.assert_frame_equal(kept[before.columns], before)
    assert len(after) == 200
    assert not after.duplicated(["round", "batch", "system"]).any()


def test_a_finished_run_can_be_given_more_rounds(tmp_path):
    out = tmp_path / "run"
    invoke(out, "--rounds", "2", "--system", "target")
    before = read_timings(out)
    started = json.loads((out / "run.json").read_text())["started"]
    invoke(out, "--rounds", "3", "--system", "target")
    after = read_timings(out)
    assert list(after["round"]) == [0, 1, 2]
    pd.testing.assert_frame_equal(after[:2], before)
    run = json.loads((out / "run.json").read_text())
    assert (run["config"]["rounds"], run["started"]) == (3, started)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--tau-h", "2"], "with tau_h = 1.5, not 2.0"),
        (["--batch", "2"], "with cells: 1: batch = 1, not 2"),
        (["--system", "speculative"], "with systems = "),
        (
            ["--pair", "lab-c", "--task", "lab-a"],
            "with models pair = 'lab-a', not 'lab-c'",
        ),
    ],
)
def test_a_folder_of_a_run_with_other_settings_is_one_clear_error(tmp_path, more, says):
    out = tmp_path / "run"
    asked = ["--rounds", "1", "--system", "target"]
    invoke(out, *asked)
    before = (out / "run.json").read_bytes()
    with pytest.raises(TraceError, match=re.escape(says)):
        invoke(out, *asked, *more)
    assert (out / "run.json").read_bytes() == before


def test_processor_time_of_several_threads_is_warned_of(tmp_path, capsys):
    asked = ["--rounds", "1", "--system", "target", "--clock", "cpu", "--threads"]
    for count, warned in (("2", True), ("1", False)):
        invoke(tmp_path / count, *asked, count)
        assert ("torch has 2 threads" in capsys.readouterr().err) is warned


def test_memory_that_does_not_suffice_is_told_before():
    pair = load_pair("lab-a", device="cpu")
    check_memory(pair, 64, 64, 8)
    with pytest.raises(ConfigError, match="10000000 texts of 60 tokens at once need"):
        check_memory(pair, 10**7, 60, 8)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--system", "magic"], "'magic' is not known"),
        (["--batch", "0"], "batches = (0,)"),
        (["--rounds", "0"], "rounds = 0"),
        (["--tokens", "0"], "tokens = 0"),
        (["--context", "4096"], "prompts of 4096 tokens and 6 new ones"),
        (["--tokens", "64"], "context window of 64"),
        (["--system", "vllm"], "'vllm' needs an environment with vLLM; add --vllm-python"),
        (
            ["--system", "vllm", "--vllm-python", "/no/python"],
            "'/no/python' cannot be run (No such",
        ),
        (["--system", "vllm", "--vllm-python", sys.executable], "has no vLLM; install it there"),
    ],
)
def test_what_does_not_fit_is_one_clear_error(tmp_path, more, says):
    with pytest.raises(ConfigError, match=re.escape(says)):
        run_command([*ARGUMENTS, *more, "--out", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()


def test_a_folder_in_use_is_left_alone(tmp_path):
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(TraceError):
        run_command([*ARGUMENTS, "--out", str(tmp_path)])
    assert (tmp_path / "mine").read_text() == "mine"
    with pytest.raises(TraceError, match="holds no bench"):
        read_timings(tmp_path)


def test_a_roofline_is_not_drawn_of_an_int8_draft(tmp_path):
    with pytest.raises(ConfigError, match="roofline counts weights of one width"):
        invoke(tmp_path / "run", "--roofline", "--int8-draft")
