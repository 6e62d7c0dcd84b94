"""What a role shows on its port, as Prometheus and a load balancer read it."""

import urllib.error
import urllib.request

from prometheus_client import Counter, Gauge, Histogram, Metric
from prometheus_client.parser import text_string_to_metric_families


def ask(port: int, path: str) -> tuple[int, str]:
    """Status and body."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def read_page(port: int) -> dict[str, Metric]:
    """Metrics by name; counters without their _total, as the parser gives them."""
    return {metric.name: metric for metric in text_string_to_metric_families(ask(port, "/metrics")[1])}


def value(page: dict[str, Metric], collector: Counter | Gauge | Histogram, **labels: str) -> float:
    """The sum of a metric's samples with these labels: the value of counters and gauges, the count of histograms."""
    name = next(iter(collector.describe())).name
    samples = page[name].samples if name in page else []
    wanted = (name, f"{name}_total", f"{name}_count")
    return sum(s.value for s in samples if s.name in wanted and labels.items() <= s.labels.items())
