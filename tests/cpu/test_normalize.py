from __future__ import annotations

import pytest
import torch

from fcos.config import load_config
from fcos.cpu.normalize import RowwiseFCOS
from fcos.model.build import build_model


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("order", [torch.channels_last, torch.contiguous_format])
def test_numbers_are_those_of_the_model_to_the_last_bit(
    dtype: torch.dtype, order: torch.memory_format
) -> None:
    model = build_model(load_config({"model": "fcos_r18", "pretrain": False}), 3)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2, 3, 4, 6), dtype=torch.uint8, generator=generator).to(dtype)
    sizes = torch.tensor([[4, 6], [2, 3]])
    wanted = model.normalize(images, sizes)
    model.__class__ = RowwiseFCOS
    given = images.to(memory_format=order, copy=True)
    normal = model.normalize(given, sizes)
    assert normal.is_contiguous(memory_format=order)
    assert torch.equal(normal, wanted)
    assert torch.equal(given, images)  # what was given is not written over
