"""Stands for the service manager: prints what a service says on the socket at this path."""

import socket
import sys

with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
    manager.bind(sys.argv[1])
    while True:
        print(manager.recv(65536).decode(), flush=True)
