"""The flow decoder against slow references: a plain Euler loop, a loss computed row by row."""

from __future__ import annotations

import math

import pytest
import torch

from gorl_robotics.flow import FlowDecoder


def decoder(steps: int = 10) -> FlowDecoder:
    """A decoder with random weights everywhere and statistics of its own."""
    torch.manual_seed(0)
    made = FlowDecoder(3, 2, [16, 16], steps)
    for parameter in made.network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    made.normaliser.update(5 + 2 * torch.randn(100, 3))
    return made


def test_is_the_identity_at_first() -> None:
    made = FlowDecoder(3, 2, [16, 16], 10)
    z = torch.randn(50, 2)
    assert torch.equal(made(100 * torch.randn(50, 3), z), z)


def test_restart_makes_it_the_identity_again_in_place() -> None:
    made = decoder()
    z, observation = torch.randn(50, 2), torch.randn(50, 3)
    assert not torch.allclose(made(observation, z), z, atol=0.01)
    storage = [value.data_ptr() for value in made.state_dict().values()]
    made.restart()
    assert torch.equal(made(observation, z), z)
    assert [value.data_ptr() for value in made.state_dict().values()] == storage


def test_decoding_is_euler_steps_along_the_velocity() -> None:
    for steps in (1, 3, 10):
        made = decoder(steps)
        observation, z = 5 + 2 * torch.randn(7, 3), torch.randn(7, 2)
        x = z
        for k in range(steps):
            t = torch.full((7, 1), 1 - k / steps)
            x = x - made.velocity(made.normaliser(observation), x, t) / steps
        torch.testing.assert_close(made(observation, z), x, rtol=1e-5, atol=1e-5)


def test_velocity_sees_observation_position_and_time() -> None:
    made = decoder()
    observation, x, t = torch.randn(1, 3), torch.randn(1, 2), torch.tensor([[0.3]])
    inputs = [*observation[0].tolist(), *x[0].tolist()]
    angles = [0.3 * math.pi / 2 * k for k in (1, 2, 4, 8)]
    inputs += [math.cos(a) for a in angles] + [math.sin(a) for a in angles]
    torch.testing.assert_close(made.velocity(observation, x, t), made.network(torch.tensor([inputs])))


def test_loss_is_the_mean_squared_velocity_error() -> None:
    made = decoder()
    observation, action, noise = torch.randn(5, 3), torch.randn(5, 2), torch.randn(5, 2)
    t = torch.tensor([[0.0], [0.25], [0.5], [0.9], [1.0]])
    total = 0.0
    for row in range(5):
        now = float(t[row])
        x = [now * float(noise[row, i]) + (1 - now) * float(action[row, i]) for i in range(2)]
        velocity = made.velocity(observation[row : row + 1], torch.tensor([x]), t[row : row + 1])[0].tolist()
        for i in range(2):
            total += (velocity[i] - (float(noise[row, i]) - float(action[row, i]))) ** 2
    torch.testing.assert_close(made.loss(observation, action, t, noise), torch.tensor(total / 10))


def test_the_path_runs_from_noise_at_1_to_the_action_at_0() -> None:
    # A velocity that is right everywhere, ε - a for the pair at hand, takes z = ε to a in any number of steps.
    made = FlowDecoder(1, 1, [4], 7)
    action, z = 0.75, torch.tensor([[-1.5]])
    torch.nn.init.constant_(made.network[-1].bias, float(z) - action)
    torch.testing.assert_close(made(torch.zeros(1, 1), z), torch.tensor([[action]]))
    for t in (0.0, 0.4, 1.0):
        pair = (torch.zeros(1, 1), torch.tensor([[action]]), torch.tensor([[t]]), z)
        assert made.loss(*pair).item() < 1e-12


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("rows", "size", "hidden"),
    [(1000, 1, [32, 32]), (33, 17, [64] * 4), (4096, 6, [64] * 4), (1, 2, [16, 16]), (50, 3, [20, 48])],
)
def test_decoding_on_cuda_equals_the_cpus(rows: int, size: int, hidden: list[int]) -> None:
    # The last case has widths that the fused kernel does not take.
    torch.manual_seed(0)
    made = FlowDecoder(5, size, hidden, 10)
    for parameter in made.network[-1].parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    made.normaliser.update(5 + 2 * torch.randn(100, 5))
    observation, z = 5 + 2 * torch.randn(rows, 5), torch.randn(rows, size)
    with torch.no_grad():
        expected = made(observation, z)
        on_gpu = made.cuda()(observation.cuda(), z.cuda()).cpu()
    assert (expected - z).abs().mean() > 0.1
    torch.testing.assert_close(on_gpu, expected, rtol=1e-4, atol=1e-4)
