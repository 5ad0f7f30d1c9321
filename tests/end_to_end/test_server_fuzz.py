"""Requests made from the server's own OpenAPI description: none ends in a 5xx, none hangs."""

import time

import pytest
import schemathesis
from http_server import lab_server
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import CHECKS

HELD = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
)
SECONDS = 120.0  # Longest that one answer may take; 128 texts on a busy machine are slow.


@pytest.fixture(scope="module")
def server():
    with lab_server() as running:
        yield running


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/easd/decode"])
@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode), ids=str)
def test_no_request_breaks_the_server(server, path, mode):
    schema = schemathesis.openapi.from_url(server.url + "/openapi.json")
    operation = schema[path]["POST"]
    statuses = set()

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(
        max_examples=100,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
        deadline=None,
    )
    def run(case):
        begun = time.monotonic()
        response = case.call(timeout=SECONDS)
        assert time.monotonic() - begun < SECONDS
        case.validate_response(
            response,
            checks=[CHECKS.get_one(name) for name in HELD],
        )
        statuses.add(response.status_code)

    run()
    assert statuses >= ({200} if mode is schemathesis.GenerationMode.POSITIVE else {400})
    assert server.complete(seed=1, temperature=0).status_code == 200
