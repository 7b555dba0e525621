"""Systems that prune channels: complexity-driven, Combine-Net, EagleEye, OTO."""

from __future__ import annotations

from edgewise.systems.base import SMALL, Arm, Published, System


def _compared(model: str, changes: tuple[str, ...] = ()) -> tuple[Arm, Arm]:
    """Return a model's dense training and what is usually done with it: prune, train again."""
    settings = (f"model={model}", *changes)
    dense = Arm(label=f"{model} dense", recipe="dense", changes=settings)
    usual = Arm(
        label=f"{model} train-prune-retrain",
        recipe="train-prune-retrain",
        changes=settings,
        dense=dense.label,
        from_dense=True,
    )
    return dense, usual


def _complexity(model: str, changes: tuple[str, ...] = (), retrain: tuple[str, ...] = ()) -> tuple[Arm, ...]:
    """Return the four modes on one model, with the targets of the abstract and half of the latency, and the usual."""
    dense, usual = _compared(model, changes)
    usual = Arm(**{**vars(usual), "changes": (*usual.changes, *retrain)})
    targets = {
        "PA": ("params", "keep_params", 0.3),
        "FA": ("macs", "keep_macs", 0.5),
        "MA": ("memory", "keep_memory", 0.5),
        "LA": ("latency", "keep_latency", 0.5),
    }
    epochs = tuple(change.replace("step.0.epochs", "step.1.epochs") for change in changes)
    modes = (
        Arm(
            label=f"{model} {name}",
            recipe="complexity",
            changes=(
                f"model={model}",
                *epochs,
                "step.0.keep_macs=",
                f"step.0.{keep}={share}",
                f"step.0.complexity.mode={mode}",
            ),
            dense=dense.label,
            against=usual.label,
        )
        for name, (mode, keep, share) in targets.items()
    )
    return dense, usual, *modes


def _without(model: str, method: str, changes: tuple[str, ...] = ()) -> Arm:
    """Return the training of a method that brings channels to zero, without the method: the dense network."""
    settings = (f"model={model}", *changes, "step.0.method=")
    return Arm(label=f"{model} as for {method}, dense", recipe=f"oto-{method.lower()}", changes=settings)


def _with(model: str, method: str, dense: Arm, changes: tuple[str, ...] = ()) -> Arm:
    """Return that training with the method."""
    settings = (f"model={model}", *changes)
    return Arm(label=f"{model} {method}", recipe=f"oto-{method.lower()}", changes=settings, dense=dense.label)


# HESSO and DHSPG in one and the same training, so that one dense network serves both.
SHORT = (*SMALL, "step.0.epochs=12", "step.0.milestones=[0.5, 0.75]")
FULL_HESSO = _without("resnet18", "HESSO")
SHORT_DENSE = _without("resnet20", "HESSO", SHORT)

# Trained as the recipe `combine-net` trains.
AS_COMBINED = ("step.0.schedule=cosine", "step.0.nesterov=true", "step.0.decay=weights", "step.0.warmup=0.2")
SMALL_DENSE = Arm(
    label="resnet20 dense", recipe="dense", changes=("model=resnet20", *SMALL, "step.0.epochs=12", *AS_COMBINED)
)


def _combined(order: str, changes: tuple[str, ...] = ()) -> Arm:
    """Return Combine-Net's pruning and retraining of the small dense network, its rates found in some order."""
    return Arm(
        label=f"resnet20 {order}",
        recipe="combine-net",
        changes=("model=resnet20", *SMALL, "step.2.epochs=6", *changes),
        dense=SMALL_DENSE.label,
        from_dense=True,
    )


