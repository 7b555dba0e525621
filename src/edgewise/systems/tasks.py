"""Systems for other tasks than classification, or without its data: detectors, steganalysis, data-free distillation."""

from __future__ import annotations

from functools import partial

from edgewise.systems.base import Arm, Published, System
from edgewise.systems.weights import codebooks, from_dense

ADAMW = ("optimizer=adamw", "precision=float32", "schedule=one_cycle", "warmup=0.2")


def _step(number: int, *settings: str) -> tuple[str, ...]:
    """Return changes of a recipe's step."""
    return tuple(f"step.{number}.{setting}" for setting in settings)


# -- detectors ------------------------------------------------------------------------------------------------------

DETECTOR = (*ADAMW, "weight_decay=0.01", "lr=0.004")
KD = "step.0.method.0"


def _taught(
    data: tuple[str, ...],
    teacher: tuple[str, ...],
    student: tuple[str, ...],
    epochs: tuple[int, int],
    batch: tuple[int, int],
    seeds: int = 3,
) -> tuple[Arm, ...]:
    """Return the ablation of a detector's distillation, and what the student becomes when it is compressed.

    Args:
        data: changes that name the images.
        teacher: changes that make the teacher; its model first.
        student: likewise.
        epochs: of the teacher's training and of the student's.
        batch: likewise.
        seeds: of each student.
    """
    taught = Arm(
        label="teacher",
        recipe="detector-kd",
        changes=(*data, *teacher, "step.0.method=", *_step(0, *DETECTOR, f"epochs={epochs[0]}", f"batch={batch[0]}")),
    )
    settings = (*DETECTOR, f"epochs={epochs[1]}", f"batch={batch[1]}")

    def arm(name: str, seed: int, *changes: str, plain: bool = False) -> Arm:
        return Arm(
            label=f"{name}, seed {seed}",
            recipe="detector-kd",
            changes=(*data, *student, f"seed={seed}", *_step(0, *settings), *changes),
            dense=taught.label,
            series=name,
            teachers=() if plain else (taught.label,),
        )

    softened = (f"{KD}.soften=1.5", f"{KD}.schedule='early'")
    no_hint = (f"{KD}.hint=", f"{KD}.taps=")
    arms = [
        each
        for seed in range(seeds)
        for each in (
            arm("plain", seed, "step.0.method=", plain=True),
            arm("KD", seed, f"{KD}.retain=false", *no_hint),
            arm("KD, retained", seed, *no_hint),
            arm("KD, retained, softened", seed, *softened, *no_hint),
            arm("KD, retained, softened, hint", seed, *softened),
            arm("KD, retained, hint", seed),
        )
    ]
    best = arms[-1]
    smaller = (*data, *student, *_step(1, "keep_latency=0.9"), *_step(2, *settings, "lr=0.002", "epochs=10"))
    return (
        taught,
        *arms,
        Arm(label="compressed", recipe="detector", changes=smaller, dense=best.label, from_dense=True),
    )


# -- steganalysis ---------------------------------------------------------------------------------------------------

STEGO = "data=stego:images?method=nsf5&payload=0.8&quality=75"


def _analysed(network: tuple[str, ...], epochs: tuple[int, int], bits: tuple[int, ...]) -> tuple[Arm, ...]:
    """Return a steganalyser's codebooks of some widths, the other ways to few values, and int8.

    Args:
        network: changes that make it.
        epochs: of its training and of the values'.
        bits: of the codes of k-means.
    """
    pairs = (*ADAMW, "batch=8", "augment=['flip']")
    dense = Arm(
        label="xunet_jpeg dense",
        recipe="dense",
        changes=("model=xunet_jpeg", STEGO, *network, *_step(0, *pairs, "lr=0.002", f"epochs={epochs[0]}")),
    )
    again = _step(1, *pairs, "lr=0.0005", f"epochs={epochs[1]}")
    int8 = from_dense(dense, "codebook", "int8", "step.1=", "step.1.kind=quantize", "step.1.pack=")
    return (*codebooks(dense, again, bits, powers=(5,)), int8)


# -- without data ---------------------------------------------------------------------------------------------------


FREE = "step.0.method.0"
INHERITS = (*_step(0, "lr=0.03", "schedule=cosine"), f"{FREE}.inherit=true")


