"""Reads the index of a prepared dataset: one line per study, without voxels."""

import base64
import json
from collections.abc import Iterator

import numpy as np
from etils import epath

from data_pipelines.datasets.leaks import Entry
from data_pipelines.datasets.reading import STUDIES, read_metadata
from data_pipelines.files import shown


def read_entries(folder: epath.PathLike) -> Iterator[Entry]:
    """Yields the entries of a dataset for the search for leaks.

    Raises:
      DataError: the folder is not a complete dataset.
    """
    path = epath.Path(folder)
    read_metadata(path)
    with (path / STUDIES).open() as lines:
        for line in lines:
            row = json.loads(line)
            yield Entry(
                dataset=shown(path),
                split=row["split"],
                patient_id=row["patient_id"],
                study_id=row["study_id"],
                signature=np.frombuffer(base64.b64decode(row["signature"]), "<f2"),
            )
