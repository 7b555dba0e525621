"""Artifacts: a network written as a file, and the proof that the file computes the same."""
