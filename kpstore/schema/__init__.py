"""What a store holds, described without files or arrays on disk: features, keypoint layouts, the video index."""
