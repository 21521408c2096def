"""Device names."""

from __future__ import annotations

import pytest
import torch

from gorl_robotics.device import choose_device, prepare_device
from gorl_robotics.errors import InputError


def refused(name: str) -> str:
    with pytest.raises(InputError) as caught:
        choose_device(name)
    text = str(caught.value)
    assert text.startswith(f"device={name!r}: ")
    assert "\n" not in text
    return text


def cuda_devices(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


def test_auto_takes_cuda_if_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda_devices(monkeypatch, 0)
    assert choose_device("auto") == torch.device("cpu")
    cuda_devices(monkeypatch, 1)
    assert choose_device("auto").type == "cuda"
    assert choose_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["gpu", "", "cuda:x", "cuda:-1", "CUDA", "mps", "meta", "0"])
def test_what_is_no_device_is_answered_with_those_there_are(name: str) -> None:
    assert "expected auto, cuda, cuda:N or cpu" in refused(name)


def test_a_device_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda_devices(monkeypatch, 0)
    assert "no CUDA device" in refused("cuda")
    assert "no CUDA device" in refused("cuda:1")
    cuda_devices(monkeypatch, 2)
    assert choose_device("cuda:1") == torch.device("cuda:1")
    assert "has 2 CUDA devices" in refused("cuda:2")


def test_preparing_the_cpu_leaves_the_cores_to_the_physics() -> None:
    before = torch.get_num_threads()
    try:
        assert prepare_device(torch.device("cpu")) == torch.device("cpu")
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.gpu
def test_preparing_cuda_leaves_the_default_stream() -> None:
    before = torch.cuda.current_stream()
    try:
        device = prepare_device(torch.device("cuda"))
        assert device.index is not None
        assert torch.cuda.current_stream() != torch.cuda.default_stream()
    finally:
        torch.cuda.set_stream(before)
