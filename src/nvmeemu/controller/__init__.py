"""One NVMe controller: registers, states, queues, the life of a command, events, interrupts."""
