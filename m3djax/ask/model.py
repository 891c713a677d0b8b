"""Runs that answer questions about scans."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
from etils import epath
from jax.sharding import Mesh

from data_pipelines import readers
from data_pipelines.captions import CaptionSource
from data_pipelines.crops import Crop
from data_pipelines.datasets.reading import read_metadata
from data_pipelines.errors import ConfigError, DataError
from data_pipelines.fields.text import Text
from data_pipelines.plausible import check_values
from data_pipelines.preprocess import RECIPES, Recipe
from data_pipelines.text.dialogue import DialogueTokens
from data_pipelines.text.prompts import Prompt
from data_pipelines.volume import Units, Volume
from m3djax.ask.field_of_view import CENTRE, At, FieldOfView
from m3djax.experiment import Experiment
from m3djax.generate.volumes import VolumeReader
from m3djax.mesh import sharding
from m3djax.params import Dtype
from m3djax.runs import run_folder
from m3djax.runs.model import Model
from m3djax.tasks.answering import AnsweringTask


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """A run that answers questions about volumes, before its weights are read.

    Attributes:
      folder: folder of the run, or of converted weights.
      experiment: its config.
      task: its task.
      tokens: its tokenizer, which makes the prompts.
    """

    folder: epath.Path
    experiment: Experiment
    task: AnsweringTask
    tokens: DialogueTokens

    @classmethod
    def open(cls, folder: epath.PathLike) -> Run:
        """Reads the config of a run.

        Raises:
          RunError: the folder is not a run.
          ConfigError: the run does not answer questions about volumes, or its parts do not fit.
        """
        folder = epath.Path(folder)
        experiment = run_folder.read_experiment(folder)
        task = experiment.task
        where = folder / run_folder.CONFIG
        if not isinstance(task, AnsweringTask):
            raise ConfigError(
                f"{where}: task is {type(task).__name__}, which answers no questions about "
                "volumes. Cure: a run of VisionLanguage, or of another AnsweringTask."
            )
        text = experiment.data.find("text", Text)
        tokens = text.tokens if text else None
        if not isinstance(tokens, DialogueTokens):
            raise ConfigError(
                f"{where}: data.fields.text.tokens is {type(tokens).__name__}, which makes no "
                "prompts. Cure: a run with DialogueTokens as data.fields.text.tokens."
            )
        task.check(experiment.data)
        return cls(folder, experiment, task, tokens)

    def look_at(
        self,
        scan: epath.PathLike | Volume,
        *,
        at: str = CENTRE,
        zoom: float | None = None,
        units: Units | None = None,
        series: str | None = None,
        recipe: str | None = None,
    ) -> FieldOfView:
        """Reads and preprocesses a scan, and cuts the model's field of view from it.

        Args:
          scan: a volume, a volume file, or a folder of DICOM files or of image slices.
          at: centre of the crop: "centre", a voxel of the file ("30,200,180") or RAS+ millimetres
            ("-12,40,1310mm"); "whole": the whole scan is resampled instead.
          zoom: zoom of the crop; None: that of the most frequent crop in training.
          units: units of a file that does not store them: "HU" for CT.
          series: number of a series in a DICOM folder with several.
          recipe: name of the preprocessing; None: that of the run's datasets.

        Raises:
          DataError: the scan cannot be read, or is of another kind than the run's data.
          ConfigError: the options do not fit run and scan.
        """
        steps, place, crop = self._recipe(recipe), At.read(at), self._crop(zoom)
        if not isinstance(scan, Volume):
            volume = readers.read(scan, units=units, series=series)
            scan = dataclasses.replace(volume, source=str(scan))
        check_values(scan)
        return FieldOfView.of(scan, self.experiment.data, steps, place, crop)

    def prompt(self, volumes: int) -> Prompt:
        """Returns the prompt format for questions about this number of volumes.

        Raises:
          ConfigError: the tokens of the volumes do not fit the model's context.
        """
        tokens = self.task.tokens_per_volume(self.experiment.data.size) * volumes
        if tokens >= self.task.llm.max_position_embeddings:
            raise ConfigError(
                f"{volumes} volumes become {tokens} tokens, and the context of the model has "
                f"{self.task.llm.max_position_embeddings}. Cure: fewer scans."
            )
        return dataclasses.replace(self.tokens.prompt, image_tokens=tokens)

    def load(self, dtype: Dtype = "float32", mesh: Mesh | None = None) -> AskModel:
        """Reads the weights.

        Args:
          dtype: dtype of the weights and of the computation.
          mesh: the devices for the weights; None: all devices of this process, with every weight
            split over them.

        Raises:
          CheckpointError: there are no readable weights, or components are missing.
          ConfigError: the tokenizer cannot make the model's prompts.
          DataError: its tokenizer cannot be read, or belongs to another model.
        """
        tokenizer = self.tokens.load()
        end = self.tokens.prompt.end(tokenizer)
        if mesh is None:
            mesh = sharding.make_mesh((1, 1, -1), jax.local_devices())
        model = Model.open(self.folder, mesh, dtype)
        reader = VolumeReader(
            model.task,
            model.inputs,
            model.params,
            tokenizer=tokenizer,
            eos_ids=(end,),
            mesh=mesh,
        )
        return AskModel(self, reader)

    def _recipe(self, name: str | None) -> Recipe:
        """Returns the recipe with this name; None: the recipe of the run's datasets."""
        cure = f"--recipe with the one of the training data ({', '.join(RECIPES)})"
        if name is not None:
            if name not in RECIPES:
                raise ConfigError(f"--recipe {name!r} is unknown. Cure: {cure}.")
            return RECIPES[name]
        paths = [source.path for source in self.experiment.data.sources]
        where = f"{self.folder / run_folder.CONFIG}: data.sources"
        try:
            found = [Recipe.from_json(read_metadata(path)["recipe"]) for path in paths]
        except DataError as error:
            raise ConfigError(
                f"{where}: the training data store the preprocessing of scans, and cannot be read "
                f"({error.path}: {error.problem}). Cure: {cure}."
            ) from error
        if any(recipe != found[0] for recipe in found):
            raise ConfigError(
                f"{where}: {', '.join(paths)} were prepared in different ways. Cure: {cure}."
            )
        return found[0]

    def _crop(self, zoom: float | None) -> Crop:
        """Returns a crop with this zoom; None: the most frequent crop in training."""
        if zoom is None:
            return max(self.experiment.data.crops, key=lambda crop: crop.weight)
        if not 0 < zoom < math.inf:
            raise ConfigError(
                f"--zoom {zoom} must be positive and finite. Cure: 1, or a zoom of data.crops."
            )
        return Crop(zoom)

    @property
    def released_boxes(self) -> bool:
        """Returns whether the run learned boxes that include their end; see `boxes.mask_to_box`."""
        text = self.experiment.data.find("text", Text)
        return text is not None and _released(text.source)


@dataclasses.dataclass(frozen=True, eq=False)
class AskModel:
    """A run with its weights, for any number of sessions.

    Attributes:
      run: the run.
      reader: its model.
    """

    run: Run
    reader: VolumeReader

    @property
    def tokenizer(self) -> Any:
        """Returns the transformers tokenizer with all new tokens; shared, so do not change it."""
        return self.reader.generator.tokenizer


def _released(source: CaptionSource) -> bool:
    """Returns whether a source writes boxes as M3D released them.

    All sources in a mixture write boxes in the same way, so any of them decides.
    """
    members = getattr(source, "sources", {})
    return getattr(source, "released", False) or any(map(_released, members.values()))
