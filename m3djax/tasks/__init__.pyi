from .answering import AnsweringTask as AnsweringTask
from .clip import Clip as Clip
from .embedding import EmbeddingTask as EmbeddingTask
from .language import Language as Language
from .mae import MAE as MAE
from .reconstructing import ReconstructingTask as ReconstructingTask
from .vision_language import VisionLanguage as VisionLanguage
