"""Measures speed: without a VM (``python -m bench``, which scripts/bench.sh starts) and in a guest."""
