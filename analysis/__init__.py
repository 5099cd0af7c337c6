"""Looking inside a trained network: each analysis is a function that writes a page, pictures and numbers."""

from .change import change
from .compare import compare
from .cooperate import cooperate
from .embed import embed
from .retain import retain
from .units import units

__all__ = ['change', 'compare', 'cooperate', 'embed', 'retain', 'units']
