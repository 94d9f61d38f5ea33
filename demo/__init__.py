"""The demonstration: a site of real files, a router and a client, each a process of its own."""
