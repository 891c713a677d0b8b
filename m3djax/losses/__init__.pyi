from .contrastive import InfoNCE as InfoNCE
from .contrastive import SigmoidPairs as SigmoidPairs
