from .clip import Clip as Clip
from .language import Language as Language
from .mae import MAE as MAE
from .vision_language import VisionLanguage as VisionLanguage
