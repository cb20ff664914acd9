"""Measurements that claims rest on; each is run with ``python -m benchmarks.<name>``."""
