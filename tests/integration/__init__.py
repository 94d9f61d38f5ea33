"""Nodes over real parts, several at a time: sockets, pipes, processes, and the shipped test kit."""
