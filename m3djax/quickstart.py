"""The verb `quickstart`: the main job of the project on real CT, on one machine."""

from __future__ import annotations

from data_pipelines.prepare_options import PrepareOptions
from data_pipelines.program import program
from m3djax.config import files
from m3djax.config.files import load_config

STAGES = {
    "configs/quickstart.py": "a small 3D ViT, pretrained by masked autoencoding",
    "configs/quickstart_clip.py": "the same ViT and a text encoder, trained contrastively",
    "configs/quickstart_text_only.py": "SmolLM2-135M, tuned on questions about crops, no images",
    "configs/quickstart_ask.py": "the same language model with the ViT, on the same questions",
}
_COUNT = len(STAGES) + 2


def prepare_scans() -> int:
    """Fetches the scans and makes a dataset of them; returns the exit status."""
    from data_pipelines.prepare import Prepare

    print(f"1/{_COUNT} scans: fetch and prepare", flush=True)
    return Prepare(**vars(PrepareOptions("sample_ct"))).run()


def train_all() -> int:
    """Trains and evaluates the models one after another.

    Returns:
      The exit status: 1 if a model is not better than its baseline.
    """
    from m3djax.evaluate.run import evaluate
    from m3djax.runs.results import Results
    from m3djax.training.train import train

    print(f"2/{_COUNT} a language model: fetch and convert", flush=True)
    _import_language_model()
    found: list[Results] = []
    for number, (config, what) in enumerate(STAGES.items(), 3):
        print(f"{number}/{_COUNT} {what}", flush=True)
        experiment = load_config(config)
        folder = train(experiment)
        found += [evaluate(folder)] if experiment.evaluators else []
    print("\n" + "\n".join(results.summary() for results in found) + "\n")
    print(f"report:    {found[-1].report}  (all stages; open it in a browser)")
    for results in found:
        print(f"numbers:   {results.folder}/evaluation/results.json")
    print(f"curves:    tensorboard --logdir {found[0].folder.parent}")
    call = program()
    print(f'try next:  {call} ask {found[-1].folder} YOUR_SCAN "Does it show the liver?"')
    print(f"           {call} train configs/quickstart.py --name mine --task.mask-ratio 0.5")
    print(f"           {call} evaluate runs/mine")
    print(f"           {call} compare {found[0].folder} runs/mine")
    print(f"           {call} prepare folder --source YOUR_SCANS --units HU --out data/mine")
    failed = [str(results.folder) for results in found if not results.passed]
    if failed:
        print(f"FAILED: {', '.join(failed)}: not better than the baseline beyond the interval.")
    return 1 if failed else 0


def _import_language_model() -> None:
    """Converts SmolLM2 with M3D's new tokens, unless that is already done."""
    from m3djax.convert.run import Convert
    from m3djax.runs import weights
    from m3djax.runs.checkpoint import CheckpointError

    config = files.load_module("configs/quickstart_ask.py")
    try:
        weights.newest_readable(config.WEIGHTS)
        print(f"{config.WEIGHTS} is there")
    except CheckpointError:
        print(Convert(config.NAME, config.WEIGHTS).load(config.get_config()))
