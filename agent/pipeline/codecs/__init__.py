"""Payload codecs: one file each; `registry.py` lists them."""
