"""Second moments of the inputs of layers that read prunable channels: how much of each channel the others make up."""

from .centred import CentredSums
from .inputs import InputMoments, Moments
from .taking import take_moments

__all__ = ["CentredSums", "InputMoments", "Moments", "take_moments"]
