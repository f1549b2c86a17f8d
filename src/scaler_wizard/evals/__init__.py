"""Measurements: one file each; `measure.py` puts them together."""
