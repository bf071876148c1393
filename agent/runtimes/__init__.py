"""Adapters over inference libraries: one file each, and they end at tensors."""
