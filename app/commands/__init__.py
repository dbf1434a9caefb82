"""Programs around the gateway: launcher, API keys, embedded store, OpenAPI document."""
