"""Serving: one data plane that validates, batches, infers and records; protocols only translate."""
