"""The trace: what it says of each token, and that it stays readable whatever ends a run."""

import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from traces import traced

from easd.config import RunConfig
from easd.core.noise import Noise, request_key
from easd.engine import trace as writer
from easd.engine.generate import generate
from easd.engine.record import Recorder
from easd.engine.trace import TraceWriter
from easd.errors import TraceError
from easd.pairs.lab import problems
from easd.pairs.loading import load_pair
from easd.runs import TABLES, RunFolder, Tally, open_run, summary
from easd.runs.files import write_json
from easd.runs.schema import OUTCOMES, PARTS

PROMPTS = [problem.prompt for problem in problems("lab-a", 12, seed=0)]
EMITTED = ("accepted", "replacement", "bonus")
EXAMINED = ("accepted", "rejected", "penalised")


@pytest.fixture(scope="module")
def pair():
    return load_pair("lab")


@pytest.fixture
def run(pair, tmp_path):
    """Decodes the prompts with these settings into a trace; returns texts, live counts, trace."""

    def decode(rule="easd", prompts=PROMPTS, **settings):
        config = RunConfig.from_dict({"pair": "lab", "rule": rule, "batch_size": 5, **settings})
        recorder = Recorder(config.settings.rule)
        texts, trace = traced(pair, config, tmp_path / "run", prompts, recorder.add)
        return texts, recorder.total, trace

    return decode


LOOSE = {"name": "easd", "tau_h": 0.3, "tau_o": 0.4}
CASES = [
    {"rule": LOOSE},
    {"rule": {**LOOSE, "draft_at_bonus": True}, "coupling": "maximal"},
    {"rule": LOOSE, "temperature": 0, "gamma": 3},
    {"rule": LOOSE, "stop": [" 5", "7"], "gamma": 6},
    {"rule": LOOSE, "max_new_tokens": 3},
    {"rule": LOOSE, "coupling": "shared"},
    {"rule": {"name": "random-refusal", "rate": 0.3}},
    {"rule": "speculative", "n": 2},
    {"rule": "speculative", "drafter": "prompt-lookup"},
    {"rule": "target"},
    {"rule": "draft"},
]


@pytest.mark.parametrize(
    "schema", [pytest.param(s, id=f"{k} {n}") for k, t in TABLES.items() for n, s in t.items()]
)
def test_every_column_has_a_unit_and_a_definition(schema):
    for field in schema:
        assert field.metadata[b"unit"]
        assert field.metadata[b"definition"]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_emitted_rows_spell_the_texts(run, case):
    texts, _, trace = run(**case)
    rows = [row for row in trace.tokens.to_pylist() if row["outcome"] in EMITTED]
    for text in texts:
        mine = [row for row in rows if row["request"] == text.number]
        assert [row["token"] for row in mine] == text.token_ids
        first = len(text.prompt_ids)
        assert [row["position"] for row in mine] == list(range(first, first + len(mine)))
        (sample,) = [s for s in trace.samples.to_pylist() if s["request"] == text.number]
        assert sample["text"] == text.text
        assert sample["draft_tokens"] + sample["target_tokens"] == len(text.token_ids)
        assert sample["blocks"] == text.counts.blocks
        assert sample["finish_reason"] == text.finish_reason


@pytest.mark.parametrize("case", CASES, ids=str)
def test_counts_from_the_tables_are_the_live_ones(run, case):
    texts, tally, trace = run(**case)
    found = Tally.of(trace)
    assert found.conditions == tally.conditions
    assert found.blocks == tally.blocks == sum(text.counts.blocks for text in texts)
    for name in ("proposed", "examined", "accepted", "penalised"):
        counted = sum(getattr(text.counts, name) for text in texts)
        assert getattr(found, name) == getattr(tally, name) == counted, name
    assert found.gate_open == pytest.approx(tally.gate_open)
    assert found.tokens == tally.tokens == sum(len(text.token_ids) for text in texts)
    steps = trace.steps.to_pydict()
    for column in ("proposed", "examined", "accepted", "penalised"):
        assert sum(steps[column]) == getattr(tally, column)
    assert sum(steps["emitted"]) == tally.tokens


