"""Graph neighbour encoders and multimodal graph recommenders."""
