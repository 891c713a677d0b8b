"""ViT-H, pretrained with E3D-GPT's recipe; E3D-GPT itself has only a ViT-B.

    python run.py train configs/e3d_gpt/mae_huge.py

Planned, not run (docs/plans): a batch of 256 on v5e:8x8 takes 13.6 of 15.75 GiB per chip.
"""

from configs.e3d_gpt import mae
from m3djax import Experiment
from m3djax.models import Attention, Block, Mlp, Transformer

HUGE = Transformer(32, Block(Attention(16), Mlp(5120)), remat="dots")


def get_config() -> Experiment:
    """Returns the config that the module's docstring describes."""
    return mae.experiment("e3d_gpt_mae_huge", 1280, HUGE)
