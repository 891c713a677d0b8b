"""Reads, preprocesses and serves 3D medical images with numpy; JAX is never imported.

Exported names are imported lazily, at their first use. The stub `__init__.pyi` lists them.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
