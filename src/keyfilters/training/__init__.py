"""Training and measuring any network on images; nothing here knows what a key filter is."""

from keyfilters.training.data import (
    centre_crop,
    image_folder,
    normalise,
    photographs,
    random_crops,
)
from keyfilters.training.datasets import Data, load_data
from keyfilters.training.evaluate import Agreement, accuracy, agreement, logits
from keyfilters.training.loop import train
from keyfilters.training.models import make_model
from keyfilters.training.plan import plan
from keyfilters.training.recipe import Recipe
from keyfilters.training.results import Trained

__all__ = [
    "Agreement",
    "Data",
    "Recipe",
    "Trained",
    "accuracy",
    "agreement",
    "centre_crop",
    "image_folder",
    "load_data",
    "logits",
    "make_model",
    "normalise",
    "photographs",
    "plan",
    "random_crops",
    "train",
]
