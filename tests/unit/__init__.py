"""Each part of the core by itself: no sockets, no waiting, reference models where behaviour is subtle."""
