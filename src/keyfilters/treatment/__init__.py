"""What is done to depthwise filters before training, as text, as a recipe, and in a model."""

from keyfilters.treatment.treated import Treated, initialize_by_name_
from keyfilters.treatment.treatment import FilterRecipe, Treatment

__all__ = ["FilterRecipe", "Treated", "Treatment", "initialize_by_name_"]
