"""Machines that run artifacts, and what artifacts cost there: seconds and bytes, measured."""

from edgewise.devices.base import RUNTIMES, Device, Job, Measurement, Samples
from edgewise.devices.local import LocalDevice, machine
from edgewise.devices.measure import measure

__all__ = ["RUNTIMES", "Device", "Job", "LocalDevice", "Measurement", "Samples", "machine", "measure"]
