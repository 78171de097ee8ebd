"""Weights out, one file a target format."""
