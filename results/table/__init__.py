"""The table as people and programs use it: read, filtered, shown, recorded."""
