"""Features, keypoint layouts and the video index, described without files or arrays on disk."""
