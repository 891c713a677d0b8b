"""Unit vectors of volumes and of their texts: computed once per checkpoint and split, and kept."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import json
import logging
import zipfile
from collections.abc import Mapping
from typing import Self

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int, UInt8

from data_pipelines.datasets import open_dataset
from data_pipelines.files import write_whole
from data_pipelines.pipeline import Data, Source
from m3djax import serialize, sharding
from m3djax.augment import Window
from m3djax.evaluate.fingerprint import fingerprint
from m3djax.params import Params
from m3djax.tasks.clip import Clip

log = logging.getLogger(__name__)
_SIDE = 96  # pixels of a small slice at most


@dataclasses.dataclass(frozen=True, eq=False)
class Pairs:
    """Volumes of a split with their texts, row by row.

    Attributes:
      images: unit vectors.
      texts: unit vectors.
      text_id: equal for equal captions.
      patient: number of the patient within the split.
      record: number of the record in the split.
      crop: number of the crop of the record.
      region: of its record, one input large, that the middle of the crop lies in.
      token_ids: of the caption.
      text_mask: where it has a token.
      middle: the middle axial slice of the volume, small, 0..255.
      without: samples that were left out, as they have no text.
    """

    images: Float[np.ndarray, "n f"]
    texts: Float[np.ndarray, "n f"]
    text_id: Int[np.ndarray, " n"]
    patient: Int[np.ndarray, " n"]
    record: Int[np.ndarray, " n"]
    crop: Int[np.ndarray, " n"]
    region: Int[np.ndarray, " n"]
    token_ids: Int[np.ndarray, "n l"]
    text_mask: Bool[np.ndarray, "n l"]
    middle: UInt8[np.ndarray, "n h w"]
    without: int

    def __len__(self) -> int:
        """How many there are."""
        return len(self.text_id)

    def take(self, rows: Int[np.ndarray, " k"]) -> Self:
        """Some of them."""
        arrays = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        without = arrays.pop("without")
        return type(self)(**{n: a[rows] for n, a in arrays.items()}, without=without)


def read_pairs(
    task: Clip,
    params: Params,
    data: Data,
    source: Source,
    folder: epath.Path,
    *,
    crops: int = 1,
    seed: int = 0,
) -> Pairs:
    """All pairs of a split; from `folder` if they are there for the same everything.

    The batch is split over the devices of the current mesh; without one, over all of this process.

    Args:
      task: the towers.
      params: theirs.
      data: how samples are cut and tokenised.
      source: dataset, split and part.
      folder: where the vectors are kept; those of other parameters are removed from it.
      crops: crops of every record.
      seed: where they are cut.

    Raises:
      DataError: the dataset cannot be read.
    """
    mesh = jax.sharding.get_mesh()
    if mesh.empty:
        mesh = sharding.make_mesh((-1, 1, 1), jax.local_devices())
        params = jax.device_put(params, NamedSharding(mesh, P()))
    with jax.set_mesh(mesh):
        weights = f"{int(fingerprint(params)):08x}"
        file = folder / f"pairs-{weights}-{_key(task, data, source, crops, seed)}.npz"
        if (kept := _load(file)) is not None:
            return kept
        pairs = _compute(task, params, data, source, mesh, crops, seed)
    content = io.BytesIO()
    np.savez(content, **dataclasses.asdict(pairs))
    write_whole(file, content.getvalue())
    for old in folder.glob("pairs-*.npz"):
        if not old.name.startswith(f"pairs-{weights}-"):
            old.unlink()
    return pairs


def _compute(
    task: Clip,
    params: Params,
    data: Data,
    source: Source,
    mesh: jax.sharding.Mesh,
    crops: int,
    seed: int,
) -> Pairs:
    where = sharding.batch_sharding(mesh)
    kept = ("text_id", "record", "crop", "place", "token_ids", "text_mask")
    parts: list[dict[str, np.ndarray]] = []
    without = 0
    for batch in data.examine(source, crops, seed):
        fields = {name: batch[name] for name in ("image", "scale", "offset", *kept)}
        vectors = embed(task, params, jax.device_put(fields, where))
        rows = batch["counts"] & batch["report_valid"]
        without += int(np.sum(batch["counts"] & ~batch["report_valid"]))
        arrays = vectors | {name: batch[name] for name in kept}
        parts.append({name: np.asarray(array)[rows] for name, array in arrays.items()})
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    places = np.column_stack([joined["record"], joined.pop("place") // np.array(data.size)])
    region = np.unique(places, axis=0, return_inverse=True)[1]
    records = open_dataset(source.path, source.split, lazy=True)
    numbers, row = np.unique(joined["record"], return_inverse=True)
    patients = [records[int(number)]["patient_id"] for number in numbers]
    patient = np.unique(patients, return_inverse=True)[1][row] if patients else row
    return Pairs(**joined, patient=patient, region=region, without=without)


# Compiled once for equal tasks, also when it is called again and again during training.
@functools.partial(jax.jit, static_argnums=0)
def embed(task: Clip, params: Params, batch: Mapping[str, Array]) -> dict[str, Array]:
    """Unit vectors of the images and texts of a batch, and the images' middle slices."""
    unused = jax.random.split(jax.random.key(0), len(batch["image"]))  # for augmentation only
    images = task.intensity(batch, unused, train=False)
    return {
        "images": task.embed_images(params, images),
        "texts": task.embed_texts(params, batch["token_ids"], batch["text_mask"]),
        "middle": _small_slices(task.intensity.window, images),
    }


def _small_slices(window: Window, images: Float[Array, "b d h w 1"]) -> UInt8[Array, "b y x"]:
    """Middle axial slices of windowed volumes, black to white over the window."""
    b, d, h, w, _ = images.shape
    shrink = max(h, w, _SIDE) / _SIDE
    small = (b, max(round(h / shrink), 1), max(round(w / shrink), 1))
    slices = jax.image.resize(images[:, d // 2, :, :, 0], small, "linear")
    shade = (window.inverse(slices) - window.low) / (window.high - window.low)
    return jnp.clip(jnp.round(255 * shade), 0, 255).astype(jnp.uint8)


def _key(task: Clip, data: Data, source: Source, crops: int, seed: int) -> str:
    """Of everything but the parameters that the vectors depend on."""
    free = ("sources", "batch_size", "workers", "buffer", "cache_gb")
    reading = {n: v for n, v in serialize.to_json(data).items() if n not in free}
    metadata = open_dataset(source.path, source.split, lazy=True).metadata
    parts = [serialize.to_json(task), reading, metadata, source.split, source.part, crops, seed]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _load(file: epath.Path) -> Pairs | None:
    """What was kept; None if nothing was, or it is damaged."""
    if not file.exists():
        return None
    try:
        with np.load(io.BytesIO(file.read_bytes()), allow_pickle=False) as arrays:
            content = dict(arrays)
        return Pairs(**content | {"without": int(content["without"])})
    except (ValueError, OSError, KeyError, TypeError, zipfile.BadZipFile) as error:
        log.warning("%s: is damaged (%s): computed again", file, error)
        return None
