"""Distillation losses on features: what two networks make of the same images on the way to their answers.

Features are [N, C, H, W] or [N, D], of the same N images in the same order. Every loss is a scalar, float32 also under
autocast (float64 for float64 features), and 0 where both networks agree.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def hint_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Compute the mean of (student - teacher)^2 over all elements.

    Args:
        student: features of the teacher's shape, so behind an adapter where the networks' widths differ.
        teacher: features.

    Reference: Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015, arXiv 1412.6550, eq. (3), which takes
    half the sum; the mean does not change with the layer's size.

    >>> hint_loss(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 5.0]])).item()
    4.5
    """
    return (_precise(student) - _precise(teacher)).square().mean()


def attention_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Compute the squared distance of the two attention maps of each image, averaged over the images; at most 2.

    An attention map is the sum of squares over the channels, [N, H W], divided by its Euclidean length.

    Args:
        student: feature maps [N, C, H, W].
        teacher: feature maps [N, C', H, W], of any number of channels.

    Reference: Zagoruyko, Komodakis, "Paying More Attention to Attention", ICLR 2017, arXiv 1612.03928, eq. (2) with
    p = 2. The distance is squared, as in the authors' code; that takes the mean over the H W places, so its weight of
    1000 is 1000 / (H W) here.

    >>> student, teacher = torch.tensor([[[[1.0, 0.0]]]]), torch.tensor([[[[0.0, 2.0]], [[0.0, 1.0]]]])
    >>> attention_loss(student, teacher).item()
    2.0
    """
    ours, theirs = (_unit(_precise(maps).square().sum(1).flatten(1)) for maps in (student, teacher))
    return (ours - theirs).square().sum(1).mean()


def similarity_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Compute the mean squared difference of two matrices that say how alike the images of a batch are, [N, N].

    With one image's features in each row of Q, a matrix is Q Q^T with rows of Euclidean length 1.

    Args:
        student: features [N, ...].
        teacher: features [N, ...], of any other shape.

    Reference: Tung, Mori, "Similarity-Preserving Knowledge Distillation", ICCV 2019, arXiv 1907.09682, eq. (4).

    >>> similarity_loss(torch.eye(2), torch.tensor([[1.0], [0.0]])).item()
    0.25
    """
    # Autocast would multiply matrices in bfloat16.
    with torch.autocast(student.device.type, enabled=False):
        rows = (_precise(features).flatten(1) for features in (student, teacher))
        ours, theirs = (_unit(each @ each.T) for each in rows)
        return (ours - theirs).square().mean()


def relational_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Compute how differently two networks place the images of a batch: by distances, and twice by angles.

    Of every two images the distance, in units of the mean distance, and of every three the cosine of the angle at one
    of them; each compared by Huber's loss with delta = 1, averaged over all pairs and triples of distinct images.
    Needs memory for N^3 numbers, 8 MB for a batch of 128.

    Args:
        student: features [N, ...]; of maps the mean over space, an image's embedding.
        teacher: features [N, ...], of any other shape.

    Reference: Park et al., "Relational Knowledge Distillation", CVPR 2019, arXiv 1904.05068, eq. (4) to (9); distances
    to angles as 1 to 2 throughout their experiments.

    >>> corner, line = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.0], [1.0], [-1.0]])
    >>> round(relational_loss(corner, 3 * corner).item(), 4), round(relational_loss(corner, line).item(), 4)
    (0.0, 0.4071)
    """
    with torch.autocast(student.device.type, enabled=False):
        (lengths, cosines), (their_lengths, their_cosines) = (_relations(_embedding(x)) for x in (student, teacher))
        n = len(student)
        distance = F.smooth_l1_loss(lengths, their_lengths, reduction="sum") / max(n * (n - 1), 1)
        angles = F.smooth_l1_loss(cosines, their_cosines, reduction="none")
        # Between an image and itself there is no angle.
        apart = angles.sum() - angles.diagonal(dim1=1, dim2=2).sum()
        return distance + 2 * apart / max(n * (n - 1) * (n - 2), 1)


def pooled(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Average feature maps [N, C, H, W] over space to the smaller height and width of the two; others stay."""
    if student.dim() != 4 or teacher.dim() != 4:
        return student, teacher
    size = min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3])
    small, their_small = (
        maps if maps.shape[2:] == size else F.adaptive_avg_pool2d(maps, size) for maps in (student, teacher)
    )
    return small, their_small


def _precise(features: Tensor) -> Tensor:
    return features.to(torch.promote_types(features.dtype, torch.float32))


def _unit(vectors: Tensor) -> Tensor:
    """Divide vectors in the last dimension by their Euclidean length; zeros stay.

    Not by F.normalize, whose gradient at zeros is 1e12 times too large: an image that a ReLU silences is all zeros.
    """
    lengths = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    return vectors / torch.where(lengths > 0, lengths, 1)


def _embedding(features: Tensor) -> Tensor:
    precise = _precise(features)
    return precise.mean((2, 3)) if precise.dim() == 4 else precise.flatten(1)


def _relations(points: Tensor) -> tuple[Tensor, Tensor]:
    """Compute distances over their mean, [N, N], and cosines of the angles at j between i and k, [N (j), N (i), N (k)].

    Where two points are one there is no angle, and its cosine is 0.
    """
    apart = points[None] - points[:, None]  # [j, i]: from j to i
    lengths = torch.linalg.vector_norm(apart, dim=2)
    n = len(points)
    mean = lengths.sum() / max(n * (n - 1), 1)
    directions = _unit(apart)
    return lengths / torch.where(mean > 0, mean, 1), directions @ directions.transpose(1, 2)
