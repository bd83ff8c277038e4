"""`scalade verify`: layouts held against one rank."""
