"""Fewer bits a number: int8 weights and activations, from calibration images."""

from edgewise.quantize.static import Quantize, quantize_static, weight_bytes

__all__ = ["Quantize", "quantize_static", "weight_bytes"]
