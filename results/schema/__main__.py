"""`python -m scalade.results.schema`: schema.json and the columns of docs/table.md, written anew."""

from .schema import main

raise SystemExit(main())
