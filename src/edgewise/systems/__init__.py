"""The published systems that `edgewise reproduce` runs, by name."""

from edgewise.systems.base import ABSTRACT, Arm, Published, System
from edgewise.systems.channels import CHANNELS
from edgewise.systems.convnext import CONVNEXT, Study
from edgewise.systems.tasks import TASKS
from edgewise.systems.weights import WEIGHTS, Flips

__all__ = ["ABSTRACT", "SYSTEMS", "Arm", "Flips", "Published", "Study", "System"]

SYSTEMS: dict[str, System] = {**CHANNELS, **CONVNEXT, **WEIGHTS, **TASKS}
