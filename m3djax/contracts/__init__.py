"""Base classes that tasks and evaluators fill. They import nothing concrete.

What is exported here is imported at its first use. The stub beside this file lists the names.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
