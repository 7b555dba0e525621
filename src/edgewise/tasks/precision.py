"""Average precision of boxes, by COCO's protocol."""

import contextlib
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgewise.errors import MissingExtra

INSTALL = 'pip install "edgewise[detection]"'


@dataclass(frozen=True)
class AveragePrecision:
    """Areas under precision over recall, as fractions.

    Args:
        map_50: the mean over the classes, where a box counts as found at an IoU of 0.5.
        map_50_95: the mean over the classes and over the IoUs 0.5, 0.55, ..., 0.95.
        of_class: for each class as for `map_50`; NaN for one that no true box has, which no mean counts.
    """

    map_50: float
    map_50_95: float
    of_class: tuple[float, ...]


def mean_average_precision(answers: Tensor, targets: Tensor, classes: int) -> AveragePrecision:
    """Compute the average precision of boxes found in images.

    Nothing is ignored: every true box is to be found, and every box found counts, of those with a score above 0.

    Args:
        answers: [N, K, 6], rows (x1, y1, x2, y2, score, class).
        targets: [N, M, 5], rows (class, x1, y1, x2, y2), -1 for no box; at least one box.
        classes: how many.

    Raises:
        MissingExtra: pycocotools is not installed.

    Reference: COCO detection evaluation, https://cocodataset.org/#detection-eval: precision at 101 recalls, each the
    highest at that recall or above.
    """
    coco, evaluation = _import_coco()
    wanted, found = [], []
    for image, (true, boxes) in enumerate(zip(targets.tolist(), answers.tolist(), strict=True)):
        wanted += [_annotation(image, label, box, None) for label, *box in true if label >= 0]
        found += [_annotation(image, label, box, score) for *box, score, label in boxes if score > 0]
    with contextlib.redirect_stdout(io.StringIO()):  # it reports each of its steps
        judged = evaluation(
            _index(coco, wanted, len(targets), classes), _index(coco, found, len(targets), classes), "bbox"
        )
        judged.params.maxDets = [max(1, answers.shape[1])]
        judged.params.areaRng, judged.params.areaRngLbl = [[0, float("inf")]], ["all"]
        judged.evaluate()
        judged.accumulate()
    precision = judged.eval["precision"][:, :, :, 0, 0]  # [IoUs, recalls, classes]; -1 where a class has no true box
    average = np.where(precision.min(axis=1) < 0, np.nan, precision.mean(axis=1))
    return AveragePrecision(
        float(np.nanmean(average[0])), float(np.nanmean(average)), tuple(float(value) for value in average[0])
    )


def intersection_over_union(a: Tensor, b: Tensor) -> Tensor:
    """Compute the area that two boxes share, as a share of what they cover together; 0 for boxes without area.

    Args:
        a: [..., 4], (x1, y1, x2, y2).
        b: [..., 4], broadcast with `a`.

    >>> intersection_over_union(torch.tensor([0.0, 0.0, 2.0, 2.0]), torch.tensor([1.0, 0.0, 3.0, 2.0])).item()
    0.3333333432674408
    """
    shared = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0).prod(-1)
    areas = [(box[..., 2:] - box[..., :2]).clamp(min=0).prod(-1) for box in (a, b)]
    return shared / (areas[0] + areas[1] - shared).clamp(min=torch.finfo(torch.float32).tiny)


def _import_coco() -> tuple[Any, Any]:
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError as error:
        raise MissingExtra(f"average precision of boxes needs {error.name or 'pycocotools'}: {INSTALL}") from error
    return COCO, COCOeval


def _annotation(image: int, label: float, edges: list[float], score: float | None) -> dict[str, Any]:
    """Say a box as COCO does; a true one has no score."""
    x1, y1, x2, y2 = edges
    box = {"image_id": image, "category_id": int(label), "bbox": [x1, y1, x2 - x1, y2 - y1]}
    return {**box, "area": (x2 - x1) * (y2 - y1), "iscrowd": 0, **({} if score is None else {"score": score})}


def _index(coco: Any, annotations: list[dict[str, Any]], images: int, classes: int) -> Any:
    indexed = coco()
    indexed.dataset = {
        "images": [{"id": image} for image in range(images)],
        "categories": [{"id": label} for label in range(classes)],
        # From 1: the evaluation takes a match with number 0 for none.
        "annotations": [{"id": number, **annotation} for number, annotation in enumerate(annotations, start=1)],
    }
    indexed.createIndex()
    return indexed
