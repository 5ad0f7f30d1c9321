"""Evaluations from config to tables: pairing, resuming, refusing; on the lab pair."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pyarrow.compute as pc
import pytest

from easd import load_pair
from easd.engine.generate import generate
from easd.errors import ConfigError, EasdError, InputError, TraceError
from easd.evaluate.config import StudyConfig
from easd.evaluate.engine import Evaluation
from easd.evaluate.presets import ablation, matched_refusal, sweep
from easd.runs import open_run
from easd.tasks import Grade, load_task

GRID = {
    "pair": "lab-a",
    "tasks": ["lab-a:50"],
    "batch_size": 8,
    "chunk": 20,
    "trace": 20,
    "baselines": False,
}
KILLS = int(os.environ.get("EASD_TEST_KILLS", "2"))
SYSTEMS = ["target", "speculative", "easd:tau_h=0.2,draft_at_bonus=true"]


@pytest.fixture(scope="module")
def pair():
    return load_pair("lab-a", device="cpu")


def evaluate(pair, folder, on_chunk=None, **changes):
    config = StudyConfig.from_dict({**GRID, "systems": SYSTEMS, **changes})
    tasks = [task.load() for task in config.tasks]
    Evaluation(config, pair, tasks, folder).run(on_chunk)
    return open_run(folder)


def rows(run, *columns):
    """Samples as sorted tuples, without what depends on time."""
    names = columns or ("system", "task", "seed", "item", "text", "token_ids", "correct", "blocks")
    frame = run.samples.select(list(names)).to_pylist()
    return sorted(tuple(str(row[name]) for name in names) for row in frame)


@pytest.fixture(scope="module")
def run(pair, tmp_path_factory):
    return evaluate(pair, tmp_path_factory.mktemp("run") / "run", seeds=[0, 3])


def test_every_cell_has_every_item_once(run):
    keys = rows(run, "system", "task", "seed", "item")
    assert len(keys) == len(set(keys)) == 3 * 2 * 50
    assert run.run["status"] == "finished"
    assert run.items.num_rows == 50


def test_texts_are_what_the_engine_writes_and_grades_are_the_tasks(pair, run):
    task = load_task("lab-a", limit=50)
    config = StudyConfig.from_dict({**GRID, "systems": SYSTEMS})
    easd = config.systems[2]
    texts = generate(
        pair.target,
        pair.draft,
        [item.prompt for item in task.items],
        tokenizer=pair.tokenizer,
        settings=easd.settings,
        seed=3,
        max_new_tokens=task.max_new_tokens,
    )
    mine = {
        row["item"]: row
        for row in run.samples.to_pylist()
        if row["system"] == easd.name and row["seed"] == 3
    }
    for item, text in zip(task.items, texts, strict=True):
        row = mine[item.id]
        assert row["token_ids"] == text.token_ids
        assert row["correct"] == task.grade(item, text.text).correct
        for name in ("blocks", "proposed", "examined", "accepted", "penalised"):
            assert row[name] == getattr(text.counts, name)


def test_lossless_speculation_writes_the_targets_texts_under_shared_noise(run):
    texts = {name: rows_of(run, name) for name in ("target", "speculative", SYSTEMS[2])}
    assert texts["speculative"] == texts["target"]
    assert texts[SYSTEMS[2]] != texts["target"]


def rows_of(run, system):
    return {
        (row["seed"], row["item"]): row["text"]
        for row in run.samples.to_pylist()
        if row["system"] == system
    }


def test_tokens_are_recorded_for_the_first_items_and_agree_with_the_samples(run):
    tokens = run.tokens.to_pandas()
    assert set(tokens["request"]) == set(range(20))
    easd = tokens[tokens["system"] == SYSTEMS[2]]
    samples = run.samples.to_pandas()
    mine = samples[(samples["system"] == SYSTEMS[2]) & (samples["index"] < 20)]
    for outcome in ("accepted", "penalised"):
        assert (easd["outcome"] == outcome).sum() == mine[outcome].sum()
    examined = easd[easd["outcome"].isin(["accepted", "rejected", "penalised"])]
    assert examined["gate"].sum() == mine["gate_open"].sum() > 0
    over = (examined["target_entropy"] > 0.2).sum()
    assert over == mine["over_target_entropy"].sum()
    shared = (examined["overlap"] >= 0.8 - 1e-6).sum()
    assert shared == mine["over_overlap"].sum()


def test_a_run_goes_on_and_ends_where_an_unbroken_one_does(pair, run, tmp_path):
    class Stop(Exception):
        pass

    def stop_at(limit):
        def watch(progress):
            if progress.done == limit:
                raise Stop

        return watch

    for limit in (1, 4, 9):
        with pytest.raises(Stop):
            evaluate(pair, tmp_path / "run", stop_at(limit), seeds=[0, 3])
    (tmp_path / "run/samples/.half.parquet.unfinished").write_bytes(b"torn")
    resumed = []
    again = evaluate(
        pair, tmp_path / "run", lambda progress: resumed.append(progress.resumed), seeds=[0, 3]
    )
    assert resumed == [True] * 9 + [False] * 9
    assert rows(again) == rows(run)
    assert again.run["started"] <= again.run["ended"]


def test_systems_can_be_added_to_a_run(pair, tmp_path):
    evaluate(pair, tmp_path / "run", systems=["target"])
    fresh = []
    run = evaluate(
        pair, tmp_path / "run", lambda p: fresh.append(p.resumed), systems=["target", "draft"]
    )
    assert fresh.count(True) == fresh.count(False) == 3
    assert [system["name"] for system in run.run["systems"]] == ["target", "draft"]
    run = evaluate(pair, tmp_path / "run", systems=["speculative"])
    assert len(run.run["systems"]) == 3
    assert len(set(rows(run, "system", "item"))) == 150


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"temperature": 0.5}, "a run with temperature = 1.0, not 0.5"),
        ({"chunk": 10}, "a run with chunk = .*, not 10"),
        ({"tasks": ["lab-a:51"]}, "a run with tasks.* = .*, not "),
        (
            {"systems": [{"name": "target", "rule": "draft"}]},
            "a run with system target: .* = .*, not ",
        ),
    ],
)
def test_a_run_with_other_settings_is_refused(pair, tmp_path, changes, says):
    evaluate(pair, tmp_path / "run", systems=["target"])
    before = rows(open_run(tmp_path / "run"))
    with pytest.raises(TraceError, match=says):
        evaluate(pair, tmp_path / "run", **{"systems": ["target"], **changes})
    assert rows(open_run(tmp_path / "run")) == before


def test_a_run_of_another_pair_is_refused(pair, tmp_path):
    evaluate(pair, tmp_path / "run", systems=["target"])
    with pytest.raises(TraceError, match=r"a run with models: .* = .*, not "):
        evaluate(load_pair("lab-c", device="cpu"), tmp_path / "run", systems=["target"])


def test_a_foreign_folder_another_version_and_a_second_process_are_refused(pair, tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(TraceError, match="something else"):
        evaluate(pair, tmp_path, systems=["target"])
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    folder = tmp_path / "run"
    evaluate(pair, folder, systems=["target"])
    config = StudyConfig.from_dict({**GRID, "systems": ["target"]})
    task = config.tasks[0].load()
    first = Evaluation(config, pair, [task], folder)
    with pytest.raises(TraceError, match="another process"):
        Evaluation(config, pair, [task], folder)
    first.run()
    description = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**description, "format": 99}))
    for reading in (lambda: open_run(folder), lambda: evaluate(pair, folder, systems=["target"])):
        with pytest.raises(TraceError, match="format 99"):
            reading()


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"sistems": ["target"]}, "'sistems'"),
        ({"systems": ["eads"]}, "'eads'"),
        ({"systems": ["easd:tau_g=1"]}, "'tau_g'"),
        ({"systems": [{"rule": "easd", "temprature": 1}]}, "'temprature'"),
        ({"systems": ["target", "target"]}, "named twice"),
        ({"systems": [{"rule": "fly", "coupling": "shared"}]}, "has none per position"),
        ({"systems": ["rsd:detla=1"]}, "'detla'"),
        ({"tasks": ["lab-a:many"]}, "'many'"),
        ({"tasks": []}, "tasks is empty"),
        ({"chunk": 0}, "chunk = 0"),
        ({"seeds": ["x"]}, "'x'"),
        ({"rule": "easd"}, "belongs to a system"),
        ({"n": 2}, "seeds"),
    ],
)
def test_a_bad_config_is_one_clear_error(values, says):
    with pytest.raises(EasdError, match=says):
        StudyConfig.from_dict({**GRID, **values})


def test_a_prompt_that_does_not_fit_is_named_before_anything_is_decoded(pair, tmp_path):
    with pytest.raises(InputError, match=r"item '.*' of lab-a has \d+ prompt tokens"):
        evaluate(pair, tmp_path / "run", max_new_tokens=60)
    assert not (tmp_path / "run").exists()


def test_rules_without_a_law_and_reward_guided_decoding_are_systems_too(pair, tmp_path):
    run = evaluate(
        pair, tmp_path / "run", systems=["fly:tau_h=0.2", "rsd:delta=0.7", "draft", "target"]
    )
    kinds = {system["name"]: system for system in run.run["systems"]}
    assert kinds["fly:tau_h=0.2"]["settings"] == {"coupling": "published"}
    assert kinds["rsd:delta=0.7"]["kind"] == "rsd"
    frame = run.samples.to_pandas()
    rsd = frame[frame["system"] == "rsd:delta=0.7"]
    assert rsd["rewritten"].sum() > 0
    assert (rsd["accepted"] + rsd["blocks"] == rsd["new_tokens"]).all()
    assert (frame[frame["system"] == "draft"]["blocks"] == 0).all()
    unnamed = replace(pair, name="mine")
    with pytest.raises(ConfigError, match="needs a reward model"):
        evaluate(unnamed, tmp_path / "other", systems=["rsd"])


def test_the_ablation_and_its_matched_control(pair, tmp_path):
    gate = {"tau_h": 0.2, "draft_at_bonus": True}
    run = evaluate(pair, tmp_path / "run", systems=ablation(gate))
    texts = {name: rows_of(run, name) for name in ("target", "easd")}
    null = next(s["name"] for s in run.run["systems"] if "null control" in s["name"])
    assert rows_of(run, null) == texts["target"] != texts["easd"]
    control = matched_refusal(run, gate)
    frame = run.samples.to_pandas()
    own = frame[frame["system"] == "easd"]
    assert control["rule"]["rate"] == pytest.approx(
        own["gate_open"].sum() / own["examined"].sum(), abs=1e-6
    )
    assert control["rule"]["rate"] > 0.01
    run = evaluate(pair, tmp_path / "run", systems=[*ablation(gate), control])
    assert len(run.run["systems"]) == 9


def test_a_sweep_is_the_grid_it_says():
    names = [system["name"] for system in sweep((1.5, 2.0), (0.6, 1.0), {})]
    assert names[2:] == [
        "easd tau_h=1.5 tau_o=0.6",
        "easd tau_h=1.5 tau_o=1",
        "easd tau_h=2 tau_o=0.6",
        "easd tau_h=2 tau_o=1",
    ]


def test_killed_at_any_moment_it_loses_repeats_and_mixes_nothing(pair, tmp_path):
    grid = {"tasks": ["lab-a:400"], "batch_size": 8, "chunk": 10, "trace": 30, "seeds": [0, 1]}
    arguments = [sys.executable, "-m", "easd", "eval", "--out", str(tmp_path / "killed"), "-q"]
    arguments += ["--pair", "lab-a", "--task", "lab-a:400", "--batch", "8"]
    arguments += [*("--seed", "0", "--seed", "1"), "--set", "chunk=10", "--set", "trace=30"]
    arguments += ["--set", "baselines=false", *(f"--system={name}" for name in SYSTEMS)]
    arguments += ["--device", "cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    rng = random.Random(0)
    kills = 0
    for _ in range(KILLS):
        process = subprocess.Popen(arguments, env=environment, stderr=subprocess.PIPE)
        wait_for_units(tmp_path / "killed", more=rng.randrange(3, 200 // KILLS), process=process)
        time.sleep(rng.random() * 0.1)
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
        process.stderr.close()
    assert kills >= KILLS - 1
    done = len(list((tmp_path / "killed/samples").glob("*.parquet")))
    assert 0 < done < 2 * 40 * 3
    subprocess.run(arguments, env=environment, check=True, timeout=300)
    whole = evaluate(pair, tmp_path / "whole", **grid)
    assert rows(open_run(tmp_path / "killed")) == rows(whole)
    assert open_run(tmp_path / "killed").tokens.num_rows == whole.tokens.num_rows


def wait_for_units(folder: Path, *, more: int, process: subprocess.Popen) -> None:
    """Returns when so many more units are there, or the process has ended."""
    samples = folder / "samples"
    wanted = len(list(samples.glob("*.parquet"))) + more
    deadline = time.monotonic() + 120
    while process.poll() is None and len(list(samples.glob("*.parquet"))) < wanted:
        assert time.monotonic() < deadline, "no progress"
        time.sleep(0.01)


def test_failed_gradings_and_skipped_rows_are_counted(pair, tmp_path):
    task = load_task("lab-a", limit=6)

    def failing(item, text):
        return Grade(answer=None, correct=False, failure="time-out")

    broken = replace(task, skipped=("line 3: no answer",), grader=failing)
    config = StudyConfig.from_dict({**GRID, "systems": ["target"]})
    Evaluation(config, pair, [broken], tmp_path / "run").run()
    run = open_run(tmp_path / "run")
    assert pc.sum(pc.equal(run.samples["failure"], "time-out")).as_py() == 6
    assert run.run["tasks"]["lab-a"]["skipped"] == ["line 3: no answer"]
