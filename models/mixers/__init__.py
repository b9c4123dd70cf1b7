"""What mixes the steps of a sequence in a trunk's block: one class each, exchangeable."""
