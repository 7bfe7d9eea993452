"""What Prometheus can ask a server about itself."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_COUNTS = tuple(2**power for power in range(18))


class Metrics:
    """The figures of one server, all of whose names begin with ``bert_``."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

        def counter(name: str, told: str, *labels: str) -> Counter:
            return Counter(f"bert_{name}", told, labels, registry=self.registry)

        def gauge(name: str, told: str, *labels: str) -> Gauge:
            return Gauge(f"bert_{name}", told, labels, registry=self.registry)

        def histogram(
            name: str, told: str, *labels: str, buckets: tuple[float, ...] = _SECONDS
        ) -> Histogram:
            return Histogram(f"bert_{name}", told, labels, buckets=buckets, registry=self.registry)

        self.requests = counter("requests_total", "Requests answered.", "route", "status")
        self.request_seconds = histogram("request_seconds", "From request to answer.", "route")
        self.refused = counter("refused_total", "Answers that are errors, by type.", "type")
        self.in_flight = gauge("requests_in_flight", "Requests that are not answered yet.")
        self.dropped = counter("dropped_requests_total", "Requests whose client went.", "model")
        self.rows = counter("rows_total", "Rows answered.", "model")
        self.tokens = counter("tokens_total", "Tokens computed.", "model")
        self.row_tokens = histogram(
            "row_tokens", "Tokens of a row, in all its windows.", "model", buckets=_COUNTS
        )
        self.long_rows = counter(
            "long_rows_total", "Rows longer than the model takes, by what was done.", "model", "how"
        )
        self.encode_seconds = histogram("encode_seconds", "Texts to tokens, a request.", "model")
        self.queue_seconds = histogram("queue_seconds", "Wait of a request.", "model")
        self.batch_seconds = histogram("batch_seconds", "Computation of a batch.", "model")
        self.batch_tokens = histogram("batch_tokens", "Of a batch.", "model", buckets=_COUNTS)
        self.batch_requests = histogram(
            "batch_requests", "Requests in a batch.", "model", buckets=_COUNTS
        )
        self.queue_tokens = gauge("queue_tokens", "Admitted and not answered.", "model")
        self.queue_requests = gauge("queue_requests", "Admitted and not answered.", "model")
        self.failed_batches = counter(
            "failed_batches_total", "Batches that failed and were tried again in parts.", "model"
        )
        self.failed_rows = counter("failed_rows_total", "Rows that failed on their own.", "model")
        self.nonfinite = counter(
            "nonfinite_outputs_total", "Answers that were not finite numbers.", "model"
        )
        self.ready = gauge("model_ready", "Whether a forward pass succeeded recently.", "model")

    def text(self) -> bytes:
        """All of it, in the format of Prometheus."""
        return generate_latest(self.registry)
