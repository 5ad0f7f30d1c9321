"""Evaluations of servers over real sockets: what is asked, what is kept, and what may go wrong."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import serving
from serving import Faults, LabServer, Proxy, running

from easd.config import parse_rule
from easd.core.rules import EASD, rule_names
from easd.core.rules.base import field_names
from easd.engine.generate import generate
from easd.errors import EasdError
from easd.evaluate.config import split_rule
from easd.evaluate.endpoint import client
from easd.evaluate.endpoint.client import read_answer, seed_of
from easd.evaluate.endpoint.evaluate import EndpointEvaluation
from easd.evaluate.endpoint.servers import DIALECTS
from easd.evaluate.endpoint.settings import EndpointStudy
from easd.integrations.vllm.serving import Serving
from easd.runs import open_run
from easd.tasks import load_task

SYSTEMS = ["speculative", "easd:tau_h=0.2"]


@pytest.fixture(scope="module")
def server():
    with running(LabServer()) as found:
        yield found


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr(client, "FIRST_WAIT", 0.02)


def evaluate(url, folder, on_chunk=None, **changes):
    link = {n: changes.pop(n) for n in ("timeout", "retries", "concurrency") if n in changes}
    link = {"concurrency": 8, **link}
    values = {"tasks": ["lab-a:30"], "chunk": 10, "systems": SYSTEMS, **changes}
    study = EndpointStudy.from_dict({"endpoint": {"url": url, **link}, **values})
    tasks = [task.load() for task in study.tasks]
    said = []
    EndpointEvaluation(study, tasks, folder, said.append).run(on_chunk)
    return open_run(folder), said


def rows(run, *names):
    names = names or ("system", "seed", "item", "text", "answer", "correct", "new_tokens")
    return sorted(tuple(str(row[name]) for name in names) for row in run.samples.to_pylist())


@pytest.fixture(scope="module")
def run(server, tmp_path_factory):
    server.seen.clear()
    server.most_under_way = 0
    return evaluate(server.url, tmp_path_factory.mktemp("run") / "run", seeds=[0, 3])[0]


def test_every_sample_is_there_once_and_is_what_the_seed_writes(server, run):
    assert len(rows(run, "system", "seed", "item")) == len(set(rows(run))) == 2 * 2 * 30
    task = load_task("lab-a", limit=30)
    mine = {
        row["item"]: row
        for row in run.samples.to_pylist()
        if row["system"] == SYSTEMS[1] and row["seed"] == 3
    }
    study = EndpointStudy.from_dict({"endpoint": server.url, "tasks": ["lab-a"]})
    assert study.systems[0].name == "served"
    for item in task.items[:5]:
        (text,) = generate(
            server.pair.target,
            server.pair.draft,
            [item.prompt],
            tokenizer=server.pair.tokenizer,
            rule=EASD(tau_h=0.2),
            seed=seed_of(3, task, item),
            max_new_tokens=task.max_new_tokens,
        )
        row = mine[item.id]
        assert row["text"] == text.text
        assert row["correct"] == task.grade(item, text.text).correct
        assert row["prompt_tokens"] == len(text.prompt_ids)
        assert row["new_tokens"] == len(text.token_ids)
        for name in ("blocks", "proposed", "examined", "accepted", "penalised"):
            assert row[name] == getattr(text.counts, name)
        assert row["seconds"] > 0
        assert row["token_ids"] is row["gate_open"] is None


def test_requests_say_all_that_was_set_and_no_more_at_once_than_allowed(server, run):
    texts = [request for _, request in server.seen if request["max_tokens"] > 1]
    assert len(texts) == 120
    assert texts[0].keys() == {
        *("model", "prompt", "temperature", "top_p", "max_tokens", "seed", "speculative")
    }
    assert {path for path, _ in server.seen} == {"/completions"}
    assert texts[0]["speculative"] == {"rule": "speculative"}
    assert len({(r["seed"], r["prompt"]) for r in texts}) == len({r["seed"] for r in texts}) == 60
    assert 1 < server.most_under_way <= 8


def test_run_json_says_who_decoded(server, run):
    (found,) = run.run["models"]["servers"]
    assert found == {
        "url": server.url,
        "model": "lab",
        "dialect": "easd",
        "version": "0.0-test",
        "owned_by": None,
        "context": None,
    }
    assert run.run["status"] == "finished"
    assert run.run["config"]["coupling"] is None


def test_a_chat_has_the_tasks_system_message_and_a_body_may_add_and_take_out(server, tmp_path):
    server.seen.clear()
    (tmp_path / "mine.jsonl").write_text('{"id": "1", "problem": "3 + 4 ?", "answer": "7"}\n')
    body = {"speculative": {"rule": "easd", "tau_h": 0.2}, "user": "me", "frequency_penalty": None}
    run, _ = evaluate(
        server.url,
        tmp_path / "run",
        tasks=[{"name": "file", "data": str(tmp_path / "mine.jsonl"), "grader": "exact"}],
        systems=[{"name": "mine", "body": body, "temperature": 0.5, "max_new_tokens": 7}],
        stop=["#"],
    )
    path, request = server.seen[-1]
    assert path == "/chat/completions"
    assert [message["role"] for message in request["messages"]] == ["system", "user"]
    assert request["messages"][1]["content"] == "3 + 4 ?"
    assert (request["temperature"], request["max_tokens"], request["user"]) == (0.5, 7, "me")
    assert request["stop"] == ["#"]
    assert "frequency_penalty" not in request
    assert run.run["systems"][0]["settings"]["body"] == body


def test_what_passes_is_tried_again_and_leaves_no_mark(server, run, tmp_path):
    faults = [
        *(serving.too_many, serving.broken, serving.hang, serving.drop),
        *(serving.half, serving.garbage, serving.other_json),
    ]
    plan = {3 + 5 * place: fault for place, fault in enumerate(faults * 3)}
    with running(Proxy(server.url, Faults(plan))) as proxy:
        again, said = evaluate(proxy.url, tmp_path / "run", seeds=[0, 3], timeout=2)
        assert set(proxy.faults.hits.values()) == {3}
    assert rows(again) == rows(run)
    assert any("429 (too many requests); trying again in 1 s" in line for line in said)
    slow = [row["seconds"] for row in again.samples.to_pylist()]
    assert max(slow) > 2


@pytest.mark.parametrize(
    ("fault", "says"),
    [(serving.nested, "no JSON but '\\[\\["), (serving.refused_in_depth, "status 400 \\(\\[\\[")],
)
def test_an_answer_that_is_nested_too_deeply_is_one_line(server, tmp_path, fault, says):
    with (
        running(Proxy(server.url, Faults(otherwise=fault))) as proxy,
        pytest.raises(EasdError, match=says) as error,
    ):
        evaluate(proxy.url, tmp_path / "run", retries=0)
    assert len(str(error.value)) < 600
    assert "\n" not in str(error.value)


def test_a_server_that_stays_broken_ends_the_run_and_a_better_one_goes_on(server, run, tmp_path):
    faults = Faults()
    with running(Proxy(server.url, faults)) as proxy:

        def break_at_3(progress):
            if progress.done == 3:
                faults.otherwise = serving.broken

        with pytest.raises(EasdError, match=r"item '.*' of lab-a as .* after 3 tries: status 500"):
            evaluate(proxy.url, tmp_path / "run", break_at_3, seeds=[0, 3], retries=2)
        stopped = open_run(tmp_path / "run")
        assert stopped.run["status"] == "failed"
        assert "status 500" in stopped.run["error"]
        assert len(rows(stopped)) == 30
        faults.otherwise = None
        resumed = []
        again, _ = evaluate(
            proxy.url, tmp_path / "run", lambda p: resumed.append(p.resumed), seeds=[0, 3]
        )
    assert resumed == [True] * 3 + [False] * 9
    assert rows(again) == rows(run)


def test_waits_are_as_long_as_the_server_asks_and_double_where_it_does_not(monkeypatch):
    monkeypatch.setattr(client, "FIRST_WAIT", 1.0)
    for attempt, most in ((0, 1), (1, 2), (2, 4), (10, 60)):
        waits = [client._backoff(attempt) for _ in range(100)]
        assert most / 2 <= min(waits) < max(waits) <= most
        assert len(set(waits)) > 50
    assert client._asked_wait("2.5") == 2.5
    in_a_minute = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 60))
    assert 55 < client._asked_wait(in_a_minute) <= 60
    assert client._asked_wait("soon") == client._asked_wait(None) == 0


def test_killed_at_any_moment_it_loses_and_repeats_nothing(run, tmp_path):
    with running(LabServer()) as other:
        arguments = [sys.executable, "-m", "easd", "eval", "--endpoint", other.url, "-q"]
        arguments += ["--task", "lab-a:30", "--set", "chunk=10", "--seed", "0", "--seed", "3"]
        arguments += [*(f"--system={name}" for name in SYSTEMS), "--concurrency", "4"]
        arguments += ["--out", str(tmp_path / "killed")]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        rng = random.Random(0)
        for sent in (signal.SIGKILL, signal.SIGINT):
            process = subprocess.Popen(arguments, env=environment, stderr=subprocess.PIPE)
            wait_for_units(tmp_path / "killed", more=2, process=process)
            time.sleep(rng.random() * 0.2)
            process.send_signal(sent)
            _, err = process.communicate(timeout=30)
            assert process.returncode != 0
            assert b"Traceback" not in err
        assert 0 < len(rows(open_run(tmp_path / "killed"))) < 120
        subprocess.run(arguments, env=environment, check=True, timeout=300)
        assert other.most_under_way <= 4
    assert rows(open_run(tmp_path / "killed")) == rows(run)


def wait_for_units(folder: Path, *, more: int, process: subprocess.Popen) -> None:
    """Returns when so many more units are there."""
    samples = folder / "samples"
    wanted = len(list(samples.glob("*.parquet"))) + more
    deadline = time.monotonic() + 120
    while len(list(samples.glob("*.parquet"))) < wanted:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline, "no progress"
        time.sleep(0.01)


def test_two_servers_are_one_paired_study_with_a_report(easd, server, tmp_path, monkeypatch):
    with running(LabServer(plain=True, key="secret")) as plain:
        monkeypatch.setenv("PLAIN_KEY", "secret")
        grid = {
            "endpoint": {"url": server.url, "concurrency": 8},
            "tasks": ["lab-a:60"],
            "systems": [
                {"name": "plain", "url": plain.url, "api_key_env": "PLAIN_KEY"},
                "easd:tau_h=0.2",
            ],
        }
        (tmp_path / "grid.yaml").write_text(json.dumps(grid))
        easd("eval", tmp_path / "grid.yaml", "--out", tmp_path / "run")
        assert all("speculative" not in request for _, request in plain.seen)
        assert len(plain.seen) == 60 + 1
    run = open_run(tmp_path / "run")
    assert "secret" not in (tmp_path / "run/run.json").read_text()
    assert run.run["systems"][0]["settings"]["url"] == plain.url
    easd("report", tmp_path / "run")
    page = (tmp_path / "run/report/report.md").read_text()
    assert "60 pairs" in page
    assert "easd:tau\\_h=0.2: " in page
    assert "8 requests under way" in page
    assert "Servers report no tokens and no entropies" in page
    assert "shared noise" not in page.lower()
    assert "has a gate" not in page
    systems = ("--system", "easd:tau_h=0.2", "--baseline", "plain")
    text, _ = easd("power", tmp_path / "run", *systems, "--difference", "5")
    assert "5 points" in text


def test_a_server_that_tells_nothing_can_be_reported_on(server, easd, tmp_path, monkeypatch):
    complete = LabServer.complete

    def silent(self, request, *, chat):
        return {"choices": complete(self, request, chat=chat)["choices"]}

    monkeypatch.setattr(LabServer, "complete", silent)
    evaluate(server.url, tmp_path / "run")
    monkeypatch.undo()
    easd("report", tmp_path / "run")
    page = (tmp_path / "run/report/report.md").read_text()
    assert "nan" not in page
    assert "half of them answered within" in page


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--model", "gpt"], "has no model 'gpt'; it has lab"),
        (["--system", "eads"], "'eads'"),
        (["--system", "easd:tau_g=1"], "'tau_g'"),
        (["--dialect", "french"], "'french' is not known; choose one of easd, vllm"),
        (["--dialect", "vllm", "--system", "easd"], "ignores the rule that a request names"),
        (["--dialect", "vllm", "--system", "draft"], "a server of their own|ignores the rule"),
        (["--concurrency", "0"], "concurrency = 0"),
        (["--concurrency", "65"], "more than chunk = 64"),
        (["--endpoint", "http://127.0.0.1:99999/v1"], "is not the address of an endpoint"),
        (["--set", "endpoint.timeout=soon"], "'soon' is not a number of seconds"),
        (["--set", "endpoint.tries=1"], "no field 'tries'"),
        (["--pair", "lab-a"], "'pair' cannot be set for an endpoint"),
        (["--api-key-env", "NO_SUCH_KEY"], "NO_SUCH_KEY holds no key"),
        (["--temperature", "-1"], "temperature = -1"),
    ],
)
def test_a_mistake_is_one_line(refused, server, tmp_path, arguments, says):
    out = tmp_path / "run"
    line = refused("eval", "--endpoint", server.url, "--task", "lab-a:5", "--out", out, *arguments)
    assert any(each in line for each in says.split("|"))
    assert not out.exists()


def test_servers_that_will_not_do_are_one_line(refused, server, tmp_path, monkeypatch):
    def line(url, *more):
        return refused("eval", "-q", "--endpoint", url, "--task", "lab-a:5", "--out", out, *more)

    out = tmp_path / "run"
    with running(LabServer(plain=True, key="right")) as locked:
        assert "status 401 (wrong key)" in line(locked.url)
        monkeypatch.setenv("KEY", "wrong")
        assert "status 401" in line(locked.url, "--api-key-env", "KEY")
        monkeypatch.setenv("KEY", "right")
        locked.models = ["a", "b"]
        assert "has 2 models (a, b); name one" in line(locked.url, "--api-key-env", "KEY")
        locked.models = ["lab"]
        ignored = line(locked.url, "--api-key-env", "KEY", "--system", "easd")
        assert "would decode all systems the same way" in ignored
        with_password = locked.url.replace("//", "//me:hush@")
        assert "hush" not in line(with_password)
    assert "ConnectError" in line(locked.url)
    assert "is not the address of an endpoint" in line("127.0.0.1:8000")
    assert not out.exists()


def test_a_run_of_another_endpoint_or_of_a_pair_is_refused(server, refused, tmp_path):
    before = rows(evaluate(server.url, tmp_path / "run", systems=["served"])[0])
    with running(LabServer()) as other:
        line = refused(
            *("eval", "--endpoint", other.url, "--task", "lab-a:30", "--set", "chunk=10"),
            *("--concurrency", "8", "--out", tmp_path / "run"),
        )
    assert "holds a run with endpoint = " in line
    line = refused(
        *("eval", "--pair", "lab-a", "--device", "cpu", "--task", "lab-a:30"),
        *("--set", "chunk=10", "--out", tmp_path / "run"),
    )
    assert "holds a run with pair = " in line
    assert rows(open_run(tmp_path / "run")) == before


def test_a_request_that_is_refused_names_the_item_and_keeps_what_is_there(
    server, tmp_path, monkeypatch
):
    complete = LabServer.complete
    prompt = load_task("lab-a", limit=30).items[25].prompt

    def too_long(self, request, *, chat):
        if request["prompt"] == prompt:
            raise EasdError("the prompt is too long")
        return complete(self, request, chat=chat)

    monkeypatch.setattr(LabServer, "complete", too_long)
    says = r"answers item 'lab-a/test/20/25' of lab-a as 'served' with status 400 \(the prompt is"
    with pytest.raises(EasdError, match=says):
        evaluate(server.url, tmp_path / "run", systems=["served"])
    assert len(rows(open_run(tmp_path / "run"))) == 20


def test_a_request_names_all_fields_of_its_rule_as_both_servers_read_them():
    asked = [*rule_names(), "easd:tau_h=1.2,tau_o=0.6", "easd:tau_h=.inf", "pool:a=1.4,b=0.5"]
    where = {"url": "http://somewhere:1", "model": "m", "dialect": "vllm"}
    study = EndpointStudy.from_dict({"endpoint": where, "tasks": ["lab-a:1"], "systems": asked})
    serving = Serving.parse({"tau_h": 0.3, "coupling": "maximal"})
    for name, system in zip(asked, study.systems, strict=True):
        meant = parse_rule(split_rule(name))
        assert system.rule.keys() == {"name", *field_names(type(meant))}
        body = json.loads(json.dumps(DIALECTS["easd"].body(system.rule)))["speculative"]
        assert parse_rule({"name": body.pop("rule"), **body}) == meant
        if meant.has_law and name not in ("target", "draft"):  # which vLLM decodes
            read = serving.rule_for(DIALECTS["vllm"].body(system.rule)["vllm_xargs"])
            assert read == (None if meant.lossless else meant)
    with pytest.raises(EasdError, match="is not understood"):
        serving.rule_for(DIALECTS["vllm"].wrong["vllm_xargs"])


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ({"choices": [{"message": {"content": None}}]}, ""),
        ({"choices": [{"message": {"content": "half \ud800"}}], "usage": None}, "half ?"),
        ({"choices": [{"message": {"content": 3}}]}, None),
        ({"choices": []}, None),
        (["choices"], None),
    ],
)
def test_odd_answers_are_read_or_tried_again(answer, text):
    if text is None:
        with pytest.raises((ValueError, KeyError, TypeError, IndexError)):
            read_answer(answer, chat=True)
    else:
        found = read_answer(answer, chat=True)
        assert found["text"] == text
        assert found["new_tokens"] is found["finish_reason"] is None
