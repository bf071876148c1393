"""The documents Edgeward reads and writes: frozen typed values with strict, bounded decoding."""
