"""The commands of studies from arguments to files, on the lab pair."""

import json
import os
import sys

import pytest
from models import spoil

from easd.evaluate import decoding
from easd.runs import open_run

FAST = ["--pair", "lab-a", "--device", "cpu", "--batch", "50", "--set", "chunk=50"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("studies")


@pytest.fixture
def calibration(easd, folder):
    path = folder / "calibration.json"
    if not path.exists():
        easd(
            *("calibrate", *FAST, "--task", "lab-a:150", "--rate", "0.05"),
            *("--out", path, "--run", folder / "calibration"),
        )
    return path


def test_calibrate_writes_what_generate_and_eval_take(easd, refused, calibration, folder):
    found = json.loads(calibration.read_text())
    assert 0 < found["fields"]["tau_h"] < 3
    assert found["estimates"]["rates"]["gate"]["value"] == pytest.approx(0.05, abs=0.002)
    assert set(found["estimates"]["paper_rule"]) == {"pooled", "draft", "target"}
    assert found["data"][0]["items"] == 150
    easd("generate", "--pair", "lab-a", "--calibration", calibration, "-q", "3 + 4 + 5 - 6 * 7 ?")
    line = refused("generate", "--pair", "lab-c", "--calibration", calibration, "3 + 4 ?")
    assert "another one" in line
    line = refused(
        "generate",
        *("--pair", "lab-a", "--temperature", "0.5"),
        "--calibration",
        calibration,
        "1 ?",
    )
    assert "temperature = 1.0 and this run has 0.5" in line
    easd(
        *("generate", "--pair", "lab-c", "--calibration", calibration, "--force", "-q"),
        "3 + 4 + 5 - 6 * 7 ?",
    )
    easd(
        *("eval", *FAST, "--task", "lab-a:50", "--calibration", calibration),
        *("--system", "easd", "--system", "easd:tau_h=2", "--out", folder / "filled"),
    )
    rules = [system["rule"] for system in open_run(folder / "filled").run["systems"]]
    assert [rule.get("tau_h") for rule in rules[:2]] == [found["fields"]["tau_h"], 2]


def test_each_calibration_has_a_folder_of_its_own(easd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    one = ["calibrate", *FAST, "--task", "lab-a:20", "--rate", "0.05"]
    for more in ([], ["--temperature", "0.8"], []):
        easd(*one, *more, "--out", "calibration.json")
    assert len(list((tmp_path / "runs").iterdir())) == 2


def test_the_papers_rule_is_told_to_do_nothing_where_it_does(easd, folder):
    _, err = easd(
        *("calibrate", *FAST, "--task", "lab-a:60", "--source", "target"),
        *("--out", folder / "paper.json", "--run", folder / "paper"),
    )
    assert "does next to nothing" in " ".join(err.split())


def test_eval_report_power_and_replay(easd, refused, folder):
    out = folder / "run"
    arguments = ["eval", *FAST, "--task", "lab-a:100", "--out", out]
    _, err = easd(*arguments, "--system", "target", "--system", "easd:tau_h=0.2")
    assert "target, temperature 0.5" in err
    assert "target, greedy" in err
    _, err = easd(*arguments, "--system", "target", "--system", "easd:tau_h=0.2")
    assert "nothing was left to decode" in err
    assert "a run with temperature = " in refused(
        *arguments, "--system", "target", "--temperature", "2"
    )
    _, err = easd("report", out)
    page = (out / "report" / "report.html").read_text()
    assert "easd:tau_h=0.2" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    text, _ = easd("power", out, "--system", "easd:tau_h=0.2", "--difference", "1")
    assert "1 points:" in text
    assert "no system of lab-a" in refused("power", out, "--system", "eads")
    assert "needs those of" in refused("sweep", "--replay", out)
    assert "holds no run" in refused("report", folder)


def test_sweep_replays_a_calibration_without_decoding(easd, calibration, folder):
    text, _ = easd("sweep", "--replay", folder / "calibration", "--tau-h", "0.2", "--tau-h", "9")
    assert "0.2 nats" in text
    row = next(line for line in text.splitlines() if "9 nats" in line)
    assert row.count("0.000%") == 3


def test_sweep_around_a_calibration_and_ablate_with_its_control(easd, calibration, folder):
    centre = json.loads(calibration.read_text())["fields"]["tau_h"]
    easd(
        *("sweep", *FAST, "--task", "lab-a:50", "--tau-o", "0.8", "--out", folder / "sweep"),
        *("--calibration", calibration),
    )
    heights = {
        system["rule"]["tau_h"]
        for system in open_run(folder / "sweep").run["systems"]
        if system["rule"]["name"] == "easd"
    }
    assert heights == {round(centre * factor, 4) for factor in (0.75, 1.0, 1.25)}
    easd(
        *("ablate", *FAST, "--task", "lab-a:50", "--calibration", calibration),
        *("--out", folder / "ablation"),
    )
    run = open_run(folder / "ablation").run
    control = next(s for s in run["systems"] if s["rule"]["name"] == "random-refusal")
    assert 0.01 < control["rule"]["rate"] < 0.2


def test_diagnose_prints_a_verdict_and_writes_what_eval_takes(easd, refused, folder):
    text, _ = easd(
        *("diagnose", "--pair", "lab-a", "--device", "cpu", "--task", "lab-a:300"),
        *("--tau-h", "0.3", "--rate", "0.02", "--out", folder / "diagnosis.json"),
        *("--positions", folder / "positions.parquet"),
    )
    assert "EASD will hurt on this pair" in " ".join(text.split())
    assert (folder / "positions.parquet").exists()
    fields = json.loads((folder / "diagnosis.json").read_text())["fields"]
    assert fields["tau_h"] == 0.3
    assert {"a", "b"} < set(fields)
    text, _ = easd(
        *("diagnose", "--pair", "lab-a", "--device", "cpu", "--task", "lab-a:60"),
        *("--rate", "0.05", "--json", "-q", "--out", folder / "by-rate.json"),
    )
    given, by_rate = json.loads(text)["thresholds"]
    assert (given["tau_h"], by_rate["wanted"]) == (1.5, 0.05)
    kept = json.loads((folder / "by-rate.json").read_text())["fields"]
    assert kept["tau_h"] == by_rate["tau_h"] < 1.5
    assert "TASK" in refused("diagnose", "--pair", "lab-a").upper()


def test_a_diagnosis_is_kept_although_its_reader_left(easd, tmp_path, monkeypatch):
    kept = tmp_path / "diagnosis.json"
    read, write = os.pipe()
    os.close(read)
    with open(write, "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        asked = ("diagnose", "--pair", "lab-a", "--device", "cpu", "--task", "lab-a:20")
        _, err = easd(*asked, "--out", kept, code=2)
    assert "standard output was closed" in err
    assert "tau_h" in json.loads(kept.read_text())["fields"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["eval", "--task", "gsm9k"], "gsm9k"),
        (["eval", "--task", "humaneval", "--data", "nowhere.jsonl"], "--allow-code-execution"),
        (["eval", "--task", "gsm8k", "--data", "nowhere.jsonl"], "nowhere.jsonl"),
        (["eval"], "tasks is empty"),
        (["eval", "--task", "lab-a", "--set", "speling=1"], "'speling'"),
        (["eval", "missing.yaml"], "missing.yaml"),
        (["calibrate", "--task", "lab-a:20", "--source", "oracle"], "'oracle'"),
    ],
)
def test_mistakes_cost_one_line(refused, tmp_path, arguments, says):
    assert says in refused(*arguments, "--pair", "lab-a", "--out", tmp_path / "run")


def test_tasks_are_listed(easd):
    text, _ = easd("tasks")
    assert "gsm8k" in text
    assert "lab-m" in text


def test_texts_that_fail_are_named_and_too_many_end_the_command(easd, tmp_path, monkeypatch):
    def told(folder, which, code):
        spoil(monkeypatch, decoding, which)
        command = ["eval", *FAST, "--task", "lab-a:12", "--system", "speculative"]
        _, err = easd(*command, "--set", "baselines=false", "--out", tmp_path / folder, code=code)
        assert open_run(tmp_path / folder).run["status"] == "finished"
        return " ".join(err.split())

    said = told("one", lambda request: request.number == 7, 0)
    assert "warning: 1 of 12 texts failed and count as wrong, of speculative on lab-a" in said
    assert "NaN" in said
    said = told("half", lambda request: request.number % 2, 2)
    assert "error: 6 of 12 texts failed" in said
    assert "more than 10%, so its accuracy says nothing" in said
    assert "error: 12 of 12 texts failed" in told("all", lambda request: True, 2)
