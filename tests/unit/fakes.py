"""Prepared datasets that live in memory."""

import jax
import numpy as np
from etils import epath

from data_pipelines.datasets.records import encode
from data_pipelines.volume import Volume
from m3djax.contracts.evaluator import Subject
from m3djax.inputs.inputs import Inputs
from m3djax.mesh import sharding
from m3djax.params import flatten, unflatten

SIZE = (8, 16, 16)  # of tests.tiny
_AFFINE = np.array([[0, 0, -3.0, 0], [0, -3.0, 0, 0], [3.0, 0, 0, 0], [0, 0, 0, 1]])


class Records(list):
    """What `open_dataset` returns."""

    def __init__(self, records, mask_names=None):
        super().__init__(records)
        self.mask_names = mask_names or {}
        self.label_names = ()


def scan(shape, seed=0):
    """Waves of about -900 to 900 HU with some noise."""
    axes = np.meshgrid(*(np.linspace(0, 3, side) for side in shape), indexing="ij")
    waves = sum(np.sin(axis + seed + number) for number, axis in enumerate(axes))
    noise = np.random.default_rng(seed).normal(size=shape)
    return np.rint(300 * waves + 30 * noise).astype(np.int16)


def record(image, study="S", mask=None, annotated=None):
    volume = Volume(image, "HU", _AFFINE, mask=mask, patient_id=f"P-{study}", study_id=study)
    return encode(volume, annotated=annotated)


def subject(task, params, data, folder, mesh=None):
    """A model that is measured on all devices, as `run.py evaluate` does."""
    mesh = mesh or sharding.make_mesh((-1, 1, 1))
    flat = flatten(params)
    placed = unflatten(jax.device_put(flat, sharding.state_shardings(flat, mesh, task)))
    folder = epath.Path(folder)
    return Subject(task, Inputs().bound(data.spatial()), placed, data, mesh, folder.parent, folder)


def init(task):
    spec = {"image": jax.ShapeDtypeStruct((1, *SIZE, 1), np.int16)}
    return jax.jit(lambda: task.init(jax.random.key(0), spec))()
