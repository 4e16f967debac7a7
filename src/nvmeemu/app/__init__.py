"""What users start: the command line, the server, the runner of a VM, the control socket, the logs."""
