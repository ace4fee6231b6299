"""Reports and probes: how a fitted model behaves beyond its accuracy."""

from skclip.evaluation._association import ConceptAssociationProbe, compose_pairs
from skclip.evaluation._ood_benchmark import ood_benchmark, ood_table
from skclip.evaluation._robustness_line import RobustnessLine
from skclip.evaluation._robustness_report import RobustnessReport
from skclip.evaluation._temperature import fit_temperature

__all__ = [
    "ConceptAssociationProbe",
    "RobustnessLine",
    "RobustnessReport",
    "compose_pairs",
    "fit_temperature",
    "ood_benchmark",
    "ood_table",
]
