"""Clusters: the patterns that trained filters fall into, and how far that is above chance."""

from keyfilters.clusters.atlas import Atlas, SizeAtlas
from keyfilters.clusters.config import AtlasConfig

__all__ = ["Atlas", "AtlasConfig", "SizeAtlas"]
