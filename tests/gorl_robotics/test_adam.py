"""Adam against torch's own class, and what it saves."""

from __future__ import annotations

import copy
import subprocess
import sys

import torch
from torch import Tensor, nn

from gorl_robotics.adam import Adam


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.SiLU(), nn.Linear(5, 2))


def learn(net: nn.Module, adam: Adam | torch.optim.Adam, data: Tensor) -> None:
    net.zero_grad(set_to_none=True)
    net(data).square().mean().backward()
    adam.step()


def test_steps_are_those_of_torch_and_its_saved_moments_are_taken() -> None:
    ours, theirs = network(), network()
    rate, rate_of_theirs = torch.tensor(0.01), torch.tensor(0.01)
    adam = Adam(ours.parameters(), rate)
    reference = torch.optim.Adam(theirs.parameters(), lr=rate_of_theirs, fused=False, foreach=False)
    batches = torch.randn(8, 16, 3)
    for i, data in enumerate(batches[:4]):
        learn(ours, adam, data)
        learn(theirs, reference, data)
        if i == 1:
            rate.mul_(0.5)
            rate_of_theirs.mul_(0.5)
    other = network()
    other.load_state_dict(ours.state_dict())
    continued = Adam(other.parameters(), torch.tensor(1.0))
    continued.load_state_dict(copy.deepcopy(reference.state_dict()))
    assert float(continued.rate) == float(rate)
    for data in batches[4:]:
        learn(ours, adam, data)
        learn(theirs, reference, data)
        learn(other, continued, data)
    for one, two, three in zip(ours.parameters(), theirs.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(three, two, rtol=1e-5, atol=1e-7)


def test_what_is_saved_goes_on_to_the_bit_and_a_fixed_rate_stays() -> None:
    net = network()
    adam = Adam(net.parameters(), 0.01)
    batches = torch.randn(6, 16, 3)
    for data in batches[:3]:
        learn(net, adam, data)
    other = network()
    other.load_state_dict(net.state_dict())
    later = Adam(other.parameters(), 0.01)
    later.load_state_dict(copy.deepcopy(adam.state_dict()))
    for data in batches[3:]:
        learn(net, adam, data)
        learn(other, later, data)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), other.parameters(), strict=True))
    slow = Adam(other.parameters(), 0.5)
    slow.load_state_dict(adam.state_dict())
    assert slow.rate == 0.5


def test_a_parameter_without_a_gradient_stays_and_a_reset_forgets() -> None:
    net = network()
    adam = Adam(net.parameters(), 0.01)
    before = net[2].weight.detach().clone()
    net[0](torch.randn(4, 3)).square().mean().backward()
    adam.step()
    assert torch.equal(net[2].weight, before)
    moments = adam.state_dict()["state"]
    assert float(moments[0]["step"]) == 1
    assert float(moments[2]["step"]) == 0
    adam.reset()
    assert not any(value.any() for each in moments.values() for value in each.values())


def test_torch_compiler_is_not_imported() -> None:
    program = (
        "import sys, torch\n"
        "from gorl_robotics.adam import Adam\n"
        "net = torch.nn.Linear(2, 1)\n"
        "adam = Adam(net.parameters(), 0.1)\n"
        "net(torch.ones(1, 2)).sum().backward()\n"
        "adam.step()\n"
        "assert 'torch._dynamo' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
