"""What every operation needs of PyTorch: derivatives, first by hand, further by formula; one node when compiled; dtypes."""
