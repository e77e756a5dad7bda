"""Publishing of weights: model cards, checksums, results. For maintainers; no user needs it."""
