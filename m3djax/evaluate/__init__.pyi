from .answers import Answers as Answers
from .answers.beside import Beside as Beside
from .base import Evaluator as Evaluator
from .probe import OrganProbe as OrganProbe
from .reconstruction import Reconstruction as Reconstruction
from .retrieval import Retrieval as Retrieval
