"""The command line: one function for each command, and its options."""
