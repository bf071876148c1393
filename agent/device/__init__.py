"""Probes of the machine the agent runs on."""
