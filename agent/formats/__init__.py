"""Readers of model files: what a file says of itself, without loading it.

Pure and bounded: bytes in, a `ModelDescription` or `ModelRejected` out, whatever the bytes are.
"""
