"""`scalade check`: the rules that an honest table keeps."""
