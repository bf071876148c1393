"""Steps before and after the model: one file each; `registry.py` lists them."""
