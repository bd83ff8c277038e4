"""Bytes of live tensors, without the tensors: what is made, what goes, what is resized in place."""

from __future__ import annotations

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from scalade.launch.trace.live_bytes import LiveBytes


def test_storages_count_while_they_live():
    live = LiveBytes()
    with FakeTensorMode(), live.counting():
        a = torch.empty(1000)
        assert live.now == 4000
        b = a[:10]  # of the same storage
        del a
        assert live.now == 4000
        c = b.double()
        assert live.now == 4080
        del b, c
        assert (live.now, live.peak) == (0, 4080)


def test_a_storage_that_is_resized_in_place_counts_what_it_has_now():
    """As FSDP frees and takes back gathered parameters."""
    live = LiveBytes()
    with FakeTensorMode(), live.counting():
        a = torch.empty(1000)
        a.untyped_storage().resize_(0)
        assert live.now == 0
        a.untyped_storage().resize_(8000)
        assert (live.now, live.peak) == (8000, 8000)
    assert torch.UntypedStorage.resize_.__name__ == "resize_"


def test_what_backward_needs_stays():
    live = LiveBytes()
    with FakeTensorMode(), live.counting():
        weight = torch.ones(100, 100, requires_grad=True)
        x = torch.ones(50, 100)
        y = (x @ weight).exp()  # its result is kept for the backward pass
        kept = live.now
        loss = y.sum()
        del x, y
        assert live.now >= kept  # all of it is still needed
        loss.backward()
        del loss
        assert live.now == 2 * 100 * 100 * 4  # the weight and its gradient
