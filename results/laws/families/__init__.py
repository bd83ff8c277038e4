"""The law families, one file each, which opens with its equation and its source.

Importing this package imports every file in it, and so registers every law: a new one needs no entry anywhere.
"""

from importlib import import_module
from pkgutil import iter_modules

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
