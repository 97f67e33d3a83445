"""A model as files: single files, deltas, differences, and whether a run is whole."""
