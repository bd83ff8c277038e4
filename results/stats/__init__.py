"""Statistics of small samples: ranks, drift, many tests at once."""
