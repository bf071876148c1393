"""Bytes of every protocol Edgeward speaks: pure codecs and state machines, no I/O and no clock."""
