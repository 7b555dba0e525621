import pickle
import re
from collections import OrderedDict

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from edgewise.errors import ModelError
from edgewise.models import load_pretrained, load_weights


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))


@pytest.fixture
def trained() -> nn.Sequential:
    """A network whose every tensor differs from a fresh one's."""
    torch.manual_seed(7)
    model = network()
    for tensor in model.state_dict().values():
        tensor.copy_(torch.rand(tensor.shape) + 2)
    return model


def assert_equal_states(model: nn.Module, expected: dict[str, torch.Tensor]) -> None:
    state = model.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[key], expected[key]) for key in state)


@pytest.mark.parametrize("suffix", [".pth", ".th", ".pt", ".pth.tar", ".bin"])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3, "best": 0.9},
        lambda state: {"model": state},
        lambda state: {f"module.{key}": tensor for key, tensor in state.items()},
        lambda state: {"state_dict": OrderedDict((f"_orig_mod.module.{k}", t) for k, t in state.items())},
    ],
)
def test_what_torch_saves_is_loaded(tmp_path, trained, wrap, suffix):
    torch.save(wrap(trained.state_dict()), tmp_path / f"w{suffix}")
    assert_equal_states(load_weights(network(), tmp_path / f"w{suffix}"), trained.state_dict())


def test_safetensors_are_loaded(tmp_path, trained):
    save_file(trained.state_dict(), tmp_path / "w.safetensors")
    assert_equal_states(load_weights(network(), str(tmp_path / "w.safetensors")), trained.state_dict())


def test_the_network_itself_is_left_as_it_was(tmp_path, trained):
    torch.save(trained.state_dict(), tmp_path / "w.pth")
    model = network().eval()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    loaded = load_weights(model, tmp_path / "w.pth")
    assert_equal_states(model, before)
    assert not loaded.training
    assert {t.data_ptr() for t in loaded.parameters()}.isdisjoint(t.data_ptr() for t in model.parameters())


def test_old_files_lack_the_batch_counters(tmp_path, trained):
    state = {key: t for key, t in trained.state_dict().items() if not key.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "w.pth")
    loaded = load_weights(network(), tmp_path / "w.pth").state_dict()
    assert all(torch.equal(loaded[key], state[key]) for key in state)
    assert loaded["1.num_batches_tracked"] == 0


def test_a_network_whose_own_names_begin_with_module_keeps_them(tmp_path):
    wrapped = nn.Sequential(OrderedDict(module=nn.Linear(2, 2)))
    torch.save(wrapped.state_dict(), tmp_path / "w.pth")
    assert_equal_states(load_weights(wrapped, tmp_path / "w.pth"), wrapped.state_dict())


def test_numbers_are_converted_to_the_networks_type(tmp_path, trained):
    torch.save({key: tensor.half() for key, tensor in trained.state_dict().items()}, tmp_path / "w.pth")
    loaded = load_weights(network(), tmp_path / "w.pth")
    assert loaded[0].weight.dtype == torch.float32
    assert torch.equal(loaded[0].weight, trained[0].weight.half().float())


