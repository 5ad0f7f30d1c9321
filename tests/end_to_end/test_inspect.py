"""`easd inspect` opens every kind of run folder and says what it holds."""

import json
import sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from types import SimpleNamespace

import pytest

from easd import cli
from easd.runs import Tally, open_run, traces

EVAL = ["eval", "--pair", "lab-a", "--task", "lab-a:12", "--seed", "3", "-q"]
EVAL += ["--set", "baselines=false", "--set", "chunk=6", "--set", "trace=6"]
EVAL += ["--system", "target", "--system", "speculative", "--system", "easd:tau_h=0.2"]
BENCH = ["bench", "--pair", "lab-a", "--tokens", "6", "--rounds", "2"]
BENCH += ["--system", "target", "--system", "speculative", "--gamma", "2"]


def easd(*arguments):
    """Runs the command line in this process; its exit code and all that it printed."""
    printed = StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        redirect_stdout(printed),
        redirect_stderr(printed),
    ):
        patch.setattr(sys, "argv", ["easd", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
    return SimpleNamespace(exit_code=caught.value.code or 0, output=printed.getvalue())


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "evaluation"
    assert easd(*EVAL, "--out", folder).exit_code == 0
    return folder


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "bench"
    assert easd(*BENCH, "--out", folder).exit_code == 0
    return folder


def test_an_evaluation_is_shown_by_system_in_the_order_of_the_run(evaluation):
    found = easd("inspect", evaluation)
    assert found.exit_code == 0
    systems = ["target", "speculative", "easd:tau_h=0.2"]
    lines = [next(line for line in found.output.splitlines() if f" {s} " in line) for s in systems]
    assert [found.output.index(line) for line in lines] == sorted(map(found.output.index, lines))
    samples = open_run(evaluation).samples.to_pandas()
    for system, line in zip(systems, lines, strict=True):
        right = samples[samples["system"] == system]["correct"].mean()
        assert f"{100 * right:.1f} %" in line
    assert "easd report" in found.output


def test_recorded_texts_of_an_evaluation_are_traces(evaluation):
    run = open_run(evaluation)
    cells = traces(run)
    assert [cell.run["cell"]["system"] for cell in cells] == ["target", "speculative", EVAL[-1]]
    samples = run.samples.to_pandas().query("index < 6")
    for cell in cells:
        own = samples[samples["system"] == cell.run["cell"]["system"]]
        tally = Tally.of(cell)
        for name in ("blocks", "proposed", "examined", "accepted", "penalised"):
            assert getattr(tally, name) == own[name].sum(), name
        assert tally.tokens == own["new_tokens"].sum()
        assert cell.samples.to_pandas().sort_values("sample")["text"].tolist() == list(
            own.sort_values("index")["text"]
        )
    assert cells[2].run["config"]["rule"]["tau_h"] == 0.2
    assert cells[2].run["config"]["seed"] == 3


def test_a_recorded_text_of_an_evaluation_is_shown_for_each_system(evaluation):
    found = easd("inspect", evaluation, "--sample", 2)
    assert found.exit_code == 0
    assert "text 2: easd:tau_h=0.2, lab-a, seed 3" in found.output
    missing = easd("inspect", evaluation, "--sample", 6)
    assert "no text 6; it has 0 to 5" in missing.output


def test_a_page_shows_an_evaluations_systems_side_by_side(evaluation, tmp_path):
    assert easd("inspect", evaluation, "--html", tmp_path / "page.html").exit_code == 0
    page = (tmp_path / "page.html").read_text()
    data = json.loads(page.split('type="application/json"')[1].split(">", 1)[1].split("<")[0])
    rules = [run["run"]["config"]["rule"]["name"] for run in data["runs"]]
    assert rules == ["target", "speculative", "easd"]
    assert [run["run"]["signals"]["top_n"] for run in data["runs"]] == [5, 5, 5]
    assert [run["texts_in_run"] for run in data["runs"]] == [6, 6, 6]


def test_a_benchmark_is_shown_by_system(bench):
    found = easd("inspect", bench)
    assert found.exit_code == 0
    timings = open_run(bench).timings.to_pandas()
    total = timings[timings["system"] == "speculative 2"].sum(numeric_only=True)
    (line,) = [line for line in found.output.splitlines() if "speculative 2" in line]
    assert f"{total['tokens'] / total['seconds']:.1f}" in line
    assert f"{100 * total['accepted'] / total['examined']:.1f} %" in line


def test_a_report_says_what_other_runs_hold(bench, evaluation, tmp_path):
    trace = tmp_path / "trace"
    asked = ("generate", "--pair", "lab-a", "--trace", trace, "-q", "3 + 4 + 5 - 6 * 7 ?")
    assert easd(*asked).exit_code == 0
    found = easd("report", trace)
    assert found.exit_code == 0
    assert "a trace of lab-a" in found.output
    accepted = Tally.of(open_run(trace)).acceptance_rate
    assert f"{100 * accepted:.1f} %" in found.output
    assert f"easd inspect {trace}" in found.output
    assert easd("report", bench).output == easd("inspect", bench).output
    found = easd("report", trace, evaluation, "--out", tmp_path / "report")
    assert "a trace of lab-a" in found.output
    assert (tmp_path / "report" / "report.html").exists()


def test_what_a_run_does_not_hold_is_one_clear_error(bench, evaluation, tmp_path):
    for asked in (["--sample", "0"], ["--html", tmp_path / "page.html"]):
        found = easd("inspect", bench, *asked)
        assert found.exit_code == 2
        assert "recorded" in found.output
    found = easd(*BENCH, "--out", evaluation)
    assert "holds an evaluation, not a benchmark" in found.output
