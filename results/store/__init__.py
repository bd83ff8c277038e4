"""Rows on disk: run folders and packed parts, written whole, read although damaged."""
