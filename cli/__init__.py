"""The command line: one function a command, its options, and nothing else."""
