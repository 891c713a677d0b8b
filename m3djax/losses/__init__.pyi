from .contrastive import InfoNCE as InfoNCE
from .contrastive import SigmoidPairs as SigmoidPairs
from .terms import Loss as Loss
from .terms import Term as Term