def _without_data(
    teacher: tuple[str, ...], student: tuple[str, ...], epochs: int, batch: int, real: tuple[str, ...], steps: int = 50
) -> tuple[Arm, ...]:
    """Return a student taught without data by three teachers and by one, and with data in as many steps.

    The last of each kind begins as blocks of its first teacher. Without data the generator then makes 150 steps first,
    and the student learns from a memory: three of the published five-step rounds become one, with one new batch in 15.

    Args:
        teacher: changes that make the teachers.
        student: changes that make the student; its model first.
        epochs: of five times `steps` steps of the student.
        batch: images in a step.
        real: changes of the training on real data.
        steps: of the generator in an epoch.
    """
    seeds = tuple(
        Arm(label=f"teacher, seed {seed}", recipe="dense", changes=(*teacher, f"seed={seed}")) for seed in range(3)
    )
    names = tuple(arm.label for arm in seeds)
    taught = partial(Arm, dense=names[0], teachers=names)
    data = (*student, *_step(0, f"batch={batch}"), *real)
    free = (*student, *_step(0, f"epochs={epochs}", f"batch={batch}"))
    rounds = (f"{FREE}.steps={steps}",)
    memory = (
        f"{FREE}.lead=150",
        f"{FREE}.generator_lr=0.002",
        f"{FREE}.memory=100",
        f"{FREE}.student_steps=15",
        f"{FREE}.steps={steps // 3}",
    )
    return (
        *seeds,
        taught(label="data distilled", recipe="dfed-real", changes=data),
        taught(label="data distilled, inherited", recipe="dfed-real", changes=(*data, *INHERITS)),
        taught(label="DFED", recipe="dfed", changes=(*free, *rounds)),
        taught(label="DFED, inherited", recipe="dfed", changes=(*free, *INHERITS, *memory)),
        taught(label="DFAD", recipe="dfed", changes=(*free, *rounds, f"{FREE}.weight=0.0"), teachers=names[:1]),
    )


TASKS: dict[str, System] = {
    "detector-kd": System(
        about="a light detector learns a larger one's heatmaps, centres retained, softened, hints; compressed then",
        citation=(
            "Gao, Gao, Li, Qin, Revisiting knowledge distillation for light-weight visual object detection, Trans. "
            "Inst. Meas. Control 43(13), 2021; Zhou, Wang, Kraehenbuehl, Objects as Points, 2019, arXiv 1904.07850"
        ),
        published=(
            Published(
                setting="keypoint-based light detector", accuracy_note="improved by a large margin; no figure is public"
            ),
        ),
        arms=_taught(
            ("data=pack:bccd.npz", "size=512", "skip_bad=true"),
            ("model=centernet_resnet50",),
            ("model=centernet_mobilenet_v2", "width=0.5"),
            epochs=(140, 140),
            batch=(8, 8),
        ),
        small=_taught(
            ("data=pack:bccd.npz", "size=256", "skip_bad=true"),
            ("model=centernet_tiny",),
            ("model=centernet_tiny", "width=0.25"),
            epochs=(40, 50),
            batch=(8, 4),
        ),
        columns=("params", "MACs", "file", "milliseconds", "training"),
        cost="file_bytes",
    ),
    "steganalysis": System(
        about="a network that finds messages hidden in JPEGs, in codes of few bits",
        citation=(
            "Wu, Shao, Ou, Tan, Application of quantisation-based deep-learning model compression in JPEG image "
            "steganalysis, J. Engineering 2018(16):1402-1406; Xu, IH&MMSec 2017, arXiv 1704.08378"
        ),
        published=(Published(setting="JPEG steganalysis in codes of few bits", accuracy_note="no figure is public"),),
        arms=_analysed(("size=256",), (40, 8), (8, 6, 5, 4, 3, 2)),
        small=_analysed(("size=128", "width=0.25"), (6, 2), (8, 6, 5, 4, 3, 2)),
        columns=("file", "packed", "bits a weight", "latency", "training"),
        cost="file_bytes",
    ),
    "dfed": System(
        about="a student of three teachers that sees no data: a generator makes its images against it",
        citation=(
            "Hao, Luo, Hu, An, Wen, Data-Free Ensemble Knowledge Distillation for Privacy-conscious Multimedia Model "
            "Compression, ACM MM 2021, doi 10.1145/3474085.3475329; Fang et al., DFAD, 2019, arXiv 1912.11006"
        ),
        published=(
            Published(setting="ResNet-34 x 3 to ResNet-18, three data sets", accuracy_note="no figure is public"),
        ),
        arms=_without_data(
            ("model=resnet34", *_step(0, "epochs=60")),
            ("model=resnet18",),
            epochs=240,
            batch=256,
            real=_step(0, "epochs=330"),
            steps=51,
        ),
        small=_without_data(
            ("model=resnet56", "images=10000", *_step(0, "epochs=10")),
            ("model=resnet20", "images=10000"),
            epochs=12,
            batch=64,
            real=_step(0, "epochs=7"),
            steps=18,
        ),
        columns=("params", "MACs", "file", "training"),
        cost="file_bytes",
        tuning=_step(0, "epochs=2", "lr=0.01", "schedule=cosine"),
    ),
}
