"""The laws, one class a file; each opens with its equation and its source."""
