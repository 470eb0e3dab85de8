"""The running average of weights."""

import pytest
import torch

from harness.study.average import WeightAverage


def network():
    made = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.zero_()
    return made


def set_to(made, value):
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.fill_(value)
        made[1].running_mean.fill_(value)
        made[1].num_batches_tracked += 1


def test_the_average_of_constant_weights_is_constant_and_independent_of_the_start():
    made = network()
    average = WeightAverage(made, 0.9)
    for step in range(1, 200):
        set_to(made, 5.0)
        average.update(step)
    state = average.state()
    assert state["0.weight"] == pytest.approx(torch.full((3, 2), 5.0), rel=1e-6)
    assert state["1.running_mean"] == pytest.approx(torch.full((3,), 5.0), rel=1e-6)
    assert state["1.num_batches_tracked"] == 199


def test_noise_of_the_last_steps_averages_out():
    made, noise = network(), torch.Generator().manual_seed(0)
    average = WeightAverage(made, 0.99)
    for step in range(1, 3000):
        set_to(made, 1 + float(torch.randn((), generator=noise)))
        average.update(step)
    spread = abs(float(average.state()["0.bias"][0]) - 1)
    assert spread < 5 * (0.01 / 1.99) ** 0.5  # five sigma of an exponential average


def test_without_decay_the_average_is_the_latest_weights():
    made = network()
    average = WeightAverage(made, 0.0)
    set_to(made, 2.0)
    average.update(1)
    assert torch.equal(average.state()["0.weight"], made[0].weight)


def test_the_weights_of_the_network_are_restored_after_an_error():
    made = network()
    average = WeightAverage(made, 0.99)
    set_to(made, 7.0)
    seen = []

    def evaluate():
        with average.applied():
            seen.append(made[0].bias[0].item())
            raise RuntimeError

    with pytest.raises(RuntimeError):
        evaluate()
    assert seen == [0.0]
    assert made[0].bias[0].item() == 7.0


def test_a_restored_average_continues_bit_by_bit():
    made = network()
    whole = WeightAverage(made, 0.95)
    set_to(made, 3.0)
    whole.update(1)
    other = WeightAverage(made, 0.95)
    other.restore({name: value.clone() for name, value in whole.state().items()})
    set_to(made, 4.0)
    whole.update(2)
    other.update(2)
    assert all(torch.equal(value, other.state()[name]) for name, value in whole.state().items())
