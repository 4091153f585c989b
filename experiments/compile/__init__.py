"""Compiles the papers' own programs for accelerators that are not there."""
