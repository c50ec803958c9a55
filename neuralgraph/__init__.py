"""neuralgraph: learn the dynamics of biological networks, and know what the data determine.

Importing the package costs nothing: torch and everything heavy is imported where it is used.
"""

__version__ = "0.1.0"
