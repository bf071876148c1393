"""From a payload to the arrays of a model and back: pure NumPy, compiled once per model."""
