"""The disk: packs, state, the spool, and the one layer of calls they all go through."""
