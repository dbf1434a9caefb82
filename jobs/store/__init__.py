"""The store: connections, names of keys, and the scripts."""
