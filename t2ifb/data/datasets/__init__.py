"""Preference data sets, one file each.

A class here that has `rankings(split)` and a static `recognises(source)` can be named by its folder or hub id.
"""

from importlib import import_module
from pathlib import Path

from t2ifb.data.rankings import PreferenceDataset
from t2ifb.utils.discovery import classes_with


def open_dataset(source: PreferenceDataset | str | Path) -> PreferenceDataset:
    """A data set from its folder or hub id; objects are returned unchanged.

    Args:
        source: A data set; a folder, of the kind that its files show: ImageRewardDB, HPDv2, Pick-a-Pic or a user's own
            rankings; or the hub id of one of the first three.

    Raises:
        ValueError: No data set, or more than one, recognises it.
    """
    if not isinstance(source, (str, Path)):
        return source
    kinds = classes_with(__name__, Path(__file__).parent, {"rankings": ("split",), "recognises": ("source",)})
    classes = {name: getattr(import_module(module), name) for name, module in kinds.items()}
    found = {name: kind for name, kind in classes.items() if kind.recognises(str(source))}
    if len(found) != 1:
        what = f"could be {' or '.join(found)}" if found else "is not the folder or hub id of a known data set"
        raise ValueError(f"dataset={str(source)!r} {what}; pass an object of one of {', '.join(classes)}")
    (kind,) = found.values()
    dataset: PreferenceDataset = kind(source)
    return dataset
