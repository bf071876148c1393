"""Measures the agent beside the scripts that an engineer would write by hand."""
