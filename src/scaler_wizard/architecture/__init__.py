"""A model's facts from config.json and safetensors headers: checked before any weight is read; no code is ever run."""

from __future__ import annotations

from scaler_wizard.architecture.blueprint import Blueprint, Place
from scaler_wizard.architecture.families import FAMILIES, Axis, Family, Role, Row, Segment
from scaler_wizard.architecture.header import ITEM_BYTES, Tensor, read_header
from scaler_wizard.architecture.read import Architecture, read_architecture

__all__ = [
    "FAMILIES",
    "ITEM_BYTES",
    "Architecture",
    "Axis",
    "Blueprint",
    "Family",
    "Place",
    "Role",
    "Row",
    "Segment",
    "Tensor",
    "read_architecture",
    "read_header",
]
