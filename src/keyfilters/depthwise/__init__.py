"""The one definition of a depthwise convolution, and of the weight that it really uses.

`why_not_depthwise` decides by the shape, whatever format it comes from. `kernels` answers for every
convolution of a module: which stored tensors make its kernel, whether this can be read, and how it
is written back.
"""

from keyfilters.depthwise.branches import fused
from keyfilters.depthwise.forms import Form, Held
from keyfilters.depthwise.kernels import Kernel, depthwise_layers, kernels
from keyfilters.depthwise.shapes import ConvShape, extent, why_not_depthwise, why_not_held
from keyfilters.passes import clean_name, unwrapped

__all__ = [
    "ConvShape",
    "Form",
    "Held",
    "Kernel",
    "clean_name",
    "depthwise_layers",
    "extent",
    "fused",
    "kernels",
    "unwrapped",
    "why_not_depthwise",
    "why_not_held",
]
