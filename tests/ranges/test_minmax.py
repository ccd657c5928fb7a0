import numpy as np
import pytest
import torch
from torch.ao.quantization.observer import MinMaxObserver, PerChannelMinMaxObserver

from qbook.ranges.minmax import minmax


@pytest.mark.parametrize("shift", [-9.0, 0.0, 9.0])
def test_minmax_equals_the_observer_of_torch(shift):
    x = torch.randn(13, 29, generator=torch.Generator().manual_seed(0)) + shift
    observer = MinMaxObserver()
    observer(x)
    low, high = minmax(x)
    assert torch.equal(low, observer.min_val)
    assert torch.equal(high, observer.max_val)


@pytest.mark.parametrize("channel", [0, 1])
def test_minmax_of_an_axis_equals_the_per_channel_observer_of_torch(channel):
    x = torch.randn(13, 29, generator=torch.Generator().manual_seed(0))
    observer = PerChannelMinMaxObserver(ch_axis=channel)
    observer(x)
    low, high = minmax(x, axis=1 - channel)
    assert low.shape == ((13, 1) if channel == 0 else (1, 29))
    assert torch.equal(low.ravel(), observer.min_val)
    assert torch.equal(high.ravel(), observer.max_val)


def test_the_range_is_not_widened_to_contain_zero():
    low, high = minmax(np.array([[2.5, 7.0], [3.0, 4.0]]))
    assert (low, high) == (2.5, 7.0)
