"""`scalade check`: the rules that an honest table keeps."""

from .command import CheckReport, check

__all__ = ["CheckReport", "check"]
