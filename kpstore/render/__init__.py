"""Pictures of keypoints."""
