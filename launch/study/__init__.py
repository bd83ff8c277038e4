"""What is to run: the study file read, expanded into cases and resolved. Starts no process, imports no torch."""
