"""Captured functions: on the CPU the function itself; on CUDA an effect exactly once per call."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
import torch

from gorl_robotics.graphs import captured


def test_on_the_cpu_it_is_the_function_itself() -> None:
    def function() -> None:
        pass

    assert captured(function, torch.device("cpu")) is function
    assert captured(function, torch.device("cpu"), [torch.Generator()]) is function


@pytest.fixture
def cuda() -> Iterator[torch.device]:
    """A device whose current stream can be captured."""
    with torch.cuda.stream(torch.cuda.Stream()):
        yield torch.device("cuda")
        torch.cuda.synchronize()


@pytest.mark.gpu
def test_every_call_has_its_effect_once(cuda: torch.device) -> None:
    # Two eager calls, one that captures, then replays.
    count, python_calls = torch.zeros((), device=cuda), []

    def function() -> None:
        python_calls.append(None)
        count.add_(1)

    call = captured(function, cuda)
    for expected in range(1, 8):
        call()
        assert float(count) == expected
    assert len(python_calls) == 3
    assert gc.isenabled()


@pytest.mark.gpu
def test_inputs_are_read_and_results_left_in_place(cuda: torch.device) -> None:
    x, y = torch.zeros(4, device=cuda), torch.zeros(4, device=cuda)
    call = captured(lambda: y.copy_(x * x + x), cuda)  # type: ignore[arg-type, return-value]
    for k in range(6):
        x.fill_(float(k))
        call()
        assert y.tolist() == [float(k * k + k)] * 4


@pytest.mark.gpu
def test_random_numbers_are_new_in_every_call_and_those_of_the_eager_function(cuda: torch.device) -> None:
    drawn = torch.zeros(1000, device=cuda)

    def run(seed: int, capture: bool) -> list[torch.Tensor]:
        generator = torch.Generator(cuda).manual_seed(seed)

        def draw() -> None:
            drawn.normal_(generator=generator)

        call, draws = captured(draw, cuda, [generator]) if capture else draw, []
        for _ in range(7):
            call()
            draws.append(drawn.clone())
        return draws

    draws = run(0, capture=True)
    assert len({float(values[0]) for values in draws}) == 7
    for i, values in enumerate(draws):
        assert abs(float(values.mean())) < 0.2
        assert all(abs(float((values * other).mean())) < 0.2 for other in draws[:i])  # nor correlated
    again, eager = run(0, capture=True), run(0, capture=False)
    assert all(torch.equal(a, b) for a, b in zip(draws, again, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(draws, eager, strict=True))
    assert not torch.equal(draws[0], run(1, capture=True)[0])


@pytest.mark.gpu
def test_a_generator_may_be_seeded_anew_between_calls(cuda: torch.device) -> None:
    # As an evaluation does, so that each one meets the same noise.
    drawn, generator = torch.zeros(100, device=cuda), torch.Generator(cuda)
    call = captured(lambda: drawn.normal_(generator=generator), cuda, [generator])  # type: ignore[arg-type, return-value]
    results = []
    for _ in range(3):
        generator.manual_seed(7)
        runs = []
        for _ in range(4):
            call()
            runs.append(drawn.clone())
        results.append(torch.stack(runs))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.gpu
def test_two_graphs_share_a_generator(cuda: torch.device) -> None:
    a, b, generator = torch.zeros(100, device=cuda), torch.zeros(100, device=cuda), torch.Generator(cuda)
    calls = [
        captured(lambda t=t: t.normal_(generator=generator), cuda, [generator])  # type: ignore[misc, arg-type]
        for t in (a, b)
    ]
    seen = set()
    for _ in range(6):
        for call in calls:
            call()
        seen |= {float(a[0]), float(b[0])}
    assert len(seen) == 12


@pytest.mark.gpu
def test_a_gradient_step_is_taken_once_per_call(cuda: torch.device) -> None:
    weight = torch.nn.Parameter(torch.tensor(3.0, device=cuda))
    rate = torch.tensor(0.1, device=cuda)
    optimizer = torch.optim.SGD([weight], lr=rate)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        (0.5 * weight.square()).backward()
        with torch.no_grad():
            weight.sub_(rate * weight.grad)  # type: ignore[operator]

    call = captured(step, cuda)
    for k in range(1, 7):
        call()
        assert float(weight.detach()) == pytest.approx(3.0 * 0.9**k, rel=1e-5)
