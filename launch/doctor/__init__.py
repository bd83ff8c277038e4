"""`scalade doctor`: whether this machine can do what studies ask of it."""
