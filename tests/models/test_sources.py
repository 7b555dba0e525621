import re
import sys
from pathlib import Path

import pytest
import torch

from edgewise.errors import MissingExtra, ModelError, UnknownName
from edgewise.models import build
from edgewise.models.sources import source_files

# -- timm -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_050", "resnet18.a1_in1k"])
def test_timms_networks_are_built_for_the_data(timm, name):
    model = build(f"timm:{name}", classes=7, channels=1)
    assert model.eval()(torch.zeros(2, 1, 32, 32)).shape == (2, 7)


def test_a_network_made_for_one_size_is_told_the_size(timm):
    model = build("timm:vit_tiny_patch16_224", classes=7, size=64)
    assert model.eval()(torch.zeros(2, 3, 64, 64)).shape == (2, 7)


@pytest.mark.parametrize(
    ("name", "hint"),
    [("resnet81", 'did you mean "timm:resnet'), ("", "timm.list_models()"), ("hf-hub:a/b", "timm.list")],
)
def test_an_unknown_timm_network_gets_a_hint(timm, name, hint):
    with pytest.raises(UnknownName, match=re.escape(hint)) as caught:
        build(f"timm:{name}")
    assert f'no network called "{name}"' in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_timm_refuses_is_repeated(timm):
    with pytest.raises(ModelError, match=r'timm could not build "resnet18\.nonsense": RuntimeError: .*nonsense'):
        build("timm:resnet18.nonsense")


def test_timm_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingExtra, match=re.escape('need timm: pip install "edgewise[timm]"')):
        build("timm:resnet18")


@pytest.mark.parametrize(
    "line", ["raise RuntimeError('operator torchvision::nms does not exist')", "import no_such_dependency"]
)
def test_timm_that_cannot_be_imported_says_why(monkeypatch, tmp_path, line):
    (tmp_path / "timm.py").write_text(line)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "timm", raising=False)
    with pytest.raises(MissingExtra, match="cannot be imported") as caught:
        build("timm:resnet18")
    assert "torchvision::nms" in str(caught.value) or "no_such_dependency" in str(caught.value)
    assert 'pip install "edgewise[timm]"' in str(caught.value)
    assert torch.__version__ in str(caught.value)


# -- the user's own -------------------------------------------------------------------------------------------------

GOOD = """
from torch import nn

def plain():
    return nn.Flatten()

def told(classes, *, channels, size=1):
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * size * size, classes))

def anything(**kwargs):
    net = nn.Identity()
    net.told = kwargs
    return net

class Net(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.fc = nn.Linear(1, classes)

ready = nn.Identity()
three = 3

def number():
    return 3

def nothing():
    pass

def broken(size):
    rows = size
    raise KeyError(f"no\\nrow {rows}")

def demanding(depth):
    return nn.Identity()

def leaves():
    raise SystemExit("bye")
"""


@pytest.fixture
def net(tmp_path) -> Path:
    file = tmp_path / "net.py"
    file.write_text(GOOD)
    return file


def test_a_function_is_given_the_keywords_it_takes(net):
    keywords = {"classes": 5, "channels": 1, "size": 4}
    assert type(build(f"{net}:plain", **keywords)).__name__ == "Flatten"
    assert build(f"{net}:told", **keywords)(torch.zeros(2, 1, 4, 4)).shape == (2, 5)
    assert build(f"{net}:anything", **keywords).told == keywords
    assert build(f"{net}:Net", **keywords).fc.out_features == 5


def test_a_path_relative_to_the_working_folder(net, monkeypatch):
    monkeypatch.chdir(net.parent)
    assert type(build("net.py:plain")).__name__ == "Flatten"


def test_an_edited_file_is_read_again_and_nothing_is_written_beside_it(net):
    net.write_text("from torch import nn\ndef f(): return nn.Linear(1, 3)\n")
    assert build(f"{net}:f").out_features == 3
    net.write_text("from torch import nn\ndef f(): return nn.Linear(1, 4)\n")
    assert build(f"{net}:f").out_features == 4
    assert [path.name for path in net.parent.iterdir()] == ["net.py"]


def test_files_of_one_name_in_two_folders_do_not_meet(tmp_path):
    networks = []
    for width in (3, 4):
        folder = tmp_path / str(width)
        folder.mkdir()
        (folder / "net.py").write_text(f"from torch import nn\ndef f(): return nn.Linear(1, {width})\n")
        networks.append(build(f"{folder / 'net.py'}:f"))
    assert [network.out_features for network in networks] == [3, 4]


