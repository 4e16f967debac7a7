"""nvmeemu: an NVMe controller in a process of its own, plugged into a guest over vfio-user."""

__version__ = "0.1.0"
