"""Recipes: what is read, what is refused and in which words."""

import re
from pathlib import Path

import pytest

from edgewise.errors import RecipeError
from edgewise.recipe import Prune, Recipe, Train, absolute, parse, read, to_toml

ROOT = Path(__file__).resolve().parents[1]

GOOD = """
model = "resnet20"
data = "fashion-mnist"
[budget]
size = "120 KB"
drop = 1
[[step]]
kind = "train"
epochs = 3
[[step]]
kind = "prune"
keep_macs = 0.5
[[step]]
kind = "train"
epochs = 2
[[step.method]]
kind = "distill"
temperature = 2.0
[[step]]
kind = "quantize"
[[step]]
kind = "export"
[[step]]
kind = "measure"
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    return path


def test_a_recipe_becomes_a_value(tmp_path: Path) -> None:
    recipe = read(write(tmp_path, GOOD))
    assert (recipe.name, recipe.model, recipe.dense_at) == ("mine", "resnet20", 1)
    assert [step.kind for step in recipe.step] == ["train", "prune", "train", "quantize", "export", "measure"]
    assert isinstance(recipe.step[0], Train)
    assert isinstance(recipe.step[1], Prune)
    assert recipe.step[2].method[0].temperature == 2.0
    assert recipe.budget is not None
    assert recipe.budget.drop == 1.0


def test_what_a_prune_step_leaves_open_is_the_artifacts(tmp_path: Path) -> None:
    recipe = read(write(tmp_path, GOOD), ["step.5.threads=2"])
    filled = recipe.for_artifact(recipe.step[1])
    assert (recipe.step[1].precision, filled.precision, filled.threads) == (None, "int8", 2)
    given = read(write(tmp_path, GOOD), ["step.1.precision=float32"])
    assert given.for_artifact(given.step[1]).precision == "float32"  # a share of the MACs: nothing else is meant by it


def test_written_out_and_read_back_it_is_the_same(tmp_path: Path) -> None:
    recipe = read(write(tmp_path, GOOD))
    assert read(write(tmp_path, to_toml(recipe))) == recipe


def test_paths_are_made_absolute_and_names_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = absolute(read(write(tmp_path, GOOD), ["model=a/net.py:f", "data=pack:b", "weights=../w.pth"]))
    assert recipe.model == f"{tmp_path}/a/net.py:f"
    assert recipe.data == f"pack:{tmp_path}/b"
    assert recipe.weights == f"{tmp_path}/../w.pth"
    for model in ("resnet20", "timm:resnet18"):
        named = read(write(tmp_path, GOOD), [f"model={model}"])
        assert absolute(named) == named


def test_an_empty_value_takes_a_setting_out(tmp_path: Path) -> None:
    changes = ["step.1.keep_macs=", "step.1.keep_params=0.5", "step.1.floor = "]
    prune = read(write(tmp_path, GOOD), changes).step[1]
    assert isinstance(prune, Prune)
    assert (prune.keeps, prune.keep_params, prune.floor) == (["keep_params"], 0.5, 0.0)


def test_settings_of_one_allocation_are_filled_in_and_written_out(tmp_path: Path) -> None:
    recipe = read(write(tmp_path, GOOD), ["step.1.allocate=complexity", "step.1.complexity.min_channels=4"])
    prune = recipe.step[1]
    assert isinstance(prune, Prune)
    assert prune.complexity is not None
    assert (prune.complexity.min_channels, prune.complexity.mode) == (4, "macs")
    assert read(write(tmp_path, to_toml(recipe))) == recipe


def test_nothing_to_do_is_written_out_too(tmp_path: Path) -> None:
    recipe = read(write(tmp_path, GOOD), ["step.0.augment=[]"])
    assert recipe.step[0].augment == ()
    assert read(write(tmp_path, to_toml(recipe))) == recipe


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.toml")), ids=lambda path: path.stem)
def test_our_own_recipes_are_valid(path: Path) -> None:
    assert isinstance(read(path), Recipe)


def test_a_method_without_a_teacher_may_act_in_the_first_training(tmp_path: Path) -> None:
    first = 'epochs = 3\n[[step.method]]\nkind = "hesso"\nsparsity = 0.5\nweights = [1, 0, 0, 0, 0]'
    zero = 'kind = "prune"\nallocate = "zero"'
    text = GOOD.replace("epochs = 3", first).replace('kind = "prune"\nkeep_macs = 0.5', zero)
    text = text.replace(
        'kind = "distill"\ntemperature = 2.0', 'kind = "distill"\n[[step.method]]\nkind = "dhspg"\nsparsity = 0.2'
    )
    recipe = read(write(tmp_path, text))
    assert [method.kind for step in (recipe.step[0], recipe.step[2]) for method in step.method] == [
        "hesso",
        "distill",
        "dhspg",
    ]
    assert recipe.step[0].method[0].weights == (1, 0, 0, 0, 0)
    assert read(write(tmp_path, to_toml(recipe))) == recipe
    for old, new, message in (
        ("sparsity = 0.5", "sparsity = 1.5", r"step\.0\.method\.0: sparsity is 1\.5; it must be in \(0, 1\)"),
        ("sparsity = 0.5", "", r'the key "step\.0\.method\.0\.sparsity" is missing'),
        ('allocate = "zero"', 'allocate = "zero"\nkeep_macs = 0.5', r'step\.1: keep_macs = 0\.5: allocate = "zero"'),
        (
            'kind = "hesso"\nsparsity = 0.5\nweights = [1, 0, 0, 0, 0]',
            'kind = "distill"',
            "put it after the prune step",
        ),
    ):
        with pytest.raises(RecipeError, match=message):
            read(write(tmp_path, text.replace(old, new)))


def test_ternary_weights_and_the_pe_lasso_are_methods(tmp_path: Path) -> None:
    methods = (
        '[[step.method]]\nkind = "ternary"\nvariant = "gaussian"\nfloat_layers = "none"\n'
        '[[step.method]]\nkind = "pe_lasso"\ntile = [4, -1]\nstrength = 1e-4'
    )
    later = "\n[[step.method]]\n".join(f'kind = "{kind}"' for kind in ("keep_zeros", "ternary", "distill"))
    kept = GOOD.replace('kind = "distill"', later)
    text = kept.replace("epochs = 3", f"epochs = 3\n{methods}")
    recipe = read(write(tmp_path, text))
    ternary, lasso = recipe.step[0].method
    assert (ternary.variant, ternary.beta, ternary.float_layers) == ("gaussian", 0.05, "none")
    assert (lasso.tile, lasso.strength, lasso.clip) == ((4, -1), 1e-4, "mean")
    assert read(write(tmp_path, to_toml(recipe))) == recipe
    for old, new, message in (
        ("tile = [4, -1]", "tile = [4, 0]", r"step\.0\.method\.1: tile is \(4, 0\); it must be two numbers"),
        ("strength = 1e-4", "", r'the key "step\.0\.method\.1\.strength" is missing'),
        ('"gaussian"', '"median"', r"step\.0\.method\.0\.variant"),
    ):
        with pytest.raises(RecipeError, match=message):
            read(write(tmp_path, text.replace(old, new)))


def test_a_step_can_be_taken_out(tmp_path: Path) -> None:
    whole = read(write(tmp_path, GOOD))
    last = len(whole.step) - 1
    shorter = read(write(tmp_path, GOOD), [f"step.{last}=", "step.1=", "step.0.epochs=9", "step.1.method="])
    assert [step.kind for step in shorter.step] == [step.kind for step in (whole.step[0], *whole.step[2:-1])]
    assert shorter.step[0].epochs == 9
    assert shorter.step[1].method == ()
    for change in (f"step.{last + 1}=", "step.x=", "step.-1=", "step.1=3"):
        with pytest.raises(RecipeError, match=r"name a key of step"):
            read(write(tmp_path, GOOD), [change])


def test_settings_can_be_changed(tmp_path: Path) -> None:
    changes = ["step.0.epochs=9", "seed = 3", "step.1.importance=l1", "budget.latency=1 ms", "step.0.augment=['flip']"]
    recipe = read(write(tmp_path, GOOD), changes)
    assert (recipe.step[0].epochs, recipe.seed, recipe.step[1].importance) == (9, 3, "l1")
    assert recipe.budget.latency == "1 ms"
    assert recipe.step[0].augment == ("flip",)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('data = "fashion-mnist"', "", 'the key "data" is missing'),
        ('model = "resnet20"', 'modle = "resnet20"', 'unknown key "modle"; did you mean "model"?'),
        ("epochs = 3", "epoch = 3", 'unknown key "step.0.epoch"; did you mean "step.0.epochs"?'),
        (
            "temperature = 2.0",
            "temprature = 2.0",
            'unknown key "step.2.method.0.temprature"; did you mean "step.2.method.0.temperature"?',
        ),
        ('size = "120 KB"', 'sice = "120 KB"', 'unknown key "budget.sice"; did you mean "budget.size"?'),
        ('kind = "prune"', 'kind = "prunes"', 'step.1.kind = "prunes" is unknown; did you mean "prune"?'),
        ('kind = "prune"', "", "step.1 has no kind; known: export, measure, net_trim, prune, quantize, sparsify"),
        ('kind = "distill"', 'kind = "distil"', 'step.2.method.0.kind = "distil" is unknown; did you mean "distill"?'),
        ("epochs = 3", 'epochs = "3"', 'step.0.epochs = "3": it should be a valid integer'),
        ("epochs = 3", "epochs = 3.5", "step.0.epochs = 3.5: it should be a valid integer"),
        ("epochs = 3", "epochs = true", "step.0.epochs = true: it should be a valid integer"),
        ("keep_macs = 0.5", "keep_macs = 1.5", "step.1: keep_macs = 1.5: a share to keep lies in (0, 1]"),
        ("keep_macs = 0.5", "keep_macs = 0", "keep_macs = 0.0: a share to keep lies in (0, 1]"),
        ("keep_macs = 0.5", "round_to = 8", "say how much to keep"),
        (
            "keep_macs = 0.5",
            'keep_macs = 0.5\nimportance = "l3"',
            "step.1.importance = \"l3\": it should be 'l1', 'l2'",
        ),
        ('size = "120 KB"', 'size = "120"', "budget: size = '120': the unit is one of"),
        ('size = "120 KB"', 'size = "120 seconds"', "budget: size = '120 seconds': the unit is one of"),
        ('size = "120 KB"', "size = 120", "budget.size = 120: it should be a valid string"),
        (
            '[[step]]\nkind = "train"\nepochs = 3',
            '[[step]]\nkind = "measure"',
            "step.0 (measure) has nothing to measure",
        ),
        ('kind = "quantize"', 'kind = "quantize"\n[[step]]\nkind = "train"', "step.4 (train) comes after quantize"),
        ("epochs = 3", 'epochs = 3\n[[step.method]]\nkind = "distill"', "put it after the prune step"),
        ('data = "fashion-mnist"', 'data = "fashion-mnist"\nheld = 1.0', "held = 1.0: a share between 0 and 1"),
        ('data = "fashion-mnist"', 'data = "fashion-mnist"\nseed = -1', "seed = -1: 0 to"),
        ('data = "fashion-mnist"', 'data = "fashion-mnist"\nimages = 1', "images = 1: at least 2"),
        ('data = "fashion-mnist"', 'data = "fashion-mnist"\nname = "../x"', "name = '../x'"),
        ('kind = "measure"', 'kind = "measure"\nthreads = 0', "threads = 0: at least 1"),
        ('kind = "quantize"', 'kind = "quantize"\nscheme = "int3"', "step.3.scheme"),
        ("epochs = 3", "lr = inf", "step.0.lr = inf: it must be a finite number"),
        ("drop = 1", "drop = nan", "budget.drop = nan: it must be a finite number"),
        ("drop = 1", "drop = -1", "budget: drop = -1.0: accuracy points that may be lost, 0 or more"),
        ("epochs = 3", "milestones = [0.1, -inf]", "step.0.milestones.1 = -inf: it must be a finite number"),
        ("keep_macs = 0.5", "keep_macs = 0.5\nrecalibrate = 1", "recalibrate = 1: a number of images, 0 or at least 2"),
        (
            "keep_macs = 0.5",
            'keep_macs = 0.5\nallocate = "complexity"\ncomplexity.mod = "macs"',
            'unknown key "step.1.complexity.mod"; did you mean "step.1.complexity.mode"?',
        ),
        (
            "keep_macs = 0.5",
            'keep_macs = 0.5\nallocate = "complexity"\ncomplexity.mode = "params"',
            'complexity.mode = "params" takes keep_params alone, not keep_macs',
        ),
        (
            "keep_macs = 0.5",
            'allocate = "knee"\n[step.knee]\ntolerence = 1.0',
            'unknown key "step.1.knee.tolerence"; did you mean "step.1.knee.tolerance"?',
        ),
        (
            "keep_macs = 0.5",
            'allocate = "knee"\n[step.knee]\nrates = [0.5, 0.2]',
            "step.1.knee: rates = [0.5, 0.2]: at least two shares, ascending, between 0 and 1",
        ),
        ("keep_macs = 0.5", "keep_macs = 0.5\n[step.search]\nmost = 0.5", 'search goes with allocate = "search"'),
        ("keep_macs = 0.5", 'allocate = "search"', "say how much to keep"),
        (
            "keep_macs = 0.5",
            'budget = true\nprecision = "float32"',
            "step.1.precision = 'float32', but the artifact that [budget] limits is made and measured with 'int8'",
        ),
        ("keep_macs = 0.5", "budget = true\nthreads = 2", "step.1.threads = 2, but the artifact"),
        ("model =", "model", "no valid TOML"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in GOOD
    path = write(tmp_path, GOOD.replace(old, new, 1))
    with pytest.raises(RecipeError, match=re.escape(message)) as caught:
        read(path)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(path))


def test_a_recipe_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no such recipe"):
        read(tmp_path / "none.toml")
    with pytest.raises(RecipeError, match="Is a directory"):
        read(tmp_path)


def test_a_recipe_needs_a_step() -> None:
    with pytest.raises(RecipeError, match=re.escape("at least one [[step]]")):
        parse({"model": "resnet20", "data": "fashion-mnist", "step": []})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("step.9.epochs=3", 'step has the entries 0 to 5, not "9"'),
        ("step.x.epochs=3", 'step has the entries 0 to 5, not "x"'),
        ("epochs", "write it as step.0.epochs=3"),
        ("step.0=3", "name a key of step.0"),
        ("seed.x=3", 'seed = {"x": 3}: it should be a valid integer'),
        ("step.0.epoch=3", 'unknown key "step.0.epoch"'),
        ("model.x=3", "is a value, not a table"),
    ],
)
def test_a_wrong_change_is_refused(tmp_path: Path, change: str, message: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(message)):
        read(write(tmp_path, GOOD), [change])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            ["step.3.scheme=int8_dynamic", "step.4.format=litert"],
            'step.4 (export): format = "litert" has no kernels for scheme = "int8_dynamic"; take int8_static',
        ),
        (
            ["step.3.scheme=mixed", "step.3.size=0.2", "step.4.format=executorch"],
            'step.4 (export): format = "executorch" has no kernels for scheme = "mixed"; take int8_static',
        ),
        (
            ["step.1.keep_macs=", "step.1.keep_latency=0.5", "step.4.format=executorch"],
            'a latency, which is measured in ONNX Runtime, but the artifact is for "executorch"',
        ),
        (
            ["step.1.keep_macs=", "step.1.keep_latency=0.5", "step.5.runtime=openvino"],
            'a latency, which is measured in ONNX Runtime, but the artifact is for "openvino"',
        ),
    ],
)
def test_what_another_runtime_does_not_take_is_refused(tmp_path: Path, changes: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(message)):
        read(write(tmp_path, GOOD), changes)


def test_a_format_is_what_the_last_export_step_says(tmp_path: Path) -> None:
    assert read(write(tmp_path, GOOD)).format == "onnx"
    assert read(write(tmp_path, GOOD), ["step.4.format=executorch"]).format == "executorch"


@pytest.mark.parametrize(
    ("method", "augment", "message"),
    [
        ({"loss": "dkd"}, ["mixup"], "needs one right class per image, and mixup blends two: leave one out"),
        ({"inherit": True}, [], r"step.2 \(train\) has inherit = true, and its network was made before: leave it out"),
    ],
)
def test_a_distillation_that_cannot_be_is_refused(method: dict[str, object], augment: list[str], message: str) -> None:
    last = {"kind": "train", "augment": augment, "method": [{"kind": "distill", **method}]}
    steps = [{"kind": "train"}, {"kind": "prune", "keep_macs": 0.5}, last]
    with pytest.raises(RecipeError, match=message):
        parse({"model": "resnet20", "data": "fashion-mnist", "step": steps})