def test_outcomes_follow_from_the_numbers_of_their_rows(run):
    _, _, trace = run(LOOSE)
    rows = trace.tokens.to_pylist()
    assert set(Counter(row["outcome"] for row in rows)) == set(OUTCOMES)
    for row in rows:
        if row["outcome"] in EXAMINED:
            assert (row["uniform"] < row["accept_prob"]) == (row["outcome"] == "accepted")
            assert row["gate"] == (row["outcome"] == "penalised")
            assert row["draft_token"] == row["token"]
        if row["outcome"] == "bonus":
            assert row["draft_token"] is row["draft_prob"] is row["draft_entropy"] is None
        if row["outcome"] in ("replacement", "bonus"):
            assert row["accept_prob"] is row["uniform"] is None
        assert row["text"].strip() == dict_of(trace)[row["token"]].strip()


def dict_of(trace):
    return dict(zip(*trace.vocabulary.to_pydict().values(), strict=True))


def test_every_part_of_a_row_is_recomputed_from_the_step(run, pair, tmp_path):
    records = []
    config = RunConfig.from_dict({"pair": "lab", "rule": LOOSE, "batch_size": 5})
    copy = lambda record: records.append(replace(record, rows=list(record.rows)))  # noqa: E731
    _, trace = traced(pair, config, tmp_path / "again", PROMPTS, copy)
    rows = trace.tokens.to_pylist()
    assert len(rows) > 50
    for row in rows:
        record = records[row["step"]]
        (place,) = [i for i, r in enumerate(record.rows) if r.request.number == row["request"]]
        at = row["position"] - record.starts[place]
        target_probs = record.step.target_probs[place, at]
        assert row["target_prob"] == pytest.approx(target_probs[row["token"]].item())
        assert row["target_entropy"] == pytest.approx(
            -(target_probs * target_probs.clamp_min(1e-30).log()).sum().item(), abs=1e-5
        )
        best = target_probs.argsort(descending=True)[: len(row["target_top_tokens"])]
        assert row["target_top_probs"] == pytest.approx(target_probs[best].tolist())
        if row["outcome"] != "bonus":
            draft_probs = record.step.draft_probs[place, at]
            assert row["draft_prob"] == pytest.approx(draft_probs[row["token"]].item())
            mine = set(draft_probs.argsort(descending=True)[:5].tolist())
            assert round(row["overlap"] * 5) == len(mine & set(row["target_top_tokens"]))
        if row["uniform"] is not None:
            key = record.noise.keys[place : place + 1]
            assert key.item() == request_key(0, row["request"])
            start = record.noise.start[place : place + 1]
            again = Noise(keys=key, start=start).accept(at + 1)[0, at].item()
            assert row["uniform"] == pytest.approx(again, abs=1e-7)


@pytest.mark.parametrize("rule", [LOOSE, {"name": "pool-everywhere", "a": 1.3, "b": 0.7}], ids=str)
@pytest.mark.parametrize("temperature", [1.0, 0.0])
def test_the_rules_law_is_recorded_where_it_is_not_the_targets(pair, tmp_path, rule, temperature):
    records = []
    config = RunConfig.from_dict({"pair": "lab", "rule": rule, "temperature": temperature})
    _, trace = traced(pair, config, tmp_path / "run", PROMPTS, records.append)
    differing = 0
    rows = trace.tokens.to_pylist()
    for row in rows:
        record = records[row["step"]]
        (place,) = [i for i, r in enumerate(record.rows) if r.request.number == row["request"]]
        at = row["position"] - record.starts[place]
        law = config.settings.rule.law(record.step)[place, at]
        if law.equal(record.step.target_probs[place, at]):
            assert row["law_prob"] is None
            assert row["law_top_tokens"] == row["law_top_probs"] == []
            continue
        differing += 1
        assert row["law_prob"] == pytest.approx(law[row["token"]].item())
        assert row["law_top_probs"] == pytest.approx(law[row["law_top_tokens"]].tolist())
        assert row["law_top_probs"][0] == pytest.approx(law.max().item())
    assert differing
    assert rule != LOOSE or differing < len(rows)


def test_a_lossless_rule_and_one_without_a_law_record_none(run):
    _, _, trace = run("speculative")
    assert trace.tokens["law_prob"].null_count == trace.tokens.num_rows
    assert not any(trace.tokens["law_top_tokens"].to_pylist())
    assert trace.tokens["draft_top_origins"].null_count == trace.tokens.num_rows


def test_rows_behind_a_stop_are_discarded(run):
    texts, _, trace = run("speculative", gamma=6, stop=["7"])
    stopped = [text for text in texts if text.finish_reason == "stop"]
    assert stopped
    for text in stopped:
        rows = [r for r in trace.tokens.to_pylist() if r["request"] == text.number]
        end = len(text.prompt_ids) + len(text.token_ids)
        behind = [row for row in rows if row["position"] >= end]
        assert all(row["outcome"] == "discarded" for row in behind)


