"""What a person calls a case."""

from __future__ import annotations

from ..schema.rows import AnyRow


def name_of(row: AnyRow) -> str:
    """What a person calls a case; case_id tells two of the same name apart."""
    return " ".join(str(row[part]) for part in ("study", "model", "layout") if row[part]) or str(row["case_id"])
