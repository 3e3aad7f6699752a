"""How a training measures; that it measures right is in `test_same_numbers.py`."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import pytest
from lightning_fabric import Fabric

from fcos.config import load_config
from fcos.data.annotations import Annotations, Record
from fcos.model.fcos import FCOS
from fcos.train import evaluation
from fcos.weights.model_file import ModelCard


@pytest.mark.parametrize(("batch", "world", "share"), [(8, 1, 8), (8, 2, 4), (8, 3, 2), (1, 2, 1)])
def test_devices_share_the_batch_of_an_evaluation(batch: int, world: int, share: int) -> None:
    fabric = mock.Mock(spec=Fabric, world_size=world, is_global_zero=False)
    image = Record.make(Path("a.jpg"), [], [], 1)
    data = Annotations.from_records([image], ["cat"], source=Path("list"), format="list")
    on_batch = mock.Mock()
    with mock.patch.multiple(evaluation, Predictor=mock.DEFAULT, TorchBackend=mock.DEFAULT) as mocks:
        config, card = load_config({"nbatch_eval": batch}), ModelCard({}, ("cat",), (1,))
        assert evaluation.evaluate(fabric, config, mock.Mock(spec=FCOS), card, data, on_batch) is None
    predict = mocks["Predictor"].return_value.predict_dataset
    predict.assert_called_once_with(data, batch_size=share, on_batch=on_batch, fabric=fabric)
