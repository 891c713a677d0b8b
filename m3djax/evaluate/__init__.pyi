from .answers.beside import Beside as Beside
from .answers.evaluator import Answers as Answers
from .loop import place as place
from .probe.evaluator import OrganProbe as OrganProbe
from .reconstruction.evaluator import Reconstruction as Reconstruction
from .retrieval.evaluator import Retrieval as Retrieval
from .split import SplitEvaluator as SplitEvaluator
