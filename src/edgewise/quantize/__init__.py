"""Fewer bits a number: int8 weights and activations, from calibration images."""

from edgewise.quantize.config import Quantize
from edgewise.quantize.memory import ActivationCost, activation_cost, weight_bytes
from edgewise.quantize.static import Quantizer, quantize_static

__all__ = ["ActivationCost", "Quantize", "Quantizer", "activation_cost", "quantize_static", "weight_bytes"]
