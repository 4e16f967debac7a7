"""The port of an engine that serves ordinary commands of I/O queues, and the one in C."""
