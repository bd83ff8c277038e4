"""This machine, and what starts ranks on it: hosts, launchers, devices, sockets, signals."""
