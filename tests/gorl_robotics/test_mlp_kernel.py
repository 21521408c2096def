"""Fused networks: the mathematics in Triton's interpreter where there is Triton, the real kernels on a GPU."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from gorl_robotics.config import Config
from gorl_robotics.flow import FlowDecoder
from gorl_robotics.methods import make
from gorl_robotics.networks import fits_critic_kernel, fits_kernel, mlp
from gorl_robotics.policy import Policy


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton comes with torch for CUDA only")
def test_kernels_interpreted_give_torchs_values_and_gradients() -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    environment["TRITON_INTERPRET"] = "1"  # read when a kernel is defined
    command = [sys.executable, str(Path(__file__).with_name("kernels.py"))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_what_is_on_the_cpu_does_not_fit() -> None:
    assert not fits_kernel(mlp(15, [64, 64, 64], 8))
    assert not fits_critic_kernel(mlp(15, [256, 256, 256], 1))


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("inputs", "hidden", "outputs", "fits"),
    [
        (15, [64, 64, 64], 8, True),
        (128, [16, 16], 64, True),
        (129, [64, 64], 8, False),
        (15, [64, 64], 65, False),
        (15, [64, 32], 8, False),
        (15, [48, 48], 8, False),
        (15, [64], 8, False),
        (15, [], 8, False),
    ],
)
def test_which_networks_fit(inputs: int, hidden: list[int], outputs: int, fits: bool) -> None:
    network: nn.Sequential = mlp(inputs, hidden, outputs).cuda()
    assert fits_kernel(network) == fits
    assert not fits_kernel(network.double())


# On a GPU each size is compiled for several seconds: those of real tasks, the others are the interpreter's.
@pytest.mark.gpu
@pytest.mark.parametrize(("inputs", "outputs", "rows"), [(27, 4, 40_001), (96, 21, 300)])
def test_a_network_gives_torchs_values_and_gradients(inputs: int, outputs: int, rows: int) -> None:
    from kernels import check_mlp

    check_mlp(inputs, [64] * 4, outputs, rows, "cuda")


@pytest.mark.gpu
@pytest.mark.parametrize(("inputs", "size", "rows"), [(15, 4, 8192), (67, 21, 1000)])
def test_a_policys_minibatch_gives_torchs_terms_and_gradients(inputs: int, size: int, rows: int) -> None:
    from kernels import check_policy

    check_policy(inputs, [64] * 3, size, rows, "cuda")


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("inputs", "hidden", "rows", "programs"),
    [(15, [256] * 3, 8192, 32), (67, [256] * 3, 1000, 132), (128, [128] * 2, 300, 2), (30, [64] * 4, 77, 4)],
)
def test_a_critics_minibatch_gives_torchs_error_and_gradients(
    inputs: int, hidden: list[int], rows: int, programs: int
) -> None:
    from kernels import check_critic, check_rounded_critic

    check_critic(inputs, hidden, rows, programs, "cuda")
    check_rounded_critic(inputs, hidden, rows, programs, "cuda")


@pytest.mark.gpu
@pytest.mark.parametrize(("observation", "size", "rows"), [(15, 4, 65_536), (67, 21, 1000)])
def test_a_decoder_gives_torchs_loss_and_gradients(observation: int, size: int, rows: int) -> None:
    from kernels import check_decoder

    check_decoder(observation, size, rows, "cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("decoder_hidden", [None, [64] * 4])
@pytest.mark.parametrize(("observation", "size", "rows"), [(15, 4, 4224), (67, 21, 1000), (15, 4, 16_512)])
def test_an_act_gives_torchs_sample(observation: int, size: int, rows: int, decoder_hidden: list[int] | None) -> None:
    from kernels import check_act

    check_act(observation, size, [64] * 3, decoder_hidden, rows, "cuda")


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("size", "hidden", "fits"),
    [(4, [64] * 6, True), (21, [128] * 2, True), (4, [64] * 7, False), (4, [128] * 3, False), (4, [64, 32], False)],
)
def test_a_path_that_fits_gives_torchs_end(size: int, hidden: list[int], fits: bool) -> None:
    from kernels import check_bounded_path, check_path

    assert FlowDecoder(15, size, hidden, 10).cuda().path_fits_kernel() == fits
    if fits:
        check_path(15, size, hidden, 300, "cuda")
        check_bounded_path(15, size, hidden, 300, "cuda")


@pytest.mark.gpu
def test_a_step_is_stored_where_it_belongs() -> None:
    from kernels import check_store

    check_store("cuda")


@pytest.mark.gpu
def test_rate_and_entropy_are_adapted_as_on_a_cpu() -> None:
    from kernels import ADAPTS, check_adapt

    for case in ADAPTS:
        check_adapt(*case, "cuda")


@pytest.mark.gpu
def test_gradients_are_clipped_as_by_torch() -> None:
    from kernels import NORMS, check_clip

    for norm in NORMS:
        check_clip(norm, 64, "cuda")
        check_clip(norm, 256, "cuda")


@pytest.mark.gpu
def test_equal_inputs_give_equal_gradients() -> None:
    from gorl_robotics.mlp_kernel import mlp as fused

    torch.manual_seed(0)
    network, x = mlp(27, [64] * 4, 4).cuda(), torch.randn(40_000, 27, device="cuda")
    parameters = list(network.parameters())
    first, second = (torch.autograd.grad(fused(network, x).square().mean(), parameters) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("inputs", "hidden", "outputs", "fits"),
    [
        (15, [256] * 3, 1, True),
        (128, [64] * 2, 1, True),
        (129, [256] * 3, 1, False),
        (15, [256] * 3, 2, False),
        (15, [257] * 2, 1, False),
        (15, [256, 128], 1, False),
        (15, [256], 1, False),
        (15, [], 1, False),
    ],
)
def test_which_critics_fit(inputs: int, hidden: list[int], outputs: int, fits: bool) -> None:
    critic = mlp(inputs, hidden, outputs).cuda()
    assert fits_critic_kernel(critic) == fits
    assert not fits_critic_kernel(critic.double())


@pytest.mark.gpu
def test_a_policys_gradients_are_those_of_its_loss() -> None:
    torch.manual_seed(0)
    config = Config()
    policy = make(config, 15, 4).cuda()
    sizes = {"observation": (15,), "latent": (4,), "log_prob": (), "advantage": ()}
    buffers = {name: torch.randn(500, *size, device="cuda") for name, size in sizes.items()}
    buffers["log_prob"] -= 6
    rows, weights = torch.randperm(500, device="cuda")[:300], torch.tensor([0.01, 0.1, 0.2], device="cuda")
    terms = policy.gradients(buffers, rows, config.ppo, weights)
    gradients = [parameter.grad for parameter in policy.trained.parameters()]
    expected = Policy.gradients(policy, buffers, rows, config.ppo, weights)
    torch.testing.assert_close(tuple(terms), tuple(expected), rtol=1e-4, atol=1e-5)
    for gradient, parameter in zip(gradients, policy.trained.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-3, atol=1e-5)
