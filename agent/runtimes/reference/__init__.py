"""A few ONNX operators in plain NumPy: trees, linear models, small networks.

For boards for which no inference library has a wheel, and to settle disputes between libraries:
what is computed here in floating point is computed in 64 bits and rounded once, save the sums of
trees, which decide on labels and so are added up as ONNX Runtime adds them.
"""
