"""The page as a file: what it embeds, and what its policy allows."""

import base64
import hashlib
import json
import re
import subprocess
import sys
from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from traces import traced

from easd.config import RunConfig
from easd.errors import TraceError
from easd.inspect.page import content_security_policy, data, live_page, write_page
from easd.pairs.lab import problems
from easd.pairs.loading import load_pair
from easd.runs import summary
from easd.runs.schema import TOKENS


@pytest.fixture(scope="module")
def trace(tmp_path_factory):
    pair = load_pair("lab")
    config = RunConfig.from_dict({"pair": "lab", "seed": 1})
    folder = tmp_path_factory.mktemp("page") / "run"
    prompts = [problem.prompt for problem in problems("lab-a", 3, seed=0)]
    return traced(pair, config, folder, prompts)[1]


def written(*traces, path, **options):
    write_page(traces, path, **options)
    return path.read_text(encoding="utf-8")


def embedded(page):
    return json.loads(re.search(r'<script type="application/json"[^>]*>(.*?)</script>', page)[1])


def test_the_page_holds_the_trace(trace, tmp_path):
    (run,) = embedded(written(trace, path=tmp_path / "page.html"))["runs"]
    assert run["run"] == trace.run
    assert run["summary"] == summary(trace)
    assert [text["text"] for text in run["texts"]] == trace.samples.sort_by("sample")[
        "text"
    ].to_pylist()
    recorded = trace.tokens.filter(pc.field("sample") == 1)
    columns = run["texts"][1]["tokens"]
    assert set(columns) == set(TOKENS.names) - {"run", "sample", "request"}
    for name, values in columns.items():
        kind = pa.string() if name == "outcome" else TOKENS.field(name).type
        assert pa.array(values, kind).to_pylist() == recorded[name].to_pylist()
    words = dict(run["vocabulary"])
    assert {token for row in columns["target_top_tokens"] for token in row} <= set(words)


def test_no_text_ends_the_element_it_stands_in(trace, tmp_path):
    run = {**trace.run, "models": {**trace.run["models"], "pair": "</script><b>\u202e$data"}}
    page = written(replace(trace, run=run), path=tmp_path / "page.html")
    assert "</script><b>" not in page
    assert "\u202e" not in page
    assert embedded(page)["runs"][0]["run"]["models"]["pair"] == "</script><b>\u202e$data"


def test_the_policy_names_the_pages_own_code():
    page, policy = live_page(), content_security_policy()
    for kind, code in (
        ("style", re.search(r"<style>(.*?)</style>", page, re.DOTALL)[1]),
        ("script", re.search(r'<script type="module">(.*?)</script>', page, re.DOTALL)[1]),
    ):
        digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert "connect-src 'self'" in policy
    assert "unsafe" not in policy


def test_a_file_may_ask_nobody(trace, tmp_path):
    page = written(trace, path=tmp_path / "page.html")
    assert "connect-src 'none'" in page
    links = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert all(link.startswith(("data:", "#")) for link in links)


def test_one_text_can_be_chosen(trace, tmp_path):
    (run,) = embedded(written(trace, path=tmp_path / "page.html", sample=2))["runs"]
    assert [text["sample"] for text in run["texts"]] == [2]
    assert run["texts_in_run"] == 3
    with pytest.raises(TraceError, match="no text 3; it has 0 to 2"):
        write_page([trace], tmp_path / "page.html", sample=3)


def test_as_many_texts_as_fit(trace, tmp_path, monkeypatch):
    rows = [sum(sample == i for sample in trace.tokens["sample"].to_pylist()) for i in range(3)]
    for limit, shown in ((1, 1), (rows[0] + rows[1], 2), (sum(rows) - 1, 2), (sum(rows), 3)):
        monkeypatch.setattr(data, "MOST_ROWS", limit)
        (run,) = embedded(written(trace, path=tmp_path / "page.html"))["runs"]
        assert len(run["texts"]) == shown


def test_what_cannot_be_written_is_told(trace, tmp_path):
    with pytest.raises(TraceError, match="name another file"):
        write_page([trace], tmp_path / "missing" / "page.html")
    empty = replace(trace, tokens=trace.tokens.slice(0, 0), samples=trace.samples.slice(0, 0))
    with pytest.raises(TraceError, match="no text yet"):
        write_page([empty], tmp_path / "page.html")


def test_the_command_writes_pages_and_refuses_to_mix(trace, tmp_path):
    def inspect(*arguments):
        command = [sys.executable, "-m", "easd", "inspect", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True)

    path = tmp_path / "page.html"
    assert inspect(trace.folder, trace.folder, "--html", path).returncode == 0
    assert len(embedded(path.read_text(encoding="utf-8"))["runs"]) == 2
    refused = inspect(trace.folder, trace.folder)
    assert refused.returncode == 2
    assert "compare with --html" in refused.stderr