@pytest.mark.parametrize("to_linear", [True, False])
def test_a_linear_layer_and_a_one_by_one_convolution_are_the_same_matrix(tmp_path, to_linear):
    conv, linear = nn.Conv2d(3, 4, 1), nn.Linear(3, 4)
    source, target = (conv, linear) if to_linear else (linear, conv)
    torch.save(source.state_dict(), tmp_path / "w.pth")
    assert torch.equal(load_weights(target, tmp_path / "w.pth").weight.flatten(), source.weight.flatten())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("3.bias"), r"1 missing \(3\.bias\)"),
        (lambda s: [s.pop(k) for k in list(s)[:5]], r"5 missing \(0\.weight, 1\.weight, 1\.bias, \.\.\.\)"),
        (lambda s: s.update(extra=torch.zeros(1)), r"1 unexpected \(extra\)"),
        (
            lambda s: s.update({"3.weight": torch.zeros(5, 4)}),
            r"1 of another shape \(3\.weight \[5, 4\] for \[2, 4\]\)",
        ),
        (lambda s: s.update({"3.weight": torch.zeros(4, 2)}), r"3\.weight \[4, 2\] for \[2, 4\]"),
        (lambda s: s.update({"0.weight": torch.zeros(4, 3, 3, 3)}), r"0\.weight \[4, 3, 3, 3\] for \[4, 3, 1, 1\]"),
        (lambda s: s["1.running_var"].fill_(torch.nan), r"1 not finite \(1\.running_var\)"),
        (lambda s: s.update({"3.bias": torch.tensor([1e300, 0], dtype=torch.float64)}), r"1 not finite \(3\.bias\)"),
        (
            lambda s: (s.pop("0.weight"), s.update(a=torch.zeros(1), b=torch.zeros(1))),
            r"1 missing \(0\.weight\), 2 unexpected \(a, b\); build it with",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(tmp_path, trained, change, message):
    state = dict(trained.state_dict())
    change(state)
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(ModelError, match=message) as caught:
        load_weights(network(), tmp_path / "w.pth")
    assert "w.pth do not fit the network" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_classifier_of_other_classes_is_left_as_it_is_where_that_is_asked_for(tmp_path, trained):
    state = dict(trained.state_dict()) | {"3.weight": torch.zeros(5, 4), "3.bias": torch.zeros(5)}
    torch.save(state, tmp_path / "w.pth")
    own = network()
    loaded, kept = load_pretrained(own, tmp_path / "w.pth", 2)
    assert kept == "3"
    assert_equal_states(loaded[:3], trained[:3].state_dict())
    assert_equal_states(loaded[3], own[3].state_dict())

    torch.save(state | {"3.weight": torch.zeros(5, 3)}, tmp_path / "w.pth")
    with pytest.raises(ModelError, match="2 of another shape"):
        load_pretrained(own, tmp_path / "w.pth", 2)
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(ModelError, match="2 of another shape"):
        load_pretrained(own, tmp_path / "w.pth", 10)  # a layer of other outputs than classes is no classifier
    torch.save(state | {"0.weight": torch.zeros(9, 3, 1, 1)}, tmp_path / "w.pth")
    with pytest.raises(ModelError, match="3 of another shape"):
        load_pretrained(own, tmp_path / "w.pth", 2)


class Pickled:
    """An object that only a pickle can hold."""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": Pickled()}, r"holds a Python object \(.*Pickled\), and only tensors are read"),
        (nn.Linear(2, 2), r"holds a Python object \(torch\.nn\.modules\.linear\.Linear\)"),
        (torch.zeros(3), r"holds an object of type Tensor, not weights by name"),
        ([torch.zeros(3)], r"holds an object of type list, not weights by name"),
        ({"epoch": 3, "net": {"a": torch.zeros(1)}}, r"holds more than tensors: epoch, net;"),
        ({0: torch.zeros(1)}, r"holds more than tensors: 0;"),
        ({}, r"holds no weights"),
        ({"state_dict": {}}, r"holds no weights"),
    ],
)
def test_a_file_of_something_else_is_refused(tmp_path, content, message):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(ModelError, match=message) as caught:
        load_weights(network(), tmp_path / "w.pth")
    assert str(tmp_path / "w.pth") in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
@pytest.mark.parametrize("content", [b"", b"# A text\n", b"\x80\x02", b"PK\x03\x04 not a zip", pickle.dumps(Pickled())])
def test_a_file_that_is_no_weights_file_is_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError, match=rf"{re.escape(name)} (is not a weights file|holds a Python object)") as caught:
        load_weights(network(), tmp_path / name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_half_a_file_is_refused(tmp_path, trained, name):
    file = tmp_path / name
    (save_file if name.endswith(".safetensors") else torch.save)(trained.state_dict(), file)
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(ModelError, match="is not a weights file, or is damaged"):
        load_weights(network(), file)


def test_a_file_that_is_missing_or_a_folder(tmp_path):
    for path in (tmp_path / "absent.pth", tmp_path):
        with pytest.raises(ModelError, match=f"no such weights file: {path}"):
            load_weights(network(), path)
