"""Pictures for the report: what a detector found beside what is there, and images that were made, not taken."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from edgewise.context import Context

SHOWN = 6  # test images
SURE = 0.3  # the least score of a box that is drawn
COLUMNS = 16  # of a sheet of images


def detections(context: Context, answer: Callable[[Tensor], Tensor]) -> list[dict[str, Any]]:
    """Return some test images with their true boxes and those that were found.

    Args:
        context: of a run on boxes.
        answer: returns outputs or answers for inputs ``[N, C, H, W]``.

    Returns:
        For each image its "image", a data URI, "size" as width and height, and boxes "true" and "found", each with
        "class", "box" as x, y, width and height in pixels, and "score" where it was found.
    """
    test = context.data.test
    chosen = torch.linspace(0, len(test) - 1, min(SHOWN, len(test))).long()
    inputs, targets = context.batch(test, chosen)
    found = context.task.answers(answer(inputs))
    shown = []
    for image, boxes, answers in zip(test.part(chosen).images, targets, found, strict=True):
        true = [_box(context, int(label), corners) for label, *corners in boxes.tolist() if label >= 0]
        sure = [
            {**_box(context, int(label), corners), "score": round(score, 3)}
            for *corners, score, label in answers.tolist()
            if score >= SURE
        ]
        size = [image.shape[2], image.shape[1]]
        shown.append({"image": data_uri(image), "size": size, "true": true, "found": sure})
    return shown


def _box(context: Context, label: int, corners: list[float]) -> dict[str, Any]:
    x1, y1, x2, y2 = corners
    return {"class": context.data.classes[label], "box": [round(value, 1) for value in (x1, y1, x2 - x1, y2 - y1)]}


def sheet(images: Tensor) -> str:
    """Return images uint8 ``[N, C, H, W]`` side by side in rows as one, a data URI; what fills no row is left out."""
    columns = min(COLUMNS, len(images))
    rows = len(images) // columns
    _, channels, height, width = images.shape
    grid = images[: rows * columns].reshape(rows, columns, channels, height, width)
    return data_uri(grid.permute(2, 0, 3, 1, 4).reshape(channels, rows * height, columns * width))


def data_uri(image: Tensor) -> str:
    """Return an image uint8 ``[C, H, W]`` as the address of itself, for a page that needs no other file."""
    pixels = image.permute(1, 2, 0).cpu().numpy()
    stream = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(stream, "WEBP", quality=80)
    return f"data:image/webp;base64,{base64.b64encode(stream.getvalue()).decode()}"
