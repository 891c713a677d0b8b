"""A tiny model, a scan, and the dataset that stores the preprocessing of scans."""

from __future__ import annotations

from pathlib import Path

import jax
import nibabel as nib
import numpy as np
import pytest

from data_pipelines.captions.questions import MaskQuestions
from data_pipelines.fields.image import Image
from data_pipelines.fields.text import Text
from data_pipelines.pipeline import Data, Source
from data_pipelines.prepare import Prepare
from data_pipelines.text.dialogue import DialogueTokens
from data_pipelines.text.llm_tokenizer import PLAIN, SPECIAL
from m3djax import params as params_lib
from m3djax.convert.new_tokens import grow
from m3djax.experiment import Experiment
from m3djax.models.projectors import Projector
from m3djax.runs import weights
from m3djax.tasks.vision_language import VisionLanguage
from tests import tiny, tiny_llm

ORGAN = (slice(8, 20), slice(12, 18), slice(9, 15))
"""Of the scan's own voxels: bright."""
# Axes run to the left, to inferior and, oblique, to posterior and superior.
AFFINE = np.array(
    [[-3.0, 0.0, 0.0, 40.0], [0.0, 0.84, -2.88, 25.0], [0.0, -2.88, -0.84, 90.0], [0, 0, 0, 1]]
)


@pytest.fixture(scope="session")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A body of 40 HU in air, with a bright organ; 36 x 30 x 24 voxels."""
    rng = np.random.default_rng(0)
    array = np.full((36, 30, 24), -1000.0)
    array[4:30, 5:25, 4:20] = 40
    array[ORGAN] = 400
    array += rng.normal(0, 8, array.shape)
    folder = tmp_path_factory.mktemp("scans")
    path = folder / "patient.nii.gz"
    nib.save(nib.Nifti1Image(np.rint(array).astype(np.int16), AFFINE), path)
    return path


@pytest.fixture(scope="session")
def dataset(scan: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The scan, prepared at 3 mm: its own spacing, so that nothing is resampled."""
    out = str(tmp_path_factory.mktemp("prepared") / "mine")
    Prepare("folder", source=str(scan.parent), out=out, units="HU", workers=0).prepare()
    return out


@pytest.fixture(scope="session")
def run(dataset: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a random model that looks at crops of 8 x 16 x 16 voxels."""
    root = tmp_path_factory.mktemp("model")
    model = grow(tiny_llm.pretrained(), SPECIAL, PLAIN, multiple=8)
    tiny_llm.tokenizer().save_pretrained(str(root / "tokenizer"))
    task = VisionLanguage(tiny.mae().vision, Projector(32), model.model, image_token_id=258)
    tokens = DialogueTokens(str(root / "tokenizer"), 4, 128, model.model.vocab_size)
    data = Data(
        (Source(dataset),),
        (8, 16, 16),
        batch_size=8,
        fields={"image": Image(), "text": Text(tokens, MaskQuestions(reg=0))},
    )
    params = {**jax.jit(task.init)(jax.random.key(1), tiny.batch()), **model.params}
    experiment = Experiment("vl", task, data)
    weights.save(root / "vl", experiment, params_lib.flatten(params), {})
    return root / "vl"
