"""Lets torchvision, and timm with it, be imported beside a torch that it was not built for.

torchvision's compiled operators load only into the torch they were compiled for; without them the import fails with
"operator torchvision::nms does not exist". Its networks are plain Python. Declaring the operators' names is enough to
import them; calling such an operator still fails. For tests and benchmarks; the product never does this.
"""

import torch

OPERATORS = (
    "nms qnms roi_align _roi_align_backward ps_roi_align _ps_roi_align_backward roi_pool _roi_pool_backward "
    "ps_roi_pool _ps_roi_pool_backward qroi_align deform_conv2d _deform_conv2d_backward"
)
_declared: list[torch.library.Library] = []  # a library's declarations last as long as it does


def declare() -> None:
    """Declare torchvision's operators if torchvision cannot be imported without that."""
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        library = torch.library.Library("torchvision", "DEF")
        for name in OPERATORS.split():
            library.define(f"{name}(Tensor a) -> Tensor")
        _declared.append(library)
