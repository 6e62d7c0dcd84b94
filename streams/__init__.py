"""The world: Kafka, Redis, files and the command line."""
