"""What `train.py` stands on: configuration, data, devices, run folder, checkpoints, metrics and the live line."""
