"""Repair one DNN: as a Python call or as a stage of a run. Export the result."""
