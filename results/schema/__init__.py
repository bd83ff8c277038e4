"""Which columns there are, of which type, unit and version."""
