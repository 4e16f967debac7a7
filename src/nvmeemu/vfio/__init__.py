"""The PCI function over vfio-user: provides the ``Host``, ``Clock`` and ``Worker`` ports, drives a ``Function``.

    check(path)
    with Loop() as loop:
        host = PciHost()
        controller = Controller(host, loop, loop, ...)
        with Server(loop, host, controller, path, identity):  # and others, each with a host and a socket
            loop.run()

``server`` is the life of the socket and its clients, ``newcomers`` who is not one yet, ``loop`` the event loop,
``workers`` its threads, ``function`` what a client sees, ``pci`` the configuration space, ``memory`` the guest's
memory, ``binding`` the edge to libvfio-user.
"""

from nvmeemu.vfio.errors import BindingMissing, ServeError, SocketUnusable
from nvmeemu.vfio.function import Function, PciHost
from nvmeemu.vfio.loop import Loop
from nvmeemu.vfio.pci import PciIdentity
from nvmeemu.vfio.server import Server, check

__all__ = [
    "BindingMissing",
    "Function",
    "Loop",
    "PciHost",
    "PciIdentity",
    "ServeError",
    "Server",
    "SocketUnusable",
    "check",
]
