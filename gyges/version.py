"""The one place the version is written; setuptools and ``gyges --version`` read it from here."""

__version__ = "0.1.0"
