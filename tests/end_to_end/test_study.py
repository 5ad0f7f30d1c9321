"""`easd study`: tuned on some items, judged on the others, reported, continued."""

import importlib.util
import json
from pathlib import Path

import pytest

from easd import load_pair
from easd.report.metrics import frames
from easd.runs import open_run
from easd.study import study as study_in_python
from easd.tasks import load_task

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("study") / "here"


@pytest.fixture
def study(easd, folder):
    def run(*more, task="lab-a:24", code=0):
        return easd("study", "--pair", "lab-a", task, "--out", folder, *more, code=code)

    return run


def test_what_was_tuned_is_judged_on_other_items(study, folder):
    printed, told = study()
    tuned = json.loads((folder / "tuned.json").read_text())
    run = open_run(folder / "run", "evaluation")
    assert tuned["data"][0]["items"] == 8
    assert run.samples.num_rows == 5 * 16
    (fitted,) = run.run["fitted"]
    assert fitted["overlap"] == {"lab-a": 0}
    best = {each["name"]: each for each in tuned["estimates"]["candidates"]}
    for system in run.run["systems"]:
        if system["name"] in best:
            wanted = best[system["name"]]["temperature"]
            assert system["settings"]["temperature"] == wanted, system
    assert [system["name"] for system in run.run["systems"]][:3] == [
        "target at its best",
        "speculative at its best",
        "target, T = 1",
    ]
    assert "as fast as lossless speculation" in printed
    assert "tuning on 8 items of lab-a, then judging on the other 16" in told
    assert f"use what was found with --calibration {folder / 'tuned.json'}" in told
    assert "Does EASD help?" in told
    assert "Does anything?" in told
    assert "Does anything?" in (folder / "report" / "report.md").read_text()


def test_a_finished_study_is_not_decoded_again(study, folder):
    before = (folder / "tuned.json").read_bytes()
    printed, told = study()
    assert printed == ""
    assert "nothing was left to decode" in told
    assert (folder / "tuned.json").read_bytes() == before


def test_the_page_of_results_is_written_from_a_study(folder):
    spec = importlib.util.spec_from_file_location("make_results", ROOT / "docs/make_results.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    run = frames(open_run(folder / "run"))
    table = module.compared(run)
    page = module.page([run], table)
    assert list(table["kind"]) == ["easd", "pool-everywhere"]
    assert "**EASD:** no difference was detected on lab-a." in page
    assert "easd study --pair lab-a lab-a:24 --batch 16 --set chunk=64" in page
    headings, _, *rows = (line for line in page.splitlines() if line.startswith("|"))
    assert [len(line.split(" | ")) for line in rows] == 2 * [len(headings.split(" | "))]
    for name in ("EASD", "pool of both opinions"):
        assert name in module.figure(table)


def test_python_and_yaml_do_the_same(easd, folder, tmp_path):
    task = load_task("lab-a", limit=24)
    page = study_in_python(load_pair("lab-a"), task, tmp_path / "python")
    assert "Does anything?" in page.with_suffix(".md").read_text()
    file = tmp_path / "study.yaml"
    file.write_text("pair: lab-a\ntasks: [lab-a:24]\ntune_on: 8\n")
    easd("study", file, "--out", tmp_path / "yaml")
    texts = [
        open_run(each / "run").samples["token_ids"]
        for each in (folder, tmp_path / "python", tmp_path / "yaml")
    ]
    assert texts[0] == texts[1] == texts[2]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("tasks: [lab-a:9, lab-c:9]", "a study has one task, and"),
        ("tasks: [lab-a:9]\ntune_on: many", "tune_on = 'many' is not a whole number"),
        ("tasks: [lab-a:9]\nsystems: [easd]", "systems is what tuning finds; leave it out"),
    ],
)
def test_mistakes_in_a_file_are_one_line(refused, tmp_path, text, words):
    file = tmp_path / "study.yaml"
    file.write_text(f"pair: lab-a\n{text}\n")
    assert words in refused("study", file, "--out", tmp_path / "out")
    assert "data belongs to a task" in refused("study", file, "--data", tmp_path)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--tune-on", "24"], "tune_on = 24 of 24 items"),
        (["--tune-on", "0"], "tune_on = 0 of 24 items"),
        (["--tune-on", "7"], "was tuned on 8 items, not 7; choose another --out"),
        (["other"], "2 names were given; give target, draft and task, or a task"),
        (["--temperature", "1"], "temperature is what tuning finds; leave it out"),
    ],
)
def test_mistakes_are_one_line(study, given, words):
    printed, told = study(*given, code=2)
    assert printed == ""
    assert words in told.splitlines()[-1]


def test_what_does_not_fit_is_found_before_tuning(easd, tmp_path):
    out = tmp_path / "study"
    long = ("--max-new-tokens", "60", "--out", out)
    printed, told = easd("study", "--pair", "lab-a", "lab-a:24", *long, code=2)
    assert printed == ""
    assert "over the context window of 64; lower max_new_tokens" in told
    assert not (out / "tuned.json").exists()