CHANNELS: dict[str, System] = {
    "complexity": System(
        about="prune before training by each layer's share of params, MACs, memory, or measured latency (PA FA MA LA)",
        citation=(
            "Zawish, Davy, Abraham, Complexity-Driven Model Compression for Resource-Constrained Deep Learning on "
            "Edge, IEEE Trans. AI 5(8):3886-3901, 2024; arXiv 2208.12816"
        ),
        published=(
            Published(setting="MobileNetV2, PA", accuracy_note="without loss", params_cut=0.70),
            Published(setting="MobileNetV2, FA", accuracy_note="without loss", macs_cut=0.50),
            Published(setting="MobileNetV2, MA", accuracy_note="without loss", memory_cut=0.50),
            Published(setting="all: about 60 % less training time than train, prune, retrain"),
        ),
        arms=tuple(arm for model in ("vgg16_bn", "resnet56", "mobilenet_v2") for arm in _complexity(model)),
        small=_complexity("resnet20", (*SMALL, "step.0.epochs=12"), ("step.2.epochs=6",)),
    ),
    "combine-net": System(
        about="the knee of each layer's sensitivity curve, BatchNorm adapted, as its rate; retrained by distillation",
        citation="Wang, Li, Zhang, Combine-Net: An Improved Filter Pruning Algorithm, Information 12(7):264, 2021",
        published=(
            Published(setting="VGG-16, CIFAR-10", accuracy_note="without loss", params_cut=0.95, macs_cut=0.83),
            Published(setting="ResNet-50, CIFAR-100", accuracy_note="without loss", params_cut=0.71, macs_cut=0.41),
        ),
        arms=(
            Arm(label="vgg16_bn cifar10", recipe="combine-net"),
            Arm(label="resnet50 cifar100", recipe="combine-net", changes=("model=resnet50", "data=cifar100")),
        ),
        small=(SMALL_DENSE, _combined("at once"), _combined("one by one", ("step.1.knee.order=one_by_one",))),
    ),
    "eagleeye": System(
        about="random widths, ranked by the accuracy after BatchNorm was recalibrated: the baseline for allocations",
        citation="Li et al., EagleEye: Fast Sub-net Evaluation for Efficient Neural Network Pruning, ECCV 2020",
        published=(
            Published(
                setting="ResNet-50, ImageNet: 4.089 to 2.057 GMACs, 25.50 to 14.37 M params",
                accuracy=0.7637,
                params_cut=1 - 14.37 / 25.50,
                macs_cut=1 - 2.057 / 4.089,
                source="the authors' repository",
            ),
        ),
        arms=(Arm(label="resnet56", recipe="eagleeye"),),
        small=(
            Arm(
                label="resnet20",
                recipe="eagleeye",
                changes=("model=resnet20", *SMALL, "step.0.epochs=12", "step.2.epochs=6"),
            ),
        ),
    ),
    "oto": System(
        about="groups that training itself drives to zero (HESSO, DHSPG), then removed exactly",
        citation="Chen et al., OTOv2, ICLR 2023; Chen et al., OTOv3, arXiv 2312.09411; Chen et al., HESSO, 2024",
        published=(
            Published(
                setting="HESSO, ResNet-18, CIFAR-10, sparsity 0.7, 100 epochs; dense 93.02 %",
                accuracy=0.928,
                accuracy_note="92.8 to 92.9 %",
                params_cut=0.92,
                source="the authors' example",
            ),
            *(
                Published(
                    setting=f"DHSPG, {setting}, CIFAR-10, 300 epochs",
                    accuracy=accuracy,
                    params_cut=params,
                    macs_cut=macs,
                    source="the authors' OTOv2 notebook",
                )
                for setting, accuracy, params, macs in (
                    ("ResNet-18, sparsity 0.7", 0.9286, 0.912, 0.797),
                    ("VGG-16-BN, sparsity 0.79", 0.9327, 0.950, 0.734),
                    ("ResNet-50, sparsity 0.8", 0.9439, 0.964, 0.900),
                )
            ),
        ),
        arms=(
            FULL_HESSO,
            _with("resnet18", "HESSO", FULL_HESSO),
            *(
                arm
                for model, sparsity in (("resnet18", 0.7), ("vgg16_bn", 0.79), ("resnet50", 0.8))
                for dense in (_without(model, "DHSPG"),)
                for arm in (dense, _with(model, "DHSPG", dense, (f"step.0.method.0.sparsity={sparsity}",)))
            ),
        ),
        small=(
            SHORT_DENSE,
            _with("resnet20", "HESSO", SHORT_DENSE, SHORT),
            # The published penalty needs hundreds of epochs to bring a channel to zero.
            _with("resnet20", "DHSPG", SHORT_DENSE, (*SHORT, "step.0.method.0.penalty=0.05")),
        ),
    ),
}
