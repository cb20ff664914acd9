"""The targets' table: where a service stays up."""

from modelyard.spec.plugins import Plugin

BUILT_IN = {
    "local": Plugin(
        "modelyard.deployment.targets.local:Local", "supervised processes on this machine"
    ),
}
