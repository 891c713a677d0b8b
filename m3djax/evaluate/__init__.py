"""Evaluators of trained models, and the verb `evaluate`.

Exported names are imported at their first use. The stub beside this file lists them.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
