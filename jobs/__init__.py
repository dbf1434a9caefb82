"""The job record: store, queue, accounts, fleet and events. Knows no HTTP and no tensor."""
