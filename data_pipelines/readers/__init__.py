"""Readers: `read(path)` reads a scan of any known format, and its mask, into a `Volume`."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
