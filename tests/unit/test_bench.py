"""Benchmarks: what a table makes of timings, and a small run from its command to its folder."""

import json

import pandas as pd
import pytest
from typer.testing import CliRunner

from easd.bench import System, lines, read_timings
from easd.bench.floors import floors
from easd.bench.systems import KINDS, Timing
from easd.cli import app
from easd.errors import ConfigError, TraceError
from easd.planning import Hardware, Machine, Shape


def row(number, system, *, batch=1, context=None, **values):
    own = {"round": number, "batch": batch, "context": context, "system": system, "gamma": 0}
    return own | Timing(**values).to_row()


def by_name(rows, bases=("target",)):
    return {line.system: line for line in lines(pd.DataFrame(rows), bases)}


def test_ratios_are_taken_round_by_round():
    rows = []
    for number, slow in enumerate([1.0, 3.0, 10.0]):  # The machine slows down for both alike.
        rows.append(row(number, "target", tokens=100, seconds=slow))
        rows.append(row(number, "speculative 4", tokens=150, seconds=slow))
    found = by_name(rows)["speculative 4"].over["target"]
    assert (found.value, found.low, found.high) == pytest.approx((1.5, 1.5, 1.5))


def test_limits_are_the_theorems():
    """Acceptance .5, gamma 2, a draft of a tenth of the target, a block scored at 1.2 tokens."""
    alone = {"full": 10, "full_target": 10.0, "tokens": 10, "seconds": 10.0}
    ours = {"full": 10, "full_target": 12.0, "full_draft": 2.0, "full_proposed": 20}
    ours |= {"examined": 100, "accepted": 50, "tokens": 14, "seconds": 10.0}
    line = by_name([row(0, "target", **alone), row(0, "speculative 2", **ours)])["speculative 2"]
    assert line.theorem == pytest.approx(1.75 / 1.2)
    assert line.bound == pytest.approx(1.75 / 1.4)
    assert line.efficiency(line.bound) == pytest.approx(1.4 / (1.75 / 1.4))


def test_cells_are_kept_apart():
    rows = [
        row(0, "target", batch=batch, context=context, tokens=batch, seconds=1.0)
        for batch in (1, 8)
        for context in (100.0, 200.0)
    ]
    found = list(lines(pd.DataFrame(rows), ()))
    cells = [(line.batch, line.context, line.speed) for line in found]
    assert cells == [(1, 100, 1), (1, 200, 1), (8, 100, 8), (8, 200, 8)]


def test_floors_count_weights_once_and_texts_each():
    on = Hardware(name="x", memory_gb=1, bandwidth_gbs=1, tflops=1, bandwidth_share=1)
    plain = {"parameters": 10**6, "products": 10**6, "width": 4, "layers": 2, "vocab_size": 10}
    shape = Shape(name="x", cached=100, attended=200, **plain)
    machine = Machine(hardware=on, target=shape, draft=shape)
    timings = pd.DataFrame([row(0, "target", batch=8, full=5, full_target=1.0, forwards=5)])
    floor, step = floors(timings, machine, 8, 50)
    assert floor.gigabytes == pytest.approx((10**6 + 8 * 50 * 100) * 4 / 1e9)
    assert floor.gigaflops == pytest.approx(8 * (2 * 10**6 + 50 * 200) / 1e9)
    assert floor.least_ms == pytest.approx(1000 * floor.gigabytes)
    assert floor.taken_ms == pytest.approx(200)
    assert (step.what, step.gigabytes) == ("step of target", floor.gigabytes)


ARGUMENTS = ["bench", "--pair", "lab-a", "--task", "lab-a", "--tokens", "6", "--texts", "1"]


def test_a_run_leaves_a_folder_with_every_system_in_every_round(tmp_path):
    out = tmp_path / "run"
    grid = ["--batch", "1", "--batch", "2", "--gamma", "1", "--gamma", "2", "--rounds", "2"]
    result = CliRunner().invoke(app, [*ARGUMENTS, *grid, "--out", str(out)])
    assert result.exit_code == 0, result.output
    timings = read_timings(out)
    undrafted = [kind for kind in KINDS if "adaptive" in kind or kind == "target"]
    names = {System(kind).name for kind in undrafted}
    names |= {System(kind, g).name for kind in set(KINDS) - set(undrafted) for g in (1, 2)}
    assert set(timings["system"]) == names
    assert len(timings) == len(names) * 2 * 2
    assert (timings["tokens"] > 0).all()
    assert (timings["seconds"] > 0).all()
    ours = timings[~timings["system"].str.startswith("assisted")]
    parts = ours[[column for column in ours if column.endswith("_s")]].sum(axis=1)
    assert (parts <= ours["seconds"]).all()
    assert json.loads((out / "bench.json").read_text())["rounds"] == 2
    assert (out / "ratios.svg").stat().st_size > 1000
    assert "/ target" in result.output


def test_target_and_speculation_write_the_same_number_of_tokens_a_text(tmp_path):
    """Lengths are the law's: the mean over many texts does not depend on how they are decoded."""
    out = tmp_path / "run"
    systems = ["--system", "target", "--system", "speculative", "--system", "adaptive"]
    load = ["--batch", "16", "--texts", "8", "--rounds", "1", "--tokens", "40"]
    asked = [*ARGUMENTS[:5], *systems, *load, "--out", str(out)]
    assert CliRunner().invoke(app, asked).exit_code == 0
    tokens = read_timings(out).set_index("system")["tokens"]
    assert tokens.max() < 1.1 * tokens.min()


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--system", "magic"], "'magic' is not known"),
        (["--batch", "0"], "batches = (0,)"),
        (["--rounds", "0"], "rounds = 0"),
    ],
)
def test_what_does_not_fit_is_one_clear_error(tmp_path, more, says):
    result = CliRunner().invoke(app, [*ARGUMENTS, *more, "--out", str(tmp_path / "run")])
    assert isinstance(result.exception, ConfigError)
    assert says in str(result.exception)
    assert not (tmp_path / "run").exists()


def test_a_folder_in_use_is_left_alone(tmp_path):
    (tmp_path / "mine").write_text("mine")
    result = CliRunner().invoke(app, [*ARGUMENTS, "--out", str(tmp_path)])
    assert isinstance(result.exception, TraceError)
    assert (tmp_path / "mine").read_text() == "mine"
    with pytest.raises(TraceError, match="no benchmark"):
        read_timings(tmp_path)
