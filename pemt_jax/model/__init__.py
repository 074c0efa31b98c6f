"""The model: T5, what PEMT adds to it, losses and decoding. Knows neither TensorFlow nor SeqIO."""
