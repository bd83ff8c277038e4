"""`python -m scalade.results.schema`: schema.json and the columns of docs/reference/columns.md, written anew."""

from .schema import main

raise SystemExit(main())
