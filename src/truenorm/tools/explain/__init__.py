"""`explain`: which elements of a tensor share statistics, in words and as a picture."""

from truenorm.tools.explain.explanation import Explanation, Explanations, explain

__all__ = ["Explanation", "Explanations", "explain"]
