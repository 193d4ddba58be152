"""`shrink`: the fastest network that keeps a share of a metric, found by measurement."""
