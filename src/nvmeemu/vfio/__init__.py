"""The PCI function over vfio-user: provides the ``Host``, ``Clock`` and ``Worker`` ports, drives a ``Function``.

``loop`` is the event loop, ``server`` the life of the socket and its clients, ``binding`` the edge to libvfio-user,
``memory`` the guest's memory, ``pci`` the configuration space.

    with Loop() as loop, Server(loop, path, identity) as server:
        controller = Controller(server.host, loop, loop, ...)
        server.listen(controller)
        server.run()
"""
