"""MQTT 3.1.1 and 5 for a client, without I/O: bytes and time in, events and bytes out."""
