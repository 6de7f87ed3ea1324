"""Training and measuring any network on images; nothing here knows what a key filter is."""

from keyfilters.passes import evaluating
from keyfilters.training.data import Data, load_data
from keyfilters.training.evaluate import Agreement, accuracy, agreement, logits
from keyfilters.training.images import (
    centre_crop,
    image_folder,
    normalise,
    photographs,
    random_crops,
)
from keyfilters.training.loop import train
from keyfilters.training.models import make_model, try_model
from keyfilters.training.plan import plan
from keyfilters.training.processes import own_randomness
from keyfilters.training.readers import READERS
from keyfilters.training.recipe import Recipe, section
from keyfilters.training.results import Trained, load_trained, write_results, write_weights

__all__ = [
    "READERS",
    "Agreement",
    "Data",
    "Recipe",
    "Trained",
    "accuracy",
    "agreement",
    "centre_crop",
    "evaluating",
    "image_folder",
    "load_data",
    "load_trained",
    "logits",
    "make_model",
    "normalise",
    "own_randomness",
    "photographs",
    "plan",
    "random_crops",
    "section",
    "train",
    "try_model",
    "write_results",
    "write_weights",
]
