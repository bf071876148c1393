"""A runtime for models that are a list of steps in JSON: an example to copy from."""

__version__ = "1.0"
