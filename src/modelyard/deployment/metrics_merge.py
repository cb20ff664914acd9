"""The metrics of all replicas as one page: each sample keeps its name and says which replica it is from."""

from collections.abc import Iterable, Mapping

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample


class _Fixed(Collector):
    """Families that are already there."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = list(families)

    def collect(self) -> Iterable[Metric]:
        return self._families


def merge_metrics(pages: Mapping[str, str]) -> tuple[bytes, list[str]]:
    """Replica name -> its ``/metrics`` text, to one text with the label ``replica`` on each sample.

    Each family's HELP and TYPE stands once. A page that cannot be parsed is left out whole, so that
    half a page never looks like a replica with less to say; the second value names those replicas.
    """
    merged: dict[tuple[str, str], Metric] = {}
    unreadable = []
    for replica, text in pages.items():
        try:
            families = list(text_string_to_metric_families(text))
        except ValueError:
            unreadable.append(replica)
            continue
        for family in families:
            target = merged.setdefault(
                (family.name, family.type), Metric(family.name, family.documentation, family.type)
            )
            target.samples.extend(_labelled(sample, replica) for sample in family.samples)
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Fixed(merged.values()))
    return generate_latest(registry), unreadable


def _labelled(sample: Sample, replica: str) -> Sample:
    return sample._replace(labels={**sample.labels, "replica": replica})
