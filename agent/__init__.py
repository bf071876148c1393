"""Edgeward: delivers, runs and watches machine-learning models on small devices."""

__version__ = "0.1.0"
