"""Machines that run artifacts, and what artifacts cost there: seconds and bytes, measured."""

from edgewise.devices.base import Device, Job, Measurement, Samples
from edgewise.devices.local import LocalDevice, machine
from edgewise.devices.measure import measure
from edgewise.devices.runtimes import RUNTIMES

__all__ = ["RUNTIMES", "Device", "Job", "LocalDevice", "Measurement", "Samples", "machine", "measure"]
