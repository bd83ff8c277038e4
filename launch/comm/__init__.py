"""`scalade comm`: collectives alone, over torch and over MPI."""