def test_greedy_rows_report_raw_signals_only_where_the_rule_asks_for_them(run):
    _, _, trace = run(LOOSE, temperature=0)
    assert trace.run["signals"] == {"from": "rule", "distribution": "raw", "top_n": 5}
    assert max(trace.tokens["target_entropy"].to_pylist()) > 0.3


def test_rules_without_signals_get_entropies_but_no_gate(run):
    _, _, trace = run("speculative")
    assert trace.run["signals"] == {"from": "trace", "distribution": "sampling", "top_n": 5}
    assert trace.tokens["gate"].null_count == trace.tokens.num_rows
    assert max(trace.tokens["target_entropy"].to_pylist()) > 0.3
    assert summary(trace)["conditions"] is None


def test_a_gated_bonus_position_has_the_drafts_numbers(run):
    _, _, trace = run({**LOOSE, "draft_at_bonus": True})
    bonus = [row for row in trace.tokens.to_pylist() if row["outcome"] == "bonus"]
    assert any(row["draft_prob"] is not None and row["draft_top_tokens"] for row in bonus)


def test_summary_defines_its_rates_on_the_rows(run):
    _, _, trace = run(LOOSE)
    found = summary(trace)
    rows = [r for r in trace.tokens.to_pylist() if r["outcome"] in EXAMINED]
    accepted = sum(row["outcome"] == "accepted" for row in rows)
    assert found["acceptance_rate"] == accepted / len(rows)
    assert found["gate_opening_rate"] == found["penalty_rate"] > 0
    high = sum(row["target_entropy"] > 0.3 for row in rows)
    assert found["conditions"]["target_entropy"] == high / len(rows)
    shared = sum(round(row["overlap"] * 5) >= 2 for row in rows)
    assert found["conditions"]["overlap"] == shared / len(rows)
    assert sum(found["seconds"].values()) == pytest.approx(
        sum(np.sum(trace.steps[f"{part}_ms"].to_numpy()) for part in PARTS) / 1000
    )


def test_a_run_without_drafts_has_no_rates(run):
    _, _, trace = run("target")
    found = summary(trace)
    assert found["acceptance_rate"] is found["penalty_rate"] is found["draft_utilisation"] is None
    assert found["block_efficiency"] == 1


def test_run_json_says_what_ran_and_reads_back_as_the_config(run):
    _, _, trace = run(LOOSE, seed=7)
    config = RunConfig.from_dict(trace.run["config"])
    assert config.settings.seed == 7
    assert config.settings.rule.tau_h == 0.3
    assert trace.run["status"] == "finished"
    assert {"python", "torch", "transformers", "easd"} <= set(trace.run["versions"])
    assert trace.run["hardware"]["device"]


