"""The sans-IO core: frames, windows, streams, links, services and routes. Standard library only; no socket, clock or dice."""

from ..builds import choose_build

choose_build(__path__)
