"""The engines' table: where a job runs to its end."""

from modelyard.spec.plugins import Plugin

BUILT_IN = {
    "local": Plugin("modelyard.engines.local:Local", "processes on this machine"),
}