def test_reading_needs_no_torch(run):
    _, _, trace = run(LOOSE)
    code = (
        "import sys; from rich.console import Console; from easd.runs import open_run, summary\n"
        "from easd.inspect.terminal import render\n"
        f"trace = open_run({str(trace.folder)!r}); summary(trace)\n"
        "render(trace, 0, Console(quiet=True))\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def decode_one(pair, config, on_step):
    generate(
        pair.target,
        pair.draft,
        PROMPTS[0],
        tokenizer=pair.tokenizer,
        settings=config.settings,
        on_step=on_step,
    )


@pytest.mark.parametrize(
    ("error", "status"), [(KeyboardInterrupt(), "interrupted"), (ValueError("odd"), "failed")]
)
def test_a_run_cut_short_reads_up_to_there(pair, tmp_path, error, status):
    config = RunConfig.from_dict({"pair": "lab", "gamma": 1})
    trace = TraceWriter(tmp_path / "run", pair, config)

    def stop_at_second(record):
        trace.add(record)
        if trace._steps == 2:
            raise error

    with pytest.raises(type(error)), trace:
        decode_one(pair, config, stop_at_second)
    found = open_run(tmp_path / "run")
    assert found.run["status"] == status
    assert found.steps.num_rows == 2
    assert set(found.tokens["step"].to_pylist()) == {0, 1}


def test_a_run_refused_before_its_first_step_leaves_the_folder_free(pair, tmp_path):
    config = RunConfig(pair="lab")
    with pytest.raises(ValueError, match="no"), TraceWriter(tmp_path / "run", pair, config):
        raise ValueError("no")
    with TraceWriter(tmp_path / "run", pair, config):
        pass


def test_parts_read_while_the_run_goes_on(pair, tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "_FLUSH_SECONDS", 0.0)
    monkeypatch.setattr(writer, "_FLUSH_SHARE", 0.0)
    config = RunConfig.from_dict({"pair": "lab", "gamma": 1})
    seen = []

    def look(record):
        trace.add(record)
        (tmp_path / "run/tokens/.part-00099.parquet.unfinished").write_bytes(b"cut")
        seen.append(open_run(tmp_path / "run"))

    with TraceWriter(tmp_path / "run", pair, config) as trace:
        decode_one(pair, config, look)
    assert [found.steps.num_rows for found in seen] == list(range(1, len(seen) + 1))
    assert seen[0].run["status"] == "running"
    assert open_run(tmp_path / "run").steps.num_rows == len(seen)


def test_a_part_cut_short_by_an_interrupt_is_written_again_once(pair, tmp_path, monkeypatch):
    write_table = pq.write_table
    calls = []

    def interrupted(table, to, **options):
        calls.append(to)
        if len(calls) == 3:
            raise KeyboardInterrupt
        write_table(table, to, **options)

    monkeypatch.setattr(pq, "write_table", interrupted)
    monkeypatch.setattr(writer, "_FLUSH_STEPS", 1)
    config = RunConfig(pair="lab")
    trace = TraceWriter(tmp_path / "run", pair, config)
    with pytest.raises(KeyboardInterrupt), trace:
        decode_one(pair, config, trace.add)
    found = open_run(tmp_path / "run")
    assert found.run["status"] == "interrupted"
    assert found.steps["step"].to_pylist() == [0]
    rows = [(r["position"], r["outcome"]) for r in found.tokens.to_pylist()]
    assert len(rows) == len(set(rows))


def test_a_full_disk_is_one_clear_line(pair, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    config = RunConfig(pair="lab")
    monkeypatch.setattr(Path, "write_bytes", full)
    trace = TraceWriter(tmp_path / "run", pair, config)
    with pytest.raises(TraceError, match=r"No space left on device.*stays readable"), trace:
        decode_one(pair, config, trace.add)
    assert open_run(tmp_path / "run").run["status"] == "failed"


def test_a_folder_that_will_not_do_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(TraceError, match="not empty"):
        writer.claim_folder(tmp_path)
    for bad in (tmp_path / "file", tmp_path / "file/run"):
        with pytest.raises(TraceError, match="cannot write a trace"):
            writer.claim_folder(bad)


def test_a_folder_without_a_trace_or_with_a_damaged_one_is_refused(run, tmp_path):
    with pytest.raises(TraceError, match="holds no run"):
        open_run(tmp_path)
    _, _, trace = run(LOOSE)
    part = trace.folder / "tokens/part-00000.parquet"
    part.write_bytes(part.read_bytes()[:200])
    with pytest.raises(TraceError, match=r"part-00000.*is damaged.*record the trace again"):
        open_run(trace.folder)
    part.unlink()
    with pytest.raises(TraceError, match=r"part-00000.*is missing"):
        open_run(trace.folder)
    (trace.folder / "run.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(TraceError, match="format 99"):
        open_run(trace.folder)
    (trace.folder / "run.json").write_text("{")
    with pytest.raises(TraceError, match="damaged"):
        open_run(trace.folder)


@pytest.mark.parametrize(
    ("file", "run", "called"),
    [
        ("run.json", {"format": 1, "run": "abc"}, "a trace of format 1"),
        ("run.json", {"format": 1, "kind": "evaluation"}, "an evaluation of format 1"),
        ("run.json", {"format": 2, "kind": "trace", "versions": 3}, "a trace of format 2"),
        ("bench.json", {"rounds": 2}, r"a benchmark \(bench.json\) of format 1"),
    ],
)
def test_a_folder_of_the_old_format_is_refused_by_name(tmp_path, file, run, called):
    (tmp_path / file).write_text(json.dumps(run))
    for reading in (open_run, lambda folder: RunFolder(folder, "evaluation")):
        with pytest.raises(TraceError, match=rf"holds {called}.*run it again"):
            reading(tmp_path)


def test_a_run_of_another_kind_says_what_it_is(run):
    _, _, trace = run("target")
    with pytest.raises(TraceError, match=r"holds a trace, not an evaluation; .*easd inspect"):
        open_run(trace.folder, "evaluation")


def test_a_file_is_on_the_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    happened = []
    synced, renamed = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda f: (happened.append("sync"), synced(f)))
    monkeypatch.setattr(os, "replace", lambda *p: (happened.append("rename"), renamed(*p)))
    write_json(tmp_path / "run.json", {})
    assert happened == ["sync", "rename", "sync"]
