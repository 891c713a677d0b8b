"""Installs the configs inside the package m3djax, because other packages may be named `configs`.

The other metadata of the package is in pyproject.toml.
"""

from setuptools import find_packages, setup

CONFIGS = "m3djax.shipped.configs"

setup(
    packages=[
        *find_packages(include=["m3djax", "m3djax.*", "data_pipelines", "data_pipelines.*"]),
        CONFIGS,
        *(f"{CONFIGS}.{name}" for name in find_packages("configs")),
    ],
    package_dir={CONFIGS: "configs"},
)
