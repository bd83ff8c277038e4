"""Which run comes next, in which order, and which supervisor does it."""
