"""Programs beside the gateway: the launcher, keys, the embedded store, the schema."""
