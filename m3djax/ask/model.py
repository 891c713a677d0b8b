"""The model of a run, ready to be asked about scans."""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
from etils import epath

from data_pipelines.captions import CaptionSource
from data_pipelines.crops import Crop
from data_pipelines.datasets.reading import read_metadata
from data_pipelines.errors import ConfigError, DataError
from data_pipelines.preprocess import RECIPES, Recipe
from data_pipelines.text.dialogue import DialogueTokens
from m3djax import run_folder, sharding
from m3djax.experiment import Experiment
from m3djax.generate.volumes import VolumeReader
from m3djax.params import Dtype
from m3djax.runs.model import Model
from m3djax.tasks.vision_language import VisionLanguage


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """A run that answers questions about volumes; its weights are not read yet.

    Attributes:
      folder: of the run, or of converted weights.
      experiment: its config.
      task: its task.
      tokens: puts questions to it.
    """

    folder: epath.Path
    experiment: Experiment
    task: VisionLanguage
    tokens: DialogueTokens

    @classmethod
    def open(cls, folder: epath.PathLike) -> Run:
        """Reads the config of a run.

        Raises:
          RunError: the folder is none.
          ConfigError: the run answers no questions about volumes, or its parts do not fit.
        """
        folder = epath.Path(folder)
        experiment = run_folder.read_experiment(folder)
        task = experiment.task
        where = folder / run_folder.CONFIG
        if not isinstance(task, VisionLanguage):
            raise ConfigError(
                f"{where}: task is {type(task).__name__}, which has not the components vision, "
                "projector and llm that answers take. Cure: a run of VisionLanguage."
            )
        tokens = experiment.data.text.tokens if experiment.data.text else None
        if not isinstance(tokens, DialogueTokens):
            raise ConfigError(
                f"{where}: data.text.tokens is {type(tokens).__name__}, which puts no questions. "
                "Cure: a run whose data.text.tokens is DialogueTokens."
            )
        task.check(experiment.data)
        return cls(folder, experiment, task, tokens)

    def recipe(self, name: str | None) -> Recipe:
        """How the scans of its training were preprocessed.

        Args:
          name: of a recipe, instead of what the run's datasets say.

        Raises:
          ConfigError: there is no such recipe, or the datasets do not say which one it is.
        """
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
                f"{where}: the preprocessing of scans is told by the training data, which is not "
                f"here ({error.path}: {error.problem}). Cure: {cure}."
            ) from error
        if any(recipe != found[0] for recipe in found):
            raise ConfigError(
                f"{where}: {', '.join(paths)} were prepared in different ways. Cure: {cure}."
            )
        return found[0]

    def crop(self, zoom: float | None) -> Crop:
        """The crop that training cut most often, or one of another zoom."""
        if zoom is None:
            return max(self.experiment.data.crops, key=lambda crop: crop.weight)
        if not 0 < zoom < math.inf:
            raise ConfigError(
                f"--zoom {zoom} must be positive and finite. Cure: 1, or a zoom of data.crops."
            )
        return Crop(zoom)

    @property
    def released_boxes(self) -> bool:
        """Whether it learned boxes that end at their last voxel; see `boxes.mask_to_box`."""
        text = self.experiment.data.text
        return text is not None and _released(text.source)

    def reader(self, volumes: int, dtype: Dtype) -> VolumeReader:
        """Reads the weights, onto all devices of this process.

        Args:
          volumes: in a prompt.
          dtype: what is computed in, and what weights are kept in.

        Raises:
          CheckpointError: there are no readable weights, or components are missing.
          ConfigError: prompts do not fit the model.
          DataError: its tokenizer cannot be read, or is another model's.
        """
        tokenizer = self.tokens.load()
        tokens = self.task.tokens_per_volume(self.experiment.data.size) * volumes
        if tokens >= self.task.llm.context:
            raise ConfigError(
                f"{volumes} volumes become {tokens} tokens, and the context of the model has "
                f"{self.task.llm.context}. Cure: fewer scans."
            )
        prompt = dataclasses.replace(self.tokens.prompt, image_tokens=tokens)
        mesh = sharding.make_mesh((1, 1, -1), jax.local_devices())
        model = Model.open(self.folder, mesh, dtype)
        return VolumeReader(
            model.task,
            model.params,
            functools.partial(prompt, tokenizer),
            tokenizer=tokenizer,
            eos_ids=(prompt.end(tokenizer),),
            mesh=mesh,
        )


def _released(source: CaptionSource) -> bool:
    """A mixture is of sources, and all that make boxes do so in one way."""
    members = getattr(source, "sources", {})
    return getattr(source, "released", False) or any(map(_released, members.values()))
