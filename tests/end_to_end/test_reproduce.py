"""`easd reproduce`: presets on a lab pair, forecasts for the paper's models, servers."""

import json
import re

import pytest
from http_server import running

import easd as package
from easd.config import load_config
from easd.pairs import lab
from easd.presets import PRESETS
from easd.runs import open_run

LAB = ("--pair", "lab-a", "--device", "cpu", "--first", "24", "--batch", "24")


def plain(text):
    return " ".join(text.split())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("reproduce")


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")


SYSTEMS = {
    "components": 6,
    "cross-family": 3,
    "domains": 4,
    "figure4": 3,
    "table1": 5,
    "table2": 8,
    "table5": 3,
    "table7": 11,
}
SAYS = {
    "components": "random refusal at easd's rate",
    "cross-family": "Reported of tasks that are not in this run: math500: target 79.6 %",
    "domains": "easd on lab-a: here",
    "figure4": "easd loses",
    "table1": "points or more with 80% power; 1.20 points, as reported on math500, take",
    "table2": "all tasks: easd 52.89 %, easd-without-draft-entropy 50.85 %",
    "table5": "times the speed of speculative; the paper's 17 and 18 tokens a second are 0.94",
    "table7": "from the fewest penalties to the most",
}


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_runs_on_a_lab_pair(easd, folder, name):
    out = folder / name
    printed, told = easd("reproduce", name, *LAB, "--out", out)
    run = open_run(out / "run", "evaluation")
    assert len(run.run["systems"]) == SYSTEMS[name]
    assert run.samples.num_rows == 24 * SYSTEMS[name]
    assert SAYS[name] in plain(printed)
    page = (out / "reproduced.md").read_text()
    for note in package.presets.preset(name).notes:
        assert plain(note) in plain(printed)
        assert plain(note)[:40] in plain(page).replace("\\", "")
    assert "tau_h is" in told
    calibration = json.loads((out / "calibration.json").read_text())
    assert calibration["estimates"]["rates"]["gate"]["value"] == pytest.approx(0.02, abs=0.002)
    assert all(count == 0 for count in run.run["fitted"][0]["overlap"].values())


def test_a_finished_one_is_only_printed_again(easd, folder):
    first, _ = easd("reproduce", "table1", *LAB, "--out", folder / "table1")
    again, told = easd("reproduce", "table1", *LAB, "--out", folder / "table1")
    assert again == first
    assert "nothing was left to decode" in told


