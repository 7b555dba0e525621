import pytest
import torch

from edgewise.train.randomness import mixed_seed, reproducible, seed_global

CPU = torch.device("cpu")


def test_seeds_differ_along_every_path() -> None:
    paths = [(seed, stream, epoch) for seed in range(5) for stream in range(3) for epoch in range(20)]
    assert len({mixed_seed(*path) for path in paths}) == len(paths)


def test_a_seed_is_the_same_every_time() -> None:
    assert mixed_seed(3, 1, 2) == mixed_seed(3, 1, 2)


def test_a_negative_seed_is_refused() -> None:
    with pytest.raises(ValueError, match="seed is -1"):
        mixed_seed(-1)


def draw_and_fail() -> None:
    with reproducible(CPU):
        assert torch.backends.cudnn.deterministic
        assert not torch.backends.cudnn.benchmark
        seed_global(7, CPU)
        torch.rand(3)
        raise RuntimeError("inside")


def test_the_callers_random_numbers_and_flags_come_back_even_after_an_error() -> None:
    cudnn = torch.backends.cudnn
    before, flags = torch.get_rng_state(), (cudnn.deterministic, cudnn.benchmark)
    with pytest.raises(RuntimeError, match="inside"):
        draw_and_fail()
    assert torch.equal(torch.get_rng_state(), before)
    assert (cudnn.deterministic, cudnn.benchmark) == flags


def test_the_global_generator_follows_the_seed() -> None:
    with reproducible(CPU):
        seed_global(7, CPU)
        first = torch.rand(3)
        seed_global(7, CPU)
        assert torch.equal(torch.rand(3), first)
