"""Pictures: decoding, encoders, labels and captions."""
