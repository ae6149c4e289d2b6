"""The metrics page: what Prometheus reads is what was counted."""

from __future__ import annotations

import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tierstore.errors import UsageError
from tierstore.serving.hub.stats import HubStats
from tierstore.serving.metrics import TierCollector, TierSample, serve
from tierstore.tiers.stats import TierStats


def test_a_page_has_every_counter() -> None:
    stats = TierStats()
    stats.count(hits=3, misses=1, hit_bytes=3 << 20, evicted=2)
    stats.record("get", 0.002, 100)
    stats.record("get", 45.0, failed=True)
    collector = TierCollector(
        lambda: [TierSample("redis", "shared", stats)], lambda: {"heat_flushes": 7}
    )
    server, thread = serve(collector, "127.0.0.1", 0)
    try:
        url = f"http://127.0.0.1:{server.server_port}/metrics"
        with urllib.request.urlopen(url, timeout=30) as answer:
            text = answer.read().decode()
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    found = {
        (sample.name, sample.labels.get("op"), sample.labels.get("le")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert found["tierstore_tier_hits_total", None, None] == 3
    assert found["tierstore_tier_misses_total", None, None] == 1
    assert found["tierstore_tier_hit_bytes_total", None, None] == 3 << 20
    assert found["tierstore_tier_breaker_open", None, None] == 0
    assert found["tierstore_tier_requests_total", "get", None] == 2
    assert found["tierstore_tier_request_errors_total", "get", None] == 1
    assert found["tierstore_tier_request_seconds_bucket", "get", "0.003"] == 1
    assert found["tierstore_tier_request_seconds_bucket", "get", "30.0"] == 1
    assert found["tierstore_tier_request_seconds_bucket", "get", "+Inf"] == 2
    assert found["tierstore_tier_request_seconds_sum", "get", None] == pytest.approx(45.002)
    assert found["tierstore_heat_flushes_total", None, None] == 7


def test_what_a_gateway_counts_says_what_it_is() -> None:
    stats = HubStats()
    stats.sent(1)
    stats.received(1)
    for status in (100, 200, 304, 404, 503):
        stats.answered(status)
    families = TierCollector(list, stats.totals).collect()
    texts = {family.name: family.documentation for family in families}
    assert texts["tierstore_hub_answers_5xx"] == "Answers of the gateway with a status of 5xx."
    assert {f"tierstore_{name}" for name in stats.totals()} <= texts.keys()


def test_an_address_that_is_taken_is_a_plain_error() -> None:
    collector = TierCollector(list)
    server, thread = serve(collector, "127.0.0.1", 0)
    try:
        with pytest.raises(UsageError, match="choose another address"):
            serve(collector, "127.0.0.1", server.server_port)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
