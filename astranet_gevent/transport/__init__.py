"""The gevent side: the only place that reads or writes a socket."""
