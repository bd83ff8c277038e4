"""The key-value store in which the supervisors and ranks of a run meet, and the secret that opens it."""
