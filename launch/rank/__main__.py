"""`python -m scalade.launch.rank spec.json`: one rank of a run."""

from .main import main

main()
