"""Text in, numbers out: towers, scorers, training and evaluation. Knows nothing of Kafka or Redis."""
