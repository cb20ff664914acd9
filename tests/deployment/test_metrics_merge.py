"""Merging the replicas' metrics."""

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from modelyard.deployment.metrics_merge import merge_metrics

label = st.text(min_size=0, max_size=12)


def page(requests: float, seconds: float, text: str) -> str:
    registry = CollectorRegistry()
    Counter("requests", "Of \\ all\nkinds.", ["path"], registry=registry).labels(text).inc(requests)
    Gauge("depth", "", registry=registry).set(seconds)
    Histogram("seconds", "How long.", registry=registry, buckets=(0.1, 1)).observe(seconds)
    return generate_latest(registry).decode()


def samples(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


@given(st.lists(st.tuples(st.floats(0, 1e9), st.floats(0, 100), label), min_size=1, max_size=4))
def test_every_sample_is_kept_and_says_where_it_is_from(
    replicas: list[tuple[float, float, str]],
) -> None:
    pages = {str(number): page(*values) for number, values in enumerate(replicas)}
    page_bytes, unreadable = merge_metrics(pages)
    expected = {
        (name, tuple(sorted((*labels, ("replica", replica))))): value
        for replica, text in pages.items()
        for (name, labels), value in samples(text).items()
    }
    merged = page_bytes.decode()
    assert samples(merged) == expected and unreadable == []
    for line in ("# TYPE requests_total counter", "# TYPE seconds histogram", "# HELP depth"):
        assert merged.count(line) == 1


def test_a_page_that_is_no_metrics_is_left_out_and_named() -> None:
    merged, unreadable = merge_metrics({"0": "<html>busy</html>", "1": page(1, 2, "a")})
    assert b'replica="0"' not in merged
    assert b'replica="1"' in merged
    assert unreadable == ["0"]


def test_no_replica_gives_an_empty_page() -> None:
    assert merge_metrics({}) == (b"", [])
