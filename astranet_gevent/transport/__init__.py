"""The gevent side: the only place that reads or writes a socket."""

from ..builds import choose_build

choose_build(__path__)
