"""The gateway against what its own OpenAPI allows, and what it does not (schemathesis)."""

from __future__ import annotations

import json
import urllib.request
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.integration.test_hub_hostile import SECRET, running
from tests.servers.hub import Gateway

__all__ = ["running"]

pytestmark = pytest.mark.server

EXAMPLES = 6
KNOWN = {
    "repo": ["m", "org/big", "hidden", "w", "..", "m/../hidden"],
    "rev": ["main", "1", "+", "../main"],
    "path": ["model.safetensors", "secret.txt", "../hidden/secret.txt"],
}


def description(gateway: Gateway) -> dict[str, Any]:
    with urllib.request.urlopen(f"{gateway.url}/openapi.json", timeout=30) as answer:
        found: dict[str, Any] = json.load(answer)
    return found


def test_it_does_what_it_says(running: Gateway) -> None:
    found = description(running)
    for item in found["paths"].values():
        for operation in item.values():
            for one in operation["parameters"]:
                if one["name"] in KNOWN:
                    one["schema"] = {"anyOf": [{"enum": KNOWN[one["name"]]}, one["schema"]]}
    commit = found["paths"]["/api/models/{repo}/commit/{rev}"]["post"]["requestBody"]["content"]
    commit["application/octet-stream"] = commit.pop("application/x-ndjson")  # any bytes at all
    schema = schemathesis.openapi.from_dict(found)
    checks = [
        not_a_server_error, status_code_conformance, content_type_conformance,
        response_schema_conformance,
    ]  # fmt: skip
    tried = 0
    with requests.Session() as session:
        for result in schema.get_all_operations():
            assert isinstance(result, Ok)
            operation = result.ok()

            @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
            @given(case=operation.as_strategy())
            def ask(case: Any) -> None:
                answer = case.call(base_url=running.url, session=session)
                assert SECRET not in answer.content, case.as_curl_command()
                case.validate_response(answer, checks=checks)

            ask()
            tried += 1
    assert tried == sum(len(item) for item in found["paths"].values())


def test_every_route_is_described(running: Gateway) -> None:
    found = description(running)
    named = {
        operation["operationId"] for item in found["paths"].values() for operation in item.values()
    }
    assert {"get /healthz", "get /{repo:repo}/resolve/{rev}/{path:path}"} <= named
    for item in found["paths"].values():
        for method, operation in item.items():
            assert operation["summary"]
            if method in {"post", "put"} and "objects/{oid}" not in operation["operationId"]:
                assert "requestBody" in operation, operation["operationId"]
