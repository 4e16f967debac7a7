"""Linux guests under QEMU with an nvmeemu drive: what the pytest plugin needs of them.

It knows nothing of the controller: it starts `nvmeemu serve` as any user does.
"""
