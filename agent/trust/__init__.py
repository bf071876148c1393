"""Who vouches for a pack: OpenSSF Model Signing bundles, checked and made, with no file touched.

`verify.verify_bundle` is the way in on a device. `cryptography` is imported by the functions that
need it, so that importing this room costs a process nothing.
"""
