"""The repair of one DNN: as a Python call, as a stage of a run, and its export."""
