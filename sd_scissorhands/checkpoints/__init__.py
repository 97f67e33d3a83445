"""A model as files: names in other programs' layouts, single files, deltas, differences, and whether a run is whole."""
