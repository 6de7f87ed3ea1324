"""Writing filters into models: replace, initialise, transfer, freeze, parametrise."""

from keyfilters.surgery.freeze import Frozen, freeze_filters_, unfreeze_filters_
from keyfilters.surgery.initialize import initialize_filters_
from keyfilters.surgery.parametrize import bake_filters_, parametrize_filters_
from keyfilters.surgery.recalibrate import recalibrate_batchnorm_
from keyfilters.surgery.replace import replace_filters_
from keyfilters.surgery.sensitivity import layer_sensitivity
from keyfilters.surgery.transfer import transfer_filters_

__all__ = [
    "Frozen",
    "bake_filters_",
    "freeze_filters_",
    "initialize_filters_",
    "layer_sensitivity",
    "parametrize_filters_",
    "recalibrate_batchnorm_",
    "replace_filters_",
    "transfer_filters_",
    "unfreeze_filters_",
]