def test_what_was_refused_before_a_text_went_wrong(easd, folder):
    printed, _ = easd("reproduce", "figure4", *LAB, "--rate", "0.1", "--out", folder / "failures")
    run = open_run(folder / "failures" / "run", "evaluation")
    lost = int(re.search(r"easd loses (\d+) text", plain(printed))[1])
    right = {
        system: {
            row["item"]
            for row in run.samples.select(["system", "item", "correct"]).to_pylist()
            if row["system"] == system and row["correct"]
        }
        for system in ("target", "easd")
    }
    assert lost == len(right["target"] - right["easd"]) > 0
    assert f"In {lost} of the {lost} lost text" in plain(printed)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_forecast_with_the_papers_models(easd, name, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    printed, told = easd("reproduce", name, "--dry-run", "--on", "h200")
    assert told == ""
    assert "Qwen/Qwen2.5-32B-Instruct 65.5 GB" in plain(printed)
    table = re.findall(r"^ +all +([\d,]+) +([\d,]+) +([\d,.]+)", printed, re.MULTILINE)
    assert len(table) == (2 if name in ("table1", "cross-family") else 1)
    for texts, tokens, _ in table:
        assert int(texts.replace(",", "")) < int(tokens.replace(",", ""))


def test_a_forecast_counts_what_is_asked_for(easd):
    printed, _ = easd("reproduce", "table1", "--dry-run", "--on", "h100:8", "--first", "50")
    for line in re.findall(r"^ +target .*$", printed, re.MULTILINE):
        assert line.split()[1:3] == ["180", "532,480"]  # 30 problems of AIME, else 50
    assert "fits on 8 x h100" in plain(printed)
    printed, _ = easd(
        *("reproduce", "table7", "--dry-run", "--on", "l4", "--task", "limo:10"),
        *("--max-new-tokens", "100", "--seed", "0", "--seed", "1"),
    )
    assert "1 x l4 is too little memory; the hours are of" in plain(printed)
    assert re.search(r"^ +all +220 +22,000 ", printed, re.MULTILINE)


def test_what_needs_a_reward_model_is_left_out_without_one(easd, tmp_path):
    folders = ("--target", lab.folder("lab-m", "target"), "--draft", lab.folder("lab-m", "draft"))
    asked = (*folders, *LAB[2:], "--task", "lab-m:9", "--set", "seeds=[0, 1]")
    calibration = tmp_path / "calibration.json"
    fitted = ("--task", "lab-m:60", "--rate", "0.05", "--temperature", "0.7", "-q")
    easd("calibrate", *folders, *fitted, "--out", calibration, "--run", tmp_path / "fit")
    printed, told = easd(
        *("reproduce", "table1", *asked, "--calibration", calibration, "--out", tmp_path / "out")
    )
    assert "rsd is left out: it scores steps with a reward model" in told
    tau_h = json.loads(calibration.read_text())["fields"]["tau_h"]
    run = open_run(tmp_path / "out" / "run", "evaluation").run
    names = [system["name"] for system in run["systems"]]
    assert names == ["target", "draft", "speculative", "easd"]
    assert run["systems"][3]["rule"]["tau_h"] == tau_h
    assert "9 problems would detect" in plain(printed)


def test_what_needs_one_tokenizer_is_left_out_where_there_are_two(easd, tmp_path):
    two = ("--pair", "lab-t", *LAB[2:], "--task", "lab-t:9", "--rate", "0.01")
    printed, told = easd("reproduce", "table1", *two, "--out", tmp_path / "out")
    assert "rsd is left out: the draft's tokenizer is another one" in told
    assert "draft is left out: its tokenizer is another one; decode it as the target" in told
    assert "easd on lab-t: here" in plain(printed)


def test_a_server_decodes_and_another_one_has_a_system(easd, tmp_path):
    pair = package.load_pair("lab-a", device="cpu")
    config = load_config(None, {"pair": "lab-a", "rule": {"name": "easd", "tau_h": 0.05}})
    with running(pair, config) as one, running(pair, config) as other:
        urls = [f"http://127.0.0.1:{each.port}/v1" for each in (one, other)]
        printed, told = easd(
            *("reproduce", "table1", "--endpoint", urls[0], "--endpoint", f"draft={urls[1]}"),
            *("--task", "lab-a", "--first", "8", "--out", tmp_path),
        )
    assert "rsd is left out: a server does not score steps" in told
    assert "a server shows no entropies to calibrate on" in told
    run = open_run(tmp_path / "run", "evaluation").run
    assert [system["name"] for system in run["systems"]] == [
        "target",
        "draft",
        "speculative",
        "easd",
    ]
    draft = run["systems"][1]
    assert draft["rule"] is None
    assert draft["settings"]["url"] == urls[1]
    gated = run["systems"][3]["rule"]
    assert (gated["tau_h"], gated["tau_o"]) == (1.5, 0.8)  # and not the server's
    assert "easd on lab-a: here" in plain(printed)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["table9"], "preset 'table9' is not known; choose one of components"),
        (["table1", "--pair", "lab-a", "--first", "0"], "first = 0 decodes nothing"),
        (["table1", "--concurrency", "3"], "concurrency is of a server"),
        (["table1", "--pair", "lab-a", "--endpoint", "http://x"], "a server has its own models"),
        (["table1", "--endpoint", "target=http://x/v1"], "0 of the endpoints have no system"),
        (
            ["table5", "--endpoint", "http://x/v1", "--endpoint", "rsd=http://y/v1"],
            "'rsd' is no system of table5; choose one of target, speculative, easd",
        ),
        (["table1", "--dry-run", "--on", "tpu"], "'tpu' is no device known here"),
        (["table1", "--dry-run", "--task", "file"], "give it as file:COUNT"),
        (["table1", "--pair", "smollm2", "--data", "nowhere"], "nowhere"),
        (["domains", "--pair", "lab-a", "--task", "humaneval"], "--allow-code-execution"),
    ],
)
def test_mistakes_are_one_line(refused, tmp_path, arguments, says):
    assert says in refused("reproduce", *arguments, "--out", tmp_path / "out")


def test_the_papers_models_are_refused_where_their_weights_do_not_fit(easd, tmp_path, monkeypatch):
    monkeypatch.setattr("easd.cli.dry_run.memory_gb", lambda device: 16.0)
    _, told = easd("reproduce", "table5", "--device", "cpu", "--out", tmp_path / "out", code=2)
    assert "take 162 GB, and cpu has 16 GB" in told.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_data_that_is_missing_is_named_with_what_to_do(refused, tmp_path):
    (tmp_path / "math500.jsonl").write_text('{"problem": "1+1?", "answer": "2"}\n')
    asked = ("reproduce", "figure4", "--pair", "smollm2", "--data", tmp_path)
    assert "limo.jsonl" in (line := refused(*asked, "--out", tmp_path / "out"))
    assert "--calibration FILE gives one" in line
    line = refused("reproduce", "cross-family", "--data", tmp_path / "no", "--pair", "smollm2")
    assert "--task" in line