def test_a_file_imports_its_neighbours_and_the_path_is_restored(tmp_path):
    (tmp_path / "neighbour_of_net.py").write_text("WIDTH = 6\n")
    (tmp_path / "net.py").write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\nfrom torch import nn\n"
        "from neighbour_of_net import WIDTH\n"
        "@dataclass\nclass Size:\n    width: int = WIDTH\n"
        "def f(): return nn.Linear(1, Size().width)\n"
    )
    before = list(sys.path)
    assert build(f"{tmp_path / 'net.py'}:f").out_features == 6
    assert sys.path == before


def write_network_of_parts(folder, width):
    """Write a network whose file imports a module, a package's module and, through one another, a constant."""
    (folder / "parts").mkdir(parents=True)
    (folder / "net.py").write_text("from parts import layers\ndef f(): return layers.make()\n")
    (folder / "parts" / "__init__.py").write_text("")
    (folder / "parts" / "layers.py").write_text(
        "from torch import nn\nfrom .sizes import WIDTH\ndef make(): return nn.Linear(1, WIDTH)\n"
    )
    (folder / "parts" / "sizes.py").write_text(f"WIDTH = {width}\n")
    (folder / "unrelated.py").write_text("")
    return folder / "net.py"


def test_neighbours_of_one_name_in_two_folders_do_not_meet(tmp_path):
    files = [write_network_of_parts(tmp_path / str(width), width) for width in (3, 4)]
    assert [build(f"{file}:f").out_features for file in (*files, files[0])] == [3, 4, 3]
    assert not list(tmp_path.rglob("*.pyc"))


def test_the_neighbours_that_a_file_needs_are_found(tmp_path):
    file = write_network_of_parts(tmp_path / "mine", 3)
    found = {path.relative_to(file.parent).as_posix() for path in source_files(file)}
    assert found == {"net.py", "parts/__init__.py", "parts/layers.py", "parts/sizes.py"}


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("tolt", r'net\.py has no function called "tolt"; did you mean "told"\?'),
        ("zzzzz", r'net\.py has no function called "zzzzz"; known: Net, anything, '),
        ("three", r'"three" in .*net\.py is of type int; it must be a function'),
        ("ready", r'"ready" in .*net\.py is of type Identity; it must be a function'),
        ("number", r"net\.py:number returned an object of type int; it must return a torch\.nn\.Module"),
        ("nothing", r"net\.py:nothing returned an object of type NoneType; it must return a torch\.nn\.Module"),
        ("broken", r"net\.py:31: KeyError: 'no\\nrow 32'"),
        ("demanding", r"net\.py: TypeError: demanding\(\) missing 1 required positional argument: 'depth'"),
        ("leaves", r"net\.py:37: SystemExit: bye"),
    ],
)
def test_a_function_that_cannot_be_used(net, function, message):
    with pytest.raises(ModelError, match=message) as caught:
        build(f"{net}:{function}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("x = 1\ny = (\n", r"net\.py:2: SyntaxError: '\(' was never closed"),
        ("x = 1\n\nraise ValueError('first\\nsecond')\n", r"net\.py:3: ValueError: first second"),
        ("import no_such_module_at_all\n", r"net\.py:1: ModuleNotFoundError: No module named 'no_such_module_at_all'"),
        ("", r'net\.py has no function called "f"; the file defines none'),
        ("f = None\n", r'net\.py has no function called "f"; the file defines none'),
        ("\0", r"net\.py.*: (SyntaxError|ValueError): source code .*cannot contain null bytes"),
    ],
)
def test_a_file_that_cannot_be_run(tmp_path, source, message):
    (tmp_path / "net.py").write_text(source)
    with pytest.raises(ModelError, match=message) as caught:
        build(f"{tmp_path / 'net.py'}:f")
    assert "\n" not in str(caught.value)


def test_a_file_that_is_missing_or_a_folder(tmp_path):
    (tmp_path / "folder.py").mkdir()
    for name in ("absent.py", "folder.py"):
        with pytest.raises(ModelError, match=rf"no such file: .*{name} \(of the model .*{name}:f\)"):
            build(f"{tmp_path / name}:f")
