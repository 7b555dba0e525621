import copy

import pytest
import torch
from torch import nn

from edgewise.distill.inherit import inherit
from edgewise.errors import ModelError
from edgewise.models import build
from train.tiny import same


@pytest.mark.parametrize(
    ("small", "large", "blocks"),
    [
        ("resnet20", "resnet56", {f"layer{stage}": (0, 4, 8) for stage in (1, 2, 3)}),
        ("resnet18", "resnet34", {"layer1": (0, 2), "layer2": (0, 3), "layer3": (0, 5), "layer4": (0, 2)}),
    ],
)
def test_a_shallower_resnet_is_made_of_the_teachers_blocks(
    small: str, large: str, blocks: dict[str, tuple[int, ...]]
) -> None:
    student, teacher = build(small), build(large)
    inherit(student, teacher)
    theirs = teacher.state_dict()
    for name, found in student.state_dict().items():
        stage, _, rest = name.partition(".")
        if stage in blocks:
            place, _, rest = rest.partition(".")
            name = f"{stage}.{blocks[stage][int(place)]}.{rest}"
        assert torch.equal(found, theirs[name]), name


def test_what_cannot_inherit_is_named_and_stays() -> None:
    student = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))
    before = copy.deepcopy(student)
    for teacher, told in (
        (
            nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 5), nn.Linear(5, 9)),
            r"student's 1.weight is \[3, 4\].*is \[9, 5\]",
        ),
        (nn.Sequential(nn.Linear(4, 4)), "student's 1 has no partner"),
        (nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 3)), "0.bias is .* is not there"),
    ):
        with pytest.raises(ModelError, match=told):
            inherit(student, teacher)
        assert same(student, before)
