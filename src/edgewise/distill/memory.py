"""What is kept in memory through a training must leave room for the training itself."""

import psutil
import torch

from edgewise.errors import DataError
from edgewise.units import format_bytes

MEMORY_SHARE = 0.5  # of what is free: the training needs the rest for its activations


def check_memory(what: str, needed: int, device: torch.device, instead: str) -> None:
    """Refuse what is larger than half of the memory that is free.

    Args:
        what: needs it, by the name of its setting.
        needed: bytes.
        device: where it would be.
        instead: what to do about it.

    Raises:
        DataError: what it needs and what there is.
    """
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    if needed > MEMORY_SHARE * free:
        raise DataError(
            f"{what} needs {format_bytes(needed)}, more than half of the {format_bytes(free)} that are free; {instead}"
        )
