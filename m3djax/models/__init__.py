"""Models and their parts, as Linen modules.

A name that this package exports is imported at its first use. The stub file (.pyi) lists the names.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
