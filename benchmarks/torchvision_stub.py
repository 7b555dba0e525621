"""Declare torchvision's compiled operators, so that it and timm import beside a torch without CUDA.

PyPI's torchvision is built for CUDA; beside CPU torch its operators do not load and the import fails at the first that
is looked up. Networks and transforms need none of them. For tests and benchmarks; the product never does this.
"""

import torch

OPERATORS = (
    "nms qnms roi_align qroi_align ps_roi_align roi_pool ps_roi_pool deform_conv2d "
    "_roi_align_backward _ps_roi_align_backward _roi_pool_backward _ps_roi_pool_backward _deform_conv2d_backward"
)
library = torch.library.Library("torchvision", "DEF")
for operator in OPERATORS.split():
    library.define(f"{operator}(Tensor a) -> Tensor")
