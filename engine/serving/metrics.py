"""What a server counts, in the format that Prometheus reads. Each application has its own."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from segue.joining import Answer, Joiner

__all__ = ["Metrics"]

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Metrics:
    """Requests by path and status, the time they take, and what was computed for them."""

    def __init__(self, joiner: Joiner) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_OfJoiner(joiner))
        self._requests = self._counter("requests", "HTTP requests to these paths", ["path", "status"])
        self._pairs = self._counter("pairs", "Pairs scored")
        self._tokens = self._counter("tokens", "Tokens of the pairs scored, special ones counted")
        self._truncated = self._counter("truncated_pairs", "Pairs that were too long and lost tokens")
        self._seconds = self._histogram("request", "From a request to its answer", ["path"])
        self._waited = self._histogram("wait", "From a request to when its first pair is begun")
        self._computed = self._histogram("compute", "From a request's first pair to its last")

    def answered(self, path: str, status: int, seconds: float) -> None:
        """Count a request."""
        self._requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def scored(self, answer: Answer) -> None:
        """Count its pairs."""
        self._pairs.inc(len(answer.tokens))
        self._tokens.inc(int(answer.tokens.sum()))
        self._truncated.inc(int(answer.truncated.sum()))
        self._waited.observe(answer.waited)
        self._computed.observe(answer.computed)

    def text(self) -> bytes:
        """Return all of it as Prometheus reads it."""
        return generate_latest(self._registry)

    def _counter(self, name: str, says: str, labels: list[str] | None = None) -> Counter:
        return Counter(f"segue_{name}", says, labels or [], registry=self._registry)

    def _histogram(self, name: str, says: str, labels: list[str] | None = None) -> Histogram:
        return Histogram(
            f"segue_{name}_seconds", says, labels or [], buckets=_SECONDS, registry=self._registry
        )


class _OfJoiner(Collector):
    """What is read off the joiner when somebody asks."""

    def __init__(self, joiner: Joiner) -> None:
        self._joiner = joiner

    def collect(self) -> list[GaugeMetricFamily | CounterMetricFamily]:
        return [
            GaugeMetricFamily("segue_waiting_pairs", "Pairs asked for and not begun", self._joiner.waiting),
            CounterMetricFamily("segue_turns", "Calls of the engine", self._joiner.turns),
        ]
