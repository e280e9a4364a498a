"""What there is to extract from: data sets on disk, listed as videos and read as frames."""
