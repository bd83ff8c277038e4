"""The regression gate: one table held against another, and the history of tables."""
