"""Dialects: what differs between the clouds, as data and small pure state machines."""
