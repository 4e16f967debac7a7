"""How fast is it, measured without a VM (``python -m bench``, by way of scripts/bench.sh) and in a guest."""
