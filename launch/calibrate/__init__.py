"""`scalade calibrate`: micro-benchmarks on this machine, and the profile that they give."""
