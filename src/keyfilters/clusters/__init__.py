"""Clusters: the patterns that trained filters fall into, and how far that is above chance."""

from keyfilters.clusters.atlas import Atlas
from keyfilters.clusters.size_atlas import SizeAtlas

__all__ = ["Atlas", "SizeAtlas"]
