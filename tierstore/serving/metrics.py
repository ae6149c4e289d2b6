"""Metrics of the tiers for Prometheus; needs the extra ``tierstore[metrics]``.

Counters are only collected when a page is asked for, so reads of weights pay nothing for them.

::

    tierstore_tier_hits_total{tier,role}              reads that found their chunk or pack here
    tierstore_tier_misses_total{tier,role}
    tierstore_tier_hit_bytes_total{tier,role}
    tierstore_tier_admitted_total, _admitted_bytes_total, _evicted_total, _evicted_bytes_total
    tierstore_tier_rejected_total{tier,role}          offers that were not taken
    tierstore_tier_damaged_total{tier,role}           what proved wrong, when read or when verified
    tierstore_tier_scrubbed_bytes_total{tier,role}    what was verified in the background
    tierstore_tier_requests_total{tier,role,op}       also _request_errors_, _request_bytes_
    tierstore_tier_request_seconds{tier,role,op}      histogram
    tierstore_tier_breaker_open{tier,role}            1 while the tier is skipped
    tierstore_tier_breaker_opened_total{tier,role}
    tierstore_retention_blocked_models                by the agent's last look at the rules
    tierstore_<name>_total                            other totals: moves, heat flushes
    tierstore_follow_staleness_seconds{ref}           also _load_seconds, _version, _failing and
                                                      _silent_seconds: since the last good look
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tierstore.errors import ConfigError, UsageError
from tierstore.tiers.stats import LATENCY_BOUNDS_S, OpStats, TierStats

try:
    from prometheus_client import (
        CONTENT_TYPE_LATEST,
        CollectorRegistry,
        generate_latest,
        start_http_server,
    )
    from prometheus_client.core import (
        CounterMetricFamily,
        GaugeMetricFamily,
        HistogramMetricFamily,
        Metric,
    )
    from prometheus_client.registry import Collector
except ImportError as error:
    raise ConfigError("metrics need prometheus-client: pip install 'tierstore[metrics]'") from error

if TYPE_CHECKING:
    from threading import Thread
    from wsgiref.simple_server import WSGIServer

    from tierstore.modelstore.store import Store

_COUNTERS = {
    "hits": "Reads that found their chunk or pack in the tier.",
    "misses": "Reads that did not find their chunk or pack in the tier.",
    "hit_bytes": "Bytes of the hits.",
    "admitted": "Chunks or packs taken in.",
    "admitted_bytes": "Bytes taken in.",
    "evicted": "Chunks or packs put out.",
    "evicted_bytes": "Bytes put out.",
    "rejected": "Offers that were not taken: by policy, a full queue or a failure.",
    "damaged": "Chunks or packs whose bytes were wrong in the tier, when read or when verified.",
    "scrubbed_bytes": "Bytes that were verified in the background.",
    "breaker_opened": "How often the breaker began to skip the tier.",
}
_TOTALS = {
    "agent_rounds": "Rounds that the agent began.",
    "agent_rounds_failed": "Rounds that an error ended early; the log says which.",
    "agent_rounds_refused": "Rounds that moved nothing, as another process was at it.",
    "damaged_copies": "Copies of packs that were damaged when they were to be moved.",
    "dropped_bytes": "Bytes of packs that moves deleted where they came from.",
    "folded": "Versions on many patches that were stored as full chunks.",
    "follow_swaps": "Versions that this node's followers took over.",
    "gc_deleted_packs": "Packs that collections of garbage deleted.",
    "gc_freed_bytes": "Their bytes, in all tiers together.",
    "gc_runs": "Collections of garbage that came to their end.",
    "gc_runs_failed": "Collections that an error ended, such as a lost version; the log says it.",
    "heat_flush_failures": "Times that counts of reads could not be shared with other nodes.",
    "heat_flushes": "Times that counts of reads were shared with other nodes.",
    "heat_keys": "Counts of single chunks and packs that were shared.",
    "hub_answers_1xx": "Answers of the gateway with a status of 1xx.",
    "hub_answers_2xx": "Answers of the gateway with a status of 2xx.",
    "hub_answers_3xx": "Answers of the gateway with a status of 3xx.",
    "hub_answers_4xx": "Answers of the gateway with a status of 4xx.",
    "hub_answers_5xx": "Answers of the gateway with a status of 5xx.",
    "hub_received_bytes": "Bytes of files that the gateway received.",
    "hub_requests": "Requests that the gateway answered.",
    "hub_sent_bytes": "Bytes of files that the gateway sent.",
    "moved_bytes": "Bytes of packs that moves wrote to other tiers.",
    "moves": "Packs that were moved to another tier, or dropped from one of several.",
    "moves_failed": "Moves that failed; the log says why.",
    "moves_skipped": "Moves that were not wanted or not possible any more.",
    "rebased": "Versions of which costly deltas were stored as standalone chunks.",
    "removed_versions": "Versions that rules of retention removed.",
    "rewritten_bytes": "Bytes that were stored to rebase and to fold.",
    "rollout_steps": "Steps of rollouts that were made.",
    "scrub_damaged": "Copies of packs that were damaged when they were verified.",
    "scrub_healed": "Damaged copies that got the bytes of a good one.",
    "scrub_quarantined": "Packs of which no tier had a good copy.",
    "scrubbed_bytes": "Bytes of the copies that were verified.",
    "scrubbed_copies": "Copies of packs that were verified.",
}
_LABELS = ("tier", "role")
_OP_LABELS = (*_LABELS, "op")


@dataclass(frozen=True, slots=True)
class TierSample:
    """One tier of a process: its name, its role and its counters, which are live."""

    name: str
    role: str
    stats: TierStats


def samples(store: Store) -> list[TierSample]:
    """Return the tiers of an open store, the fastest first."""
    durable = [TierSample(t.name, t.role, t.stats) for t in store._parts.home.packs.tiers]
    shared = [TierSample(t.name, "shared", t.stats) for t in store._parts.hot.shared]
    local = store._parts.hot.local
    own = [] if local is None else [TierSample(local.name, "hot", local.stats)]
    return [*own, *shared, *durable]


def page_of(collector: TierCollector) -> tuple[bytes, str]:
    """Return a page of metrics and its content type, to serve it yourself."""
    return generate_latest(registry_of(collector)), CONTENT_TYPE_LATEST


@dataclass(frozen=True, slots=True)
class Gauge:
    """A gauge, shown as ``tierstore_<name>`` with its labels."""

    name: str
    text: str
    labels: Mapping[str, str]
    value: float


class TierCollector(Collector):
    """Gives Prometheus the counters of all tiers of a process.

    Args:
        tiers: Function that returns the tiers, called for every page.
        counters: Function that returns other totals by name, such as ``moves``; each has its text
            in ``_TOTALS``.
        gauges: Function that returns other gauges.
    """

    def __init__(
        self,
        tiers: Callable[[], Iterable[TierSample]],
        counters: Callable[[], Mapping[str, float]] = dict,
        gauges: Callable[[], Iterable[Gauge]] = list,
    ) -> None:
        self._tiers, self._counters, self._gauges = tiers, counters, gauges

    def collect(self) -> Iterator[Metric]:
        """Yield all families with their current values."""
        tiers = list(self._tiers())
        for name, text in _COUNTERS.items():
            family = CounterMetricFamily(f"tierstore_tier_{name}", text, labels=_LABELS)
            for tier in tiers:
                family.add_metric([tier.name, tier.role], getattr(tier.stats, name))
            yield family
        breaker = GaugeMetricFamily(
            "tierstore_tier_breaker_open", "1 while the tier is skipped.", labels=_LABELS
        )
        for tier in tiers:
            breaker.add_metric([tier.name, tier.role], tier.stats.breaker_open)
        yield breaker
        yield from _requests(tiers)
        for name, value in sorted(self._counters().items()):
            yield CounterMetricFamily(f"tierstore_{name}", _TOTALS[name], value=value)
        families: dict[str, GaugeMetricFamily] = {}
        for gauge in self._gauges():
            found = families.setdefault(
                gauge.name,
                GaugeMetricFamily(f"tierstore_{gauge.name}", gauge.text, labels=[*gauge.labels]),
            )
            found.add_metric([*gauge.labels.values()], gauge.value)
        yield from families.values()


def _requests(tiers: list[TierSample]) -> Iterator[Metric]:
    calls = CounterMetricFamily("tierstore_tier_requests", "Requests.", labels=_OP_LABELS)
    errors = CounterMetricFamily(
        "tierstore_tier_request_errors", "Requests that failed.", labels=_OP_LABELS
    )
    volume = CounterMetricFamily(
        "tierstore_tier_request_bytes", "Bytes moved by requests.", labels=_OP_LABELS
    )
    seconds = HistogramMetricFamily(
        "tierstore_tier_request_seconds", "Time of a request.", labels=_OP_LABELS
    )
    for tier in tiers:
        for op, stats in sorted(tier.stats.ops.items()):
            labels = [tier.name, tier.role, op]
            calls.add_metric(labels, stats.calls)
            errors.add_metric(labels, stats.errors)
            volume.add_metric(labels, stats.bytes)
            seconds.add_metric(labels, _buckets(stats), sum_value=stats.seconds)
    yield from (calls, errors, volume, seconds)


def _buckets(stats: OpStats) -> list[tuple[str, float]]:
    """Return cumulative counts by upper bound, as Prometheus expects them."""
    total = 0
    found = []
    for bound, count in zip((*LATENCY_BOUNDS_S, float("inf")), list(stats.buckets), strict=True):
        total += count
        found.append(("+Inf" if bound == float("inf") else repr(bound), float(total)))
    return found


def registry_of(collector: TierCollector) -> CollectorRegistry:
    """Make a registry for this collector alone, apart from the metrics of other libraries."""
    registry = CollectorRegistry()
    registry.register(collector)
    return registry


def serve(collector: TierCollector, host: str, port: int) -> tuple[WSGIServer, Thread]:
    """Serve ``http://host:port/metrics`` from a thread; port 0 takes a free one.

    Raises:
        UsageError: The address is taken or is not one of this machine.
    """
    try:
        return start_http_server(port, addr=host, registry=registry_of(collector))
    except OSError as error:
        raise UsageError(
            f"metrics cannot be served on {host}:{port}: {error.strerror or error}; choose another "
            "address"
        ) from None
