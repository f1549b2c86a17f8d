"""Scaler Wizard grows a small open language model: more parameters and a longer context, measured and reversible."""

__version__ = "0.1.0"
