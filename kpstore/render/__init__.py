"""Pictures of keypoints; knows arrays, not stores."""
