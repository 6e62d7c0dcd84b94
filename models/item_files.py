"""The item models of a release as a file: written by training, read by rankers, which need not know how they are fitted."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from recsys.item_models import ItemModel, ItemModels

FILE = "item_models.safetensors"


def save_item_models(models: ItemModels, draft: Path) -> None:
    """Write them into a release's folder."""
    arrays: dict[str, NDArray[Any]] = {"refs": models.refs}
    for name, model in models.models.items():
        arrays[f"{name}.starts"], arrays[f"{name}.weights"] = model.starts, model.weights
        arrays[f"{name}.columns"] = model.columns.astype(np.int32)
    save_file(arrays, draft / FILE)


def load_item_models(folder: Path) -> ItemModels:
    """Those of a release."""
    found = load_file(folder / FILE)
    names = sorted({key.rpartition(".")[0] for key in found} - {""})
    return ItemModels(
        found["refs"],
        {
            name: ItemModel(
                found[f"{name}.starts"], found[f"{name}.columns"].astype(np.int64), found[f"{name}.weights"]
            )
            for name in names
        },
    )
