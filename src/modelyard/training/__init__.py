"""Training: one loop for every framework, run by N workers, that cannot lose its work."""
