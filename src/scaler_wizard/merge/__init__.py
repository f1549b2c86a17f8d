"""Merge methods: how several models become one. One family of methods, one file; a table row each; no torch.

`merge_program` makes the checkpoint program that writes the merged model in one streaming pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field

from scaler_wizard.merge.breadcrumbs import Breadcrumbs, BreadcrumbsTies
from scaler_wizard.merge.dare import DareLinear, DareTies
from scaler_wizard.merge.della import Della, DellaLinear
from scaler_wizard.merge.fusion import ArceeFusion
from scaler_wizard.merge.karcher import Karcher
from scaler_wizard.merge.linear import Linear
from scaler_wizard.merge.method import MergedModel, Method, Tensors, WeightedModel
from scaler_wizard.merge.nearswap import NearSwap
from scaler_wizard.merge.passthrough import Passthrough, Slice
from scaler_wizard.merge.program import Parent, merge_program
from scaler_wizard.merge.ram import Ram, RamPlus
from scaler_wizard.merge.sce import Sce
from scaler_wizard.merge.slerp import MultiSlerp, NuSlerp, Slerp
from scaler_wizard.merge.spectral import IsoC, TsvMerge
from scaler_wizard.merge.stock import ModelStock
from scaler_wizard.merge.task import TaskArithmetic
from scaler_wizard.merge.ties import Ties

METHODS: Mapping[str, type[Method]] = {
    "linear": Linear,
    "slerp": Slerp,
    "nuslerp": NuSlerp,
    "multislerp": MultiSlerp,
    "karcher": Karcher,
    "nearswap": NearSwap,
    "arcee_fusion": ArceeFusion,
    "task_arithmetic": TaskArithmetic,
    "ties": Ties,
    "dare_linear": DareLinear,
    "dare_ties": DareTies,
    "della_linear": DellaLinear,
    "della": Della,
    "breadcrumbs": Breadcrumbs,
    "breadcrumbs_ties": BreadcrumbsTies,
    "model_stock": ModelStock,
    "sce": Sce,
    "ram": Ram,
    "ramplus_tl": RamPlus,
    "tsv": TsvMerge,
    "iso_c": IsoC,
    "passthrough": Passthrough,
}
"""Every method by the name that a recipe uses."""

AnyMethod = Annotated[
    Linear
    | Slerp
    | NuSlerp
    | MultiSlerp
    | Karcher
    | NearSwap
    | ArceeFusion
    | TaskArithmetic
    | Ties
    | DareLinear
    | DareTies
    | DellaLinear
    | Della
    | Breadcrumbs
    | BreadcrumbsTies
    | ModelStock
    | Sce
    | Ram
    | RamPlus
    | TsvMerge
    | IsoC
    | Passthrough,
    Field(discriminator="method"),
]
"""Any method, as a field of a record."""

__all__ = [
    "METHODS",
    "AnyMethod",
    "ArceeFusion",
    "Breadcrumbs",
    "BreadcrumbsTies",
    "DareLinear",
    "DareTies",
    "Della",
    "DellaLinear",
    "IsoC",
    "Karcher",
    "Linear",
    "MergedModel",
    "Method",
    "ModelStock",
    "MultiSlerp",
    "NearSwap",
    "NuSlerp",
    "Parent",
    "Passthrough",
    "Ram",
    "RamPlus",
    "Sce",
    "Slerp",
    "Slice",
    "TaskArithmetic",
    "Tensors",
    "Ties",
    "TsvMerge",
    "WeightedModel",
    "merge_program",
]
