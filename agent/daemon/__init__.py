"""The one long-lived process on a device: link, bus, control, supervision. It parses no payload."""
