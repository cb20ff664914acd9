"""Deployment: a service brought up on a target, kept up, and replaced without a gap."""
