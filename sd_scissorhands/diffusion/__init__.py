"""Denoisers: everything that differs between model families, behind one interface."""
